"""Loading and saving: hub ids, local folders, Remask's own runs, LoRA adapters, and the embedded tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from remask.errors import UserError
from remask.models.facts import facts

TINY = Path(__file__).parent / "tiny"


def resolve(path: str | Path) -> str:
    """`tiny` is the embedded model; anything else is itself. Raises UserError for a path that is not there."""
    if str(path) == "tiny":
        return str(TINY)
    text = str(path)
    looks_local = Path(text).is_absolute() or text.startswith(".") or text.count("/") != 1 or Path(text).parent.exists()
    if looks_local and not Path(text).exists():
        raise UserError("no such model folder", where=text, mend="give a folder, a hub id (owner/name) or tiny")
    return text


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    adapter: str | Path | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model, in evaluation mode, and its tokenizer.

    `path`: a hub id, a local folder in the hub's layout, a run of `remask sft` (full or LoRA), or `tiny`. `adapter`: a
    folder with a LoRA adapter to put on it. Raises UserError naming what is missing.
    """
    folder = resolve(path)
    if adapter is None and (Path(folder) / "adapter_config.json").exists():
        adapter, path = folder, _base_of(Path(folder))
        folder = resolve(path)
        if Path(folder).resolve() == Path(adapter).resolve():
            raise UserError("the adapter names itself as its base", where=str(adapter))
    if (Path(folder) / "adapter_config.json").exists():  # an adapter trained on an adapter: the lower one is merged
        lower, tokenizer = load(folder, dtype=dtype, device="cpu")
        model = lower.merge_and_unload()
    else:
        model, tokenizer = load_model(folder, dtype=dtype), load_tokenizer(folder)
    facts(model, tokenizer, where=str(path))
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(adapter))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"not a LoRA adapter for {path} ({_first_line(error)})", where=str(adapter)) from error
    return model.to(pick_device(device)).eval(), tokenizer


def _base_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (KeyError, ValueError) as error:
        raise UserError("adapter_config.json names no base model", where=str(folder)) from error


def load_model(folder: str, *, dtype: str = "float32") -> PreTrainedModel:
    """The bare model. Raises UserError where the folder is not a checkpoint that Remask knows."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"not a model Remask can load ({_first_line(error)})", where=folder) from error
    if type(config) not in AutoModelForMaskedLM._model_mapping:
        raise UserError(
            f"model type {config.model_type!r} is not a diffusion language model Remask knows",
            where=folder,
            mend="LLaDA checkpoints (model_type llada) load today",
        )
    try:
        with quiet_transformers():
            model, info = AutoModelForMaskedLM.from_pretrained(
                folder, config=config, dtype=getattr(torch, dtype), output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"its weights cannot be read ({_first_line(error)})", where=folder) from error
    if info["missing_keys"]:
        raise UserError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:5])}", where=folder)
    return model


class quiet_transformers:  # noqa: N801
    """No progress bars of transformers' own."""

    def __enter__(self) -> None:
        self.was = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.was:
            transformers_logging.enable_progress_bar()


def load_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no tokenizer ({_first_line(error)})", where=folder) from error


def pick_device(device: str) -> str:
    """`auto` is CUDA where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", mend="use --device cpu, or install a CUDA build of torch")
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
