"""LoRA through peft: fresh adapters, and adapters from disk, with the checks users miss.

Every named target must exist in the model, and every tensor of a saved adapter must find its place. Adapters made for
LLaDA's official module names (`attn_out`, `ff_proj`, `ff_out`, …) are renamed while loading.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remask.config import LoraConfig
from remask.errors import UserError, first_line
from remask.faults import is_out_of_memory
from remask.files import from_json
from remask.models.diffusion_gemma import with_twins
from remask.models.llada import native_name

WEIGHTS = "adapter_model.safetensors"
"""The file of an adapter's weights."""
PEFT_PREFIX = "base_model.model."
OFFICIAL = f"{PEFT_PREFIX}model.transformer."
"""The prefix of a tensor's name in an adapter made for LLaDA's official code."""


def add_adapter(model: Any, lora: LoraConfig, *, base_name: str) -> Any:
    """Wrap the model in fresh adapters. Raises UserError naming targets that match no linear layer.

    `base_name` is what the adapter will name as its base, so that it can be loaded again by that name.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from remask.models.adapters import lean

    head = model.get_output_embeddings()
    left_out = getattr(model, "not_adapted", None)
    layers = {
        name.rpartition(".")[2]: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not (left_out and re.fullmatch(left_out, name))
    }
    linear = set(layers)
    if lora.targets == ("all-linear",):
        targets = sorted(name for name in linear if layers[name] is not head)
    else:
        unmatched = [target for target in lora.targets if target not in linear]
        if unmatched:
            raise UserError(
                f"LoRA targets {', '.join(unmatched)} match no layer",
                mend=f"the model's linear layers are {', '.join(sorted(linear))}, or use all-linear",
            )
        targets = list(lora.targets)
    model.config.name_or_path = base_name
    model.name_or_path = base_name
    config = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=left_out,
    )
    with _without_deprecations():
        return _shared(lean(get_peft_model(model, config)), fresh=True)


def _shared(model: Any, *, fresh: bool) -> Any:
    """The model, whose parts that share their weights share their adapters too (DiffusionGemma)."""
    if shares_adapters(base := model.get_base_model()):
        base.share_adapters(fresh=fresh)
    return model


def shares_adapters(model: Any) -> bool:
    """Return whether two parts of a model, or of what an adapter was put on, have the same weights and adapters."""
    return hasattr(model, "share_adapters")


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """peft asks transformers for a property by its old name, of which transformers warns whoever sees it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def merge(model: Any, *, where: str) -> Any:
    """Return the base model with its adapters' change added to its weights. It says on stderr where rounding takes a
    hundredth of the change or more.
    """
    _untie_adapted(model)
    shares = getattr(model.get_base_model(), "adapters_are_shared", None)
    if shares is not None and not shares():
        raise UserError(
            "the adapter changes the encoder otherwise than the decoder, and the two share the weights it would be "
            "added to",
            where=where,
            mend="load it as an adapter: --adapter",
        )
    merged, lost = merged_and_lost(model)
    if lost >= 0.01 and os.environ.get("RANK", "0") == "0":
        kind = str(merged.dtype).removeprefix("torch.")
        said = f"rounding to {kind} took {100 * lost:.0f} % of the adapter's change; --dtype float32 keeps it"
        print(f"{where}: merged; {said}", file=sys.stderr)
    return merged


def _untie_adapted(model: Any) -> None:
    """Give the output layer weights of its own where it shares the input embedding's and one of the two is adapted: a
    change added to the shared weights would change both layers, and the adapter changed one.
    """
    base = model.get_base_model()
    layers = [base.get_input_embeddings(), base.get_output_embeddings()]
    if not all(layers) or not any(hasattr(layer, "base_layer") for layer in layers):
        return
    inner, outer = (getattr(layer, "base_layer", layer) for layer in layers)
    if inner.weight is outer.weight:
        outer.weight = nn.Parameter(outer.weight.detach().clone(), requires_grad=outer.weight.requires_grad)
        base.config.tie_word_embeddings = False


def merged_and_lost(model: Any) -> tuple[Any, float]:
    """Return (merged, lost): the norm of what rounding took of the change ΔW over that of ΔW, over all plainly adapted
    layers.

    bfloat16 has 8 bits: where a weight's change is smaller than half of its last one, it is lost altogether.
    """
    from peft.tuners.lora import Linear

    missing = whole = 0.0
    for layer in model.modules():
        if not isinstance(layer, Linear) or layer.merged or layer.lora_variant:
            continue
        if names := [name for name in layer.active_adapters if name in layer.lora_A]:
            weight: Any = layer.base_layer.weight
            before = weight.detach().clone()
            change: Any = sum(layer.get_delta_weight(name).detach().float() for name in names)
            layer.merge()
            missing += (weight.detach().float() - before.float() - change).square().sum().item()
            whole += change.square().sum().item()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        merged = model.merge_and_unload()
    if hasattr(merged, "share_merged"):
        merged.share_merged()
    return merged, (missing / whole) ** 0.5 if whole else 0.0


