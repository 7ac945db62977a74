"""What a server serves: one model in memory, the adapters on it, and the version of each one's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from remask.errors import UserError
from remask.models.facts import corruption_of
from remask.models.fingerprint import fingerprint, named
from remask.models.lora import load_adapter


class Served:
    """A model and its adapters, by the names that requests ask for. `name` is that of the model without an adapter.

    Raises UserError for a model that does not mask.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if corruption_of(model.config) == "uniform":
            raise UserError(
                "requests share steps that unmask, and this model has no masks: its noise replaces tokens by others",
                mend="write with remask generate, or remask.generate",
            )
        self.name, self.tokenizer = name, tokenizer
        self.wrapped: Any = model if isinstance(model, PeftModel) else None
        self.model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        self.own_adapter = None if self.wrapped is None else self.wrapped.active_adapter
        self.versions: dict[str, int] = {name: 0}
        self.adapters: dict[str, str] = {}
        self.fingerprints = {name: fingerprint(self.model, self.own_adapter)}
        self._numbers = count()

    @property
    def names(self) -> list[str]:
        """Return the names that requests may ask for."""
        return list(self.versions)

    def add(self, name: str, adapter: str, version: int = 0) -> None:
        """Put an adapter beside the others, or in the place of the one of this name.

        Raises UserError where it does not fit the model, or the model's own weights are an adapter already.
        """
        if self.own_adapter is not None:
            raise UserError(
                f"--adapter {name}: the model is an adapter itself",
                mend="give its base as the model, and it among the adapters",
            )
        if name == self.name:
            raise UserError(f"--adapter {name}: the model has this name", mend="give the adapter another name")
        fresh, old = f"served{next(self._numbers)}", self.adapters.get(name)
        known = set() if self.wrapped is None else set(self.wrapped.peft_config)
        try:
            self.wrapped = load_adapter(self.wrapped or self.model, adapter, name=fresh)
        except UserError:
            if self.wrapped is not None and fresh in set(self.wrapped.peft_config) - known:
                self.wrapped.delete_adapter(fresh)
            raise
        if old is not None:
            self.wrapped.delete_adapter(old)
        self.wrapped.requires_grad_(False)
        self.wrapped.eval().to(self.model.device)
        self.adapters[name], self.versions[name] = fresh, version
        self.fingerprints[name] = fingerprint(self.model, fresh)

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """The model as this name means it."""
        if self.wrapped is None or self.own_adapter is not None:
            yield self.model
        elif name == self.name:
            with self.wrapped.disable_adapter():
                yield self.model
        else:
            self.wrapped.set_adapter(self.adapters[name], inference_mode=True)
            yield self.model

    def load_weights(self, tensors: dict[str, Any], version: int) -> None:
        """Take new weights for the model itself, under the names of `models.fingerprint.named`: all of them, or those
        of its adapter alone where it has one.

        Raises UserError, with nothing changed, where a name is unknown or missing, or a shape differs.
        """
        own = named(self.model, self.own_adapter)
        wanted = {key for key in own if ".lora_" in key} if all(".lora_" in key for key in tensors) else set(own)
        unknown, missing = sorted(set(tensors) - set(own)), sorted((wanted or set(own)) - set(tensors))
        missing = [key for key in missing if key not in self._tied()]
        for what, names in (("the model has no tensor", unknown), ("there is no new tensor for", missing)):
            if names:
                said = f"{what} {', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
                raise UserError(said, mend="send the weights of this model, all of them or those of its adapter")
        for key, value in tensors.items():
            if value.shape != own[key].shape:
                said = f"{key} has the shape {tuple(value.shape)}, and the model's is {tuple(own[key].shape)}"
                raise UserError(said, mend="send the weights of this model")
        for key, value in tensors.items():
            own[key].copy_(value)
        self.versions[self.name] = version
        self.fingerprints[self.name] = fingerprint(self.model, self.own_adapter)
        for name, adapter in self.adapters.items():
            self.fingerprints[name] = fingerprint(self.model, adapter)

    def _tied(self) -> set[str]:
        """Names of tensors that are another one's too."""
        return set(getattr(self.model, "_tied_weights_keys", None) or ())


def name_of(path: str) -> str:
    """Return the name that a model is served by: the last part of its path or hub id."""
    return Path(path).name or path
