"""GGUF, the file format of llama.cpp, read into this package's own layouts: what it holds is dequantised.

llama.cpp names a tensor by its place (`blk.0.attn_q.weight`) whatever the model; the layouts here are Llama's and
Qwen's, so that one table of names does for all. Where llama.cpp rotates queries and keys in interleaved pairs
(`PERMUTED`), its converter has reordered their rows, which is undone here. What the file's metadata say of the model is
read under the names of llama.cpp's specification of the format; what is said there and not read is an error, since it
may change what is computed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from remask.errors import UserError, first_line
from remask.faults import is_out_of_memory
from remask.models.dream import DreamConfig
from remask.models.llada import LLaDAConfig

MAGIC = b"GGUF"
ARCHITECTURES: dict[str, Any] = {
    "llada": LLaDAConfig,
    "dream": DreamConfig,
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
"""The config class of each of llama.cpp's names. The last three are causal unless the file says otherwise."""
PERMUTED = ("llada", "llama")
ALWAYS_DIFFUSION = ("llada", "dream")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PLACE = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "feed_forward_length": "intermediate_size",
}
"""The keys that a file must have, and what each is called in a config."""
SETTINGS = {
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
READ = {
    *SIZES,
    *SETTINGS,
    "attention.causal",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "vocab_size",
    "pooling_type",
}
"""The keys under the architecture's name that change nothing, or change something that `gguf_config` reads."""
SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def gguf_file(place: str | Path) -> Path | None:
    """Return the GGUF file that a path names: the file itself, or the only one (of a split model the first) in a folder
    that has no other weights. Raises UserError where a folder holds several models.
    """
    path = Path(place)
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(len(MAGIC)) == MAGIC
        return path if begins or path.suffix.lower() == ".gguf" else None
    if not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin")):
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf" and file.is_file())
    models = [file for file in found if (part := SHARD.fullmatch(file.name)) is None or int(part[2]) == 1]
    if len(models) > 1:
        raise UserError(
            f"holds several GGUF models: {', '.join(file.name for file in models[:6])}",
            where=str(path),
            mend=f"name one of them: --model {models[0]}",
        )
    return next(iter(models or found), None)


@dataclass(frozen=True)
class Stored:
    """A file's metadata by key, and its tensors as the `gguf` package gives them, over all parts of a split model."""

    path: Path
    metadata: dict[str, Any]
    tensors: tuple[Any, ...]

    @property
    def architecture(self) -> str:
        """Return llama.cpp's name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    def own(self, key: str) -> Any:
        """Return the value of a key under the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def names(self) -> set[str]:
        """Return the names of all tensors."""
        return {tensor.name for tensor in self.tensors}


def read_gguf(path: Path) -> Stored:
    """Read a GGUF file. Raises UserError where the file is damaged, one of its parts is not there, or the package
    `gguf` is missing.
    """
    stats = [part.stat() for part in gguf_parts(path)]
    return _read(path, tuple((one.st_size, one.st_mtime_ns) for one in stats))


@lru_cache(maxsize=1)
def _read(path: Path, as_of: tuple[Any, ...]) -> Stored:
    """Config, weights and tokenizer are asked for one after the other, and a file's names take seconds to read."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(
            "a GGUF file needs the package gguf", where=str(path), mend="pip install 'remask[gguf]'"
        ) from None
    metadata: dict[str, Any] = {}
    tensors: list[Any] = []
    for part in gguf_parts(path):
        try:
            reader = GGUFReader(part)
            # The vocabulary, which is long, is the tokenizer's to read.
            said = {key: field.contents() for key, field in reader.fields.items() if len(field.data) < 1000}
        except Exception as error:  # of a damaged file: whatever its bytes happen to mean
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"is not a whole GGUF file ({first_line(error)})", where=str(part), mend="download or convert it again"
            ) from error
        metadata = {**said, **metadata}
        tensors += reader.tensors
    if metadata.get("general.architecture") not in ARCHITECTURES:
        raise UserError(
            f"a GGUF file of the architecture {metadata.get('general.architecture')!r}, which is not read here",
            where=str(path),
            mend=f"these are: {', '.join(ARCHITECTURES)}; of another model give the folder with its safetensors",
        )
    return Stored(path, metadata, tuple(tensors))


def gguf_parts(path: Path) -> list[Path]:
    """Return all files of a split model, or the one. Raises UserError naming those that are not there."""
    named = SHARD.fullmatch(path.name)
    if named is None:
        return [path]
    parts = [path.with_name(f"{named[1]}-{n:05}-of-{named[3]}{path.suffix}") for n in range(1, int(named[3]) + 1)]
    if gone := [part.name for part in parts if not part.is_file()]:
        raise UserError(
            f"{len(gone)} of its {len(parts)} parts are not there: {', '.join(gone[:3])}",
            where=str(path),
            mend="put all parts into one folder",
        )
    return parts


def gguf_config(path: Path) -> Any:
    """Return the model's config, from the metadata. Raises UserError where they say too little, or something that this
    function does not read.
    """
    stored = read_gguf(path)
    where = str(path)
    _refuse_unread(stored)
    said = {name: stored.own(key) for key, name in (SIZES | SETTINGS).items() if stored.own(key) is not None}
    if lacking := [key for key, name in SIZES.items() if name not in said]:
        raise UserError(f"its metadata lack {', '.join(lacking)}", where=where, mend=WHOLE)
    if odd := [key for key, name in (SIZES | SETTINGS).items() if isinstance(said.get(name), list | str | bool)]:
        raise UserError(f"{', '.join(odd)} is not one number for all layers", where=where, mend=WHOLE)
    kind = ARCHITECTURES[stored.architecture]
    values = {**said, **_head(stored, said), **_of_tensors(stored), **_as_diffusion(stored), **_tokens(stored)}
    names: dict[str, str] = kind.attribute_map
    try:
        return kind.from_dict({names.get(key, key): value for key, value in values.items()})
    except UserError:
        raise
    except Exception as error:  # strict configs raise errors of many kinds
        raise UserError(
            f"its metadata make no {kind.model_type} ({first_line(error)})", where=where, mend=WHOLE
        ) from error


WHOLE = "put the config.json of the model that it was made from beside it"


def _refuse_unread(stored: Stored) -> None:
    start = f"{stored.architecture}."
    unread = sorted(key for key in stored.metadata if key.startswith(start) and key.removeprefix(start) not in READ)
    unread += sorted(stored.names() & {"rope_freqs.weight"})
    if unread:
        raise UserError(
            f"its {', '.join(unread[:4])} {'says' if len(unread) == 1 else 'say'} what is not read here",
            where=str(stored.path),
            mend=WHOLE,
        )


def _head(stored: Stored, said: dict[str, Any]) -> dict[str, Any]:
    """The width of a head, where it is another than the model's width by its heads."""
    widths = {stored.own(key) for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    widths -= {None}
    usual = said["hidden_size"] // max(1, said["num_attention_heads"])
    if len(widths) > 1 or (widths != {usual} and widths and stored.architecture in ("dream", "qwen2")):
        raise UserError(f"its heads are {sorted(widths)} wide", where=str(stored.path), mend=WHOLE)
    return {"head_dim": widths.pop()} if widths and stored.architecture not in ("dream", "qwen2") else {}


def _of_tensors(stored: Stored) -> dict[str, Any]:
    """What only the tensors say."""
    embedding = next((tensor for tensor in stored.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        raise UserError("weights are missing: token_embd.weight", where=str(stored.path), mend=WHOLE)
    values = {"vocab_size": int(embedding.shape[-1]), "tie_word_embeddings": "output.weight" not in stored.names()}
    biased = "blk.0.attn_q.bias" in stored.names()
    return values | ({"attention_bias": biased} if stored.architecture in ("llama", "qwen3") else {})


def _as_diffusion(stored: Stored) -> dict[str, Any]:
    """Whether attention is causal, and whether outputs are shifted."""
    shift = stored.metadata.get("diffusion.shift_logits")
    if stored.architecture in ALWAYS_DIFFUSION:
        values = {"is_causal": False}
        if stored.architecture == "llada" and shift:
            raise UserError("a LLaDA model whose outputs are shifted", where=str(stored.path), mend=WHOLE)
        return values if shift is None or stored.architecture == "llada" else values | {"shift": bool(shift)}
    return {"is_causal": False, "shift": bool(shift)} if stored.own("attention.causal") is False else {}


def _tokens(stored: Stored) -> dict[str, Any]:
    named = {"mask_token_id": "mask", "eos_token_id": "eos", "bos_token_id": "bos", "pad_token_id": "padding"}
    said = {name: stored.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    return {name: token for name, token in said.items() if token is not None}


def gguf_weights(path: Path, config: Any, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the weights under the layout's names, dequantised, in `dtype` (None: `own_dtype`).

    Raises UserError for a tensor that has no place in the layout or is stored in a way that is not read, and for a
    config (one that lies beside the file) of another layout.
    """
    stored = read_gguf(path)
    if not isinstance(config, ARCHITECTURES[stored.architecture]):
        raise UserError(
            f"holds a {stored.architecture}, and the config.json beside it is of a {config.model_type}",
            where=str(path),
            mend="put the file into a folder of its own, or beside the config.json of its own model",
        )
    return dict(_weights(stored, dtype or own_dtype(stored)))


def own_dtype(stored: Stored) -> torch.dtype:
    """Return the least precise dtype that a file's matrices are stored in; bfloat16 where some are quantised."""
    kinds = {tensor.tensor_type.name for tensor in stored.tensors if len(tensor.shape) > 1}
    if kinds == {"F32"}:
        return torch.float32
    return torch.float16 if kinds <= {"F32", "F16"} else torch.bfloat16


def _weights(stored: Stored, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    from gguf import dequantize

    heads = stored.own("attention.head_count")
    groups = stored.own("attention.head_count_kv") or heads
    for tensor in stored.tensors:
        if tensor.name == "rope_freqs.weight":  # said by the config
            continue
        place = PLACE.fullmatch(tensor.name)
        if place is None or place[2] not in NAMES:
            raise UserError(
                f"holds a tensor that a {stored.architecture} has no place for: {tensor.name}",
                where=str(stored.path),
                mend=WHOLE,
            )
        try:
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(
                f"{tensor.name} is stored as {tensor.tensor_type.name}, which is not read here ({first_line(error)})",
                where=str(stored.path),
                mend="give a file of another quantisation, such as Q8_0 or BF16",
            ) from error
        if stored.architecture in PERMUTED and place[2] in ("attn_q", "attn_k"):
            values = in_halves(values, heads if place[2] == "attn_q" else groups, stored, tensor.name)
        block = f"model.layers.{place[1]}." if place[1] else ""
        yield f"{block}{NAMES[place[2]]}.{place[3]}", values.to(dtype)


def in_halves(values: Tensor, heads: int, stored: Stored, name: str) -> Tensor:
    """Reorder rows of queries or keys [heads·d, …] from interleaved pairs (r0 i0 r1 i1 …) to halves (r0 r1 …
    i0 i1 …).
    """
    if not heads or len(values) % (2 * heads):
        raise UserError(f"{name} has {len(values)} rows, for {heads} heads", where=str(stored.path), mend=WHOLE)
    return values.unflatten(0, (heads, len(values) // heads // 2, 2)).transpose(1, 2).flatten(0, 2)
