"""Loading: hub ids, local folders in the hub's layout, Remask's own runs, LoRA adapters, and the embedded models.

No remote code is ever run: a checkpoint's own Python files are not looked at.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config, tokenizer_class_from_name
from transformers.utils import CONFIG_NAME
from transformers.utils import logging as transformers_logging

from remask.choices import Dtype, Quantization, refuse_unknown, values
from remask.diffusion.attention import named
from remask.errors import UserError, first_line
from remask.faults import is_out_of_memory
from remask.models.converted import A2D
from remask.models.encoders import ENCODERS
from remask.models.facts import facts
from remask.models.gguf import gguf_config, gguf_file, gguf_weights
from remask.models.gguf_tokenizer import gguf_tokenizer
from remask.models.lora import attention_of_base, base_of, is_adapter, load_adapter, merge
from remask.models.registry import (
    UNREAD,
    class_to_load,
    convertible_types,
    own_config,
    refuse_quantised,
)

EMBEDDED = {name: Path(__file__).parent / name for name in ("tiny", "tiny-direct", "tiny-block")}
"""The models that come with the package, by the names they are loaded by."""

NATIVE_TOKENIZERS: dict[str, type[PreTrainedTokenizerBase]] = {"Dream": Qwen2Tokenizer}
"""The model types whose tokenizer files name a class of theirs, and the class of transformers that reads them."""


def resolve(path: str | Path) -> str:
    """Return the folder of an embedded model (`tiny`, `tiny-direct`, `tiny-block`), or the path unchanged. Raises
    UserError for a path that is not there.
    """
    text = str(path)
    if text in EMBEDDED:
        return str(EMBEDDED[text])
    looks_local = Path(text).is_absolute() or text.startswith(".") or text.count("/") != 1 or Path(text).parent.exists()
    if looks_local and not Path(text).exists():
        known = " or ".join(EMBEDDED)
        raise UserError("no such model folder", where=text, mend=f"give a folder, a hub id (owner/name), {known}")
    return text


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "auto",
    adapter: str | Path | None = None,
    quantization: Quantization | None = None,
    attention: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the model, in evaluation mode, and its tokenizer.

    `path`: a hub id, a local folder in the hub's layout, a run of `remask sft` (full or LoRA), or an embedded model's
    name. `adapter`: a folder or hub id with a LoRA adapter to put on it. `quantization`: load the weights in 4 or 8
    bits (bitsandbytes). `attention`: which tokens attend to which (`full`, `block:32`), where the checkpoint does not
    say or is to be read otherwise. Raises UserError naming what is missing.
    """
    folder = resolve(path)
    if adapter is None and is_adapter(folder):
        adapter, path = folder, base_of(folder)
        folder = resolve(path)
        if Path(folder).resolve() == Path(adapter).resolve():
            raise UserError(
                "the adapter names itself as its base", where=str(adapter), mend="name its base in adapter_config.json"
            )
    if adapter is not None and attention is None:
        attention = attention_of_base(str(adapter))
    device = pick_device(device)
    if is_adapter(folder):  # an adapter trained on an adapter: the lower one is merged
        if quantization is not None:
            raise UserError(
                "an adapter on an adapter cannot be loaded quantised",
                where=folder,
                mend="merge the lower one first: remask convert --merge",
            )
        lower, tokenizer = load(folder, dtype=dtype, device="cpu", attention=attention)
        model = merge(lower, where=folder)
    else:
        model = load_model(folder, dtype=dtype, device=device, quantization=quantization, attention=attention)
        tokenizer = load_tokenizer(folder, model.config.model_type)
    facts(model, tokenizer, where=str(path))
    if adapter is not None:
        model = load_adapter(model, str(adapter))
    return (model if quantization else model.to(device)).eval(), tokenizer