def is_adapter(folder: str) -> bool:
    """Return whether a local folder holds an adapter rather than a model."""
    return (Path(folder) / "adapter_config.json").exists()


def base_of(folder: str) -> str:
    """Return the base model that an adapter names. Raises UserError where it names none."""
    try:
        base = from_json((Path(folder) / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError("adapter_config.json names no base model", where=folder, mend="name it there") from error
    if not base:
        raise UserError("adapter_config.json names no base model", where=folder, mend="give the base with --model")
    return str(base)


def attention_of_base(adapter: str) -> str | None:
    """Return the attention that the run which made the adapter set for its base, where it set one: run.json in the
    adapter's folder, or in that of its checkpoint, says so, or the file of its weights.
    """
    folder = Path(adapter)
    for place in (folder, folder.parent):
        if (place / "run.json").is_file():
            with suppress(ValueError, AttributeError):
                found = from_json((place / "run.json").read_text(encoding="utf-8")).get("model_attention")
                return None if found is None else str(found)
    with suppress(OSError, SafetensorError), safe_open(folder / WEIGHTS, framework="pt") as stored:
        return (stored.metadata() or {}).get("attention")
    return None


def note_attention(folder: str, attention: str | None, *, twins: bool = False) -> None:
    """Write into the file of an adapter's weights which attention its base was read with, so that it is known wherever
    the file is taken; with `twins` also each tensor under both names that share it (`diffusion_gemma.with_twins`).
    """
    path = Path(folder) / WEIGHTS
    if attention is None or not path.is_file():
        return
    unfinished, weights = path.with_suffix(".unfinished"), load_file(path)
    save_file(with_twins(weights) if twins else weights, unfinished, metadata={"format": "pt", "attention": attention})
    unfinished.replace(path)


def load_adapter(model: Any, adapter: str, *, name: str = "default") -> Any:
    """Put a saved adapter on its base, or beside the adapters that a model has, under a name.

    Raises UserError where a tensor of it finds no place, or a place no tensor.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    from remask.models.adapters import lean

    if Path(adapter).is_dir() and not is_adapter(adapter):  # peft would look for it at the hub
        raise UserError(
            "no adapter that can be read (there is no adapter_config.json)",
            where=adapter,
            mend="give a folder with adapter_config.json and its weights",
        )
    try:
        config = PeftConfig.from_pretrained(adapter)
        weights = load_peft_weights(adapter, device="cpu")
    except Exception as error:
        raise UserError(
            f"no adapter that can be read ({first_line(error)})",
            where=adapter,
            mend="give a folder with adapter_config.json and its weights",
        ) from error
    if any(name.startswith(OFFICIAL) for name in weights):
        weights = _renamed(config, weights, adapter)
    try:
        wrapped, result = _filled(model, config, weights, name)
    except Exception as error:  # a setting of the wrong type fails where it is first used
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"not an adapter for this model ({first_line(error)})",
            where=adapter,
            mend="load it on the model it was made for",
        ) from error
    lost = sorted(result.unexpected_keys)
    own = (f".{name}.", f".{name}")
    empty = sorted(
        key
        for key in result.missing_keys
        if ("lora_" in key or ".modules_to_save." in key) and (own[0] in key or key.endswith(own[1]))
    )
    for what, keys in (("its tensors match no layer", lost), ("layers get no tensor from it", empty)):
        if keys:
            raise UserError(
                f"not an adapter for this model: {what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}",
                where=adapter,
                mend="load it on the model it was made for",
            )
    return _shared(lean(wrapped), fresh=False)


def _filled(model: Any, config: Any, weights: dict[str, Tensor], name: str) -> tuple[Any, Any]:
    """The model with adapters of this name and weights, and what peft says of the tensors' names."""
    from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    config.inference_mode = True
    with _without_deprecations():
        if isinstance(model, PeftModel):
            wrapped = model
            wrapped.add_adapter(name, config)
        else:
            wrapped = PeftModel(model, config, adapter_name=name)
    if shares_adapters(model):
        places = get_peft_model_state_dict(wrapped, adapter_name=name)
        weights = weights | {key: tensor for key, tensor in with_twins(weights).items() if key in places}
    return wrapped, set_peft_model_state_dict(wrapped, weights, adapter_name=name)


def _renamed(config: Any, weights: dict[str, Tensor], adapter: str) -> dict[str, Tensor]:
    """The tensors under this package's module names, and the config's targets with them."""
    if config.rank_pattern or config.alpha_pattern or config.modules_to_save:
        raise UserError(
            "rank_pattern, alpha_pattern and modules_to_save under LLaDA's official names are not read",
            where=adapter,
            mend="merge the adapter with the official code and load the merged model",
        )
    renamed = {PEFT_PREFIX + native_name(name.removeprefix(PEFT_PREFIX)): tensor for name, tensor in weights.items()}
    config.target_modules = {
        name.partition(".lora_")[0].removeprefix(PEFT_PREFIX) for name in renamed if ".lora_" in name
    }
    return renamed