def load_model(
    folder: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    quantization: Quantization | None = None,
    attention: str | None = None,
    config: Any = None,
) -> PreTrainedModel:
    """Load the bare model, with the config of the folder or a changed one.

    Raises UserError where the folder is not a checkpoint of a model type that Remask has.
    """
    config = load_config(folder) if config is None else config
    kind = class_to_load(config, folder)
    if attention is not None:
        named(attention)
        config.attention = attention
    if config.model_type in UNSAID and getattr(config, "attention", None) is None:
        raise UserError(
            f"its config does not say how this {config.model_type} attends: dllm makes models of full attention and "
            "block models of that type",
            where=folder,
            mend="say so: --model-attention full or --model-attention block:32 (the tokens of a block), or "
            '"attention" in its config.json',
        )
    if quantization is not None:
        refuse_quantised(config, folder)
    stored = gguf_file(folder)
    keywords: dict[str, Any] = {"dtype": torch_dtype(dtype), "ignore_mismatched_sizes": True}  # found and named below
    if stored is not None:
        keywords["state_dict"] = gguf_weights(stored, config, None if dtype == "auto" else torch_dtype(dtype))
    if quantization is not None:
        keywords |= {"quantization_config": _quantized(quantization, dtype), "device_map": {"": device}}
    try:
        with quiet_transformers():
            model, info = kind.from_pretrained(
                None if stored else folder, config=config, output_loading_info=True, **keywords
            )
    except Exception as error:  # readers of damaged files raise errors of many kinds
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"its weights cannot be read ({first_line(error)})", where=folder, mend="download or save it again"
        ) from error
    _refuse_other_weights(info, folder, further_heads=kind in ENCODERS.values())
    model.name_or_path = folder  # of weights that were handed over there is none
    if quantization in ("4bit", "4bit-double") and device == "cpu":
        _refuse_odd_sizes(model, folder)
    return model


def _refuse_other_weights(info: dict[str, Any], folder: str, *, further_heads: bool) -> None:
    """Raises UserError where a checkpoint's weights are not the model's, by what transformers says of loading them.
    Encoders come with `further_heads`.
    """
    for what, keys in (("missing", info["missing_keys"]), ("of another shape", info.get("mismatched_keys") or ())):
        if keys:
            raise UserError(
                f"weights are {what}: {', '.join(sorted(map(str, keys))[:5])}",
                where=folder,
                mend="download or save it again, or correct the sizes in its config.json",
            )
    if info["unexpected_keys"] and not further_heads:
        raise UserError(
            f"holds weights this model type has no place for: {', '.join(sorted(info['unexpected_keys'])[:5])}",
            where=folder,
            mend="check model_type and the sizes in its config.json",
        )


UNSAID = tuple(model.config_class.model_type for model in A2D)
"""The model types that have both models of full attention and block models, and whose config does not say which."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
"""The files that are read before the tokenizer that a GGUF file holds."""

SIZES = (
    ("hidden_size", "d_model", "dim", "n_embd"),
    ("num_hidden_layers", "n_layers", "n_layer"),
    ("num_attention_heads", "n_heads", "n_head"),
)
"""The sizes that a config must have, each under one of these names: transformers would take a published model's size
instead."""


def load_config(folder: str) -> Any:
    """Return a checkpoint's config. Raises UserError where there is none or its model type is unknown."""
    stored = gguf_file(folder)
    if stored is not None:
        if not (stored.parent / CONFIG_NAME).is_file():
            return gguf_config(stored)
        folder = str(stored.parent)
    try:
        values, _ = PreTrainedConfig.get_config_dict(folder)
        if unread := UNREAD.get(str(values.get("model_type"))):
            raise UserError(unread, where=folder, mend="docs/models.md lists the models that are read")
        sizes = values.get("text_config") or values  # of a model that reads images too, the sizes of its text part
        if values and (lacking := [names[0] for names in SIZES if not any(sizes.get(name) for name in names)]):
            raise UserError(
                f"config.json lacks {', '.join(lacking)}", where=folder, mend="take the whole config of the checkpoint"
            )
        _refuse_own_code(values, folder)
        return own_config(values) or AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # strict configs raise errors of many kinds
        raise UserError(
            f"not a model Remask can load ({first_line(error)})",
            where=folder,
            mend="give a folder in the layout of the hub (config.json, tokenizer, safetensors)",
        ) from error


def _refuse_own_code(values: dict[str, Any], folder: str) -> None:
    """Raises UserError for a config of a causal model's type that names other code than that model's: so do diffusion
    models with attention of their own (Stable-DiffCoder is a `llama`, Efficient-DLM a `qwen3`).
    """
    if values.get("model_type") not in convertible_types() or values.get("is_causal") is False:
        return
    named = [name for name in values.get("architectures") or [] if not hasattr(transformers, str(name))]
    auto = values.get("auto_map")
    named += sorted(map(str, auto.values())) if isinstance(auto, dict) else []
    if named:
        raise UserError(
            f"it calls itself a {values['model_type']} and names code of its own for that ({', '.join(named)}): it may "
            "be a diffusion model with attention of its own, and Remask runs no code of a checkpoint's",
            where=folder,
            mend="of a plain causal model take architectures and auto_map out of its config.json",
        )


def torch_dtype(name: str) -> Any:
    """Return torch's dtype of that name, or `auto` for the checkpoint's own. Raises UserError for any other text."""
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if name != "auto" and not isinstance(dtype, torch.dtype):
        raise UserError(f"unknown dtype {name!r}", mend=f"the choices are {', '.join(values(Dtype))}")
    return "auto" if name == "auto" else dtype


def _quantized(quantization: Quantization, dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    refuse_unknown("quantization", quantization, Quantization)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError(
            f"{quantization} loading needs bitsandbytes", mend="pip install 'remask[quantization]'"
        ) from None
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype == "auto" else torch_dtype(dtype),
        bnb_4bit_use_double_quant=quantization == "4bit-double",
    )


def _refuse_odd_sizes(model: Any, folder: str) -> None:
    """bitsandbytes' 4-bit kernels for CPUs with AVX-512's bfloat16 take outputs by 32, and inputs by whole blocks."""
    for name, layer in model.named_modules():
        if not getattr(layer, "support_avx512bf16_for_cpu", False):
            continue
        block = layer.weight.quant_state.blocksize
        for what, size, by in (("outputs", layer.out_features, 32), ("inputs", layer.in_features, block)):
            if size % by:
                raise UserError(
                    f"4-bit layers on this CPU need {what} in multiples of {by}, and {name} has {size}",
                    where=folder,
                    mend="use --quantization 8bit, or none",
                )


class quiet_transformers:  # noqa: N801
    """A context in which transformers shows no progress bars."""

    def __enter__(self) -> None:
        self.was = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.was:
            transformers_logging.enable_progress_bar()


def load_tokenizer(folder: str, model_type: str | None = None) -> PreTrainedTokenizerBase:
    """Return a checkpoint's tokenizer, by a class of transformers (its `model_type` is read where it is not given).
    Raises UserError where there is none.
    """
    if (stored := gguf_file(folder)) is not None:
        folder = str(stored.parent)
        if not any((stored.parent / name).is_file() for name in TOKENIZER_FILES):
            return gguf_tokenizer(stored)
    try:
        declared = get_tokenizer_config(folder)
        name = declared.get("tokenizer_class")
        known = name is None or tokenizer_class_from_name(name) is not None
        native = NATIVE_TOKENIZERS.get(model_type or load_config(folder).model_type)
        if native is not None and ("auto_map" in declared or not known):
            return native.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises no kind of its own
        raise UserError(
            f"no tokenizer that can be read ({first_line(error)})",
            where=folder,
            mend="put the tokenizer of the model beside its config.json",
        ) from error


def copy_code(source: str, target: str | Path) -> None:
    """Copy the Python files that a local checkpoint's config names, for other tools to load the copy with. Remask never
    runs them.
    """
    for file in sorted(Path(source).glob("*.py")) if Path(source).is_dir() else ():
        shutil.copy(file, target)


def pick_device(device: str) -> str:
    """Return the device that a name says; `auto` is CUDA where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", mend="use --device cpu, or install a CUDA build of torch")
    return device
