"""GGUF files: written here by the format's own writer, as llama.cpp's converter lays tensors out, and read back."""

from __future__ import annotations

import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from families import FAMILIES, IDS, SIZES, seeded, special
from torch import Tensor

import remask
from remask.cli import main
from remask.errors import UserError
from remask.evaluation.journal import weights_stamp
from remask.models.gguf import NAMES, PERMUTED, gguf_file, read_gguf
from remask.models.gguf_tokenizer import splits
from remask.models.load import load_config, load_model, load_tokenizer
from remask.models.shapes import shape_config
from remask.training.folder import digest_of_base

gguf = pytest.importorskip("gguf", reason="needs gguf: pip install 'remask[gguf]'")
OFFICIAL = {here: there for there, here in NAMES.items()}


def stored_name(name: str) -> str:
    """llama.cpp's name of a weight."""
    name, kind = name.rsplit(".", 1)
    if found := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
        return f"blk.{found[1]}.{OFFICIAL[found[2]]}.{kind}"
    return f"{OFFICIAL[name]}.{kind}"


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys: row j of a head's first half goes to 2j, of its second half
    to 2j + 1.
    """
    out, width = np.empty_like(rows), len(rows) // heads
    for head in range(heads):
        for j in range(width // 2):
            out[head * width + 2 * j] = rows[head * width + j]
            out[head * width + 2 * j + 1] = rows[head * width + width // 2 + j]
    return out


def write(
    path: Path, model: Any, architecture: str, *, stored_as: str = "F32", extra: Any = None, split: int = 0
) -> Path:
    """The model as a GGUF file. `extra` may write further keys; `split` tensors go into each part."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.eos_token_id is not None:
        writer.add_eos_token_id(config.eos_token_id)
    if getattr(config, "mask_token_id", None) is not None:
        writer.add_mask_token_id(config.mask_token_id)
    if architecture in ("llada", "dream"):
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(architecture == "dream")
    if extra is not None:
        extra(writer)
    kind = getattr(gguf.GGMLQuantizationType, stored_as)
    for name, weight in model.named_parameters():
        rows = weight.detach().float().numpy()
        if architecture in PERMUTED and ("q_proj" in name or "k_proj" in name):
            rows = in_pairs(rows, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if stored_as == "F32" or rows.ndim < 2 or rows.shape[-1] % 32:  # of a block's length
            writer.add_tensor(stored_name(name), rows)
        elif stored_as == "F16":
            writer.add_tensor(stored_name(name), rows.astype(np.float16))
        else:
            writer.add_tensor(stored_name(name), gguf.quantize(rows, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def causal(architecture: str, tokenizer: Any) -> Any:
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    config, model = kinds[architecture]
    values = {**special(tokenizer), **SIZES, "intermediate_size": 48, "rope_theta": 5e4, "head_dim": 8}
    if architecture == "qwen2":
        del values["head_dim"]
    del values["mask_token_id"]
    return seeded(lambda: model(config(**values)))


@pytest.fixture
def stored(tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """A LLaDA's or Dream's GGUF file with its tokenizer beside it."""

    def save(family: str, **keywords: Any) -> Path:
        folder = tmp_path / family
        tokenizer.save_pretrained(folder)
        return write(folder / f"{family}.gguf", FAMILIES[family](tokenizer), family, **keywords)

    return save


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_file_is_the_model_that_it_was_made_from(family: str, stored: Callable[..., Path], tokenizer: Any) -> None:
    path = stored(family)
    for place in (path, path.parent):
        model, read = remask.load(place)
        assert torch.equal(logits(model), logits(FAMILIES[family](tokenizer)))
        assert model.config.mask_token_id == tokenizer.mask_token_id
        assert getattr(model.config, "shift", False) == (family == "dream")
        assert read.get_vocab() == tokenizer.get_vocab()
    assert remask.generate(model, read, ["ab"], max_new_tokens=4).texts


@pytest.mark.parametrize("stored_as", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_weights_are_those_that_the_format_stores(stored_as: str, stored: Callable[..., Path], tokenizer: Any) -> None:
    """Dequantised by the format's own functions; another precision is rounded to afterwards."""
    path = stored("llada", stored_as=stored_as)
    kind = getattr(gguf.GGMLQuantizationType, stored_as)
    given = dict(FAMILIES["llada"](tokenizer).named_parameters())
    model, _ = remask.load(path)
    for name, weight in model.named_parameters():
        rows = given[name].detach().numpy()
        if (
            rows.ndim > 1 and not rows.shape[-1] % 32
        ):  # blocks lie along the rows, so that their order makes no difference
            rows = gguf.dequantize(gguf.quantize(rows, kind), kind)
        assert torch.equal(weight, torch.from_numpy(rows)), name
    own = {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored_as, torch.bfloat16)
    assert remask.load(path, dtype="auto")[0].dtype == own
    assert remask.load(path, dtype="float16")[0].dtype == torch.float16


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_causal_models_are_read_as_transformers_reads_them(
    architecture: str, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = causal(architecture, tokenizer)
    tokenizer.save_pretrained(tmp_path / "base")
    path = write(tmp_path / "base" / "m.gguf", model, architecture)
    theirs = type(model).from_pretrained(path.parent, gguf_file=path.name, config=model.config)
    assert torch.allclose(logits(theirs), logits(model), atol=1e-6)
    with pytest.raises(UserError, match="remask convert --to-diffusion"):
        remask.load(path)
    assert main(["convert", "--to-diffusion", str(path), "--output", str(tmp_path / "out")]) == 0
    made, _ = remask.load(tmp_path / "out")
    assert made.config.is_causal is False
    for name, weight in model.named_parameters():
        assert torch.equal(dict(made.named_parameters())[name][: len(weight)], weight), name


def test_a_file_may_say_that_its_llama_is_a_diffusion_model(tokenizer: Any, tmp_path: Path) -> None:
    def extra(writer: Any) -> None:
        writer.add_causal_attention(False)
        writer.add_diffusion_shift_logits(True)
        writer.add_mask_token_id(tokenizer.mask_token_id)

    tokenizer.save_pretrained(tmp_path)
    path = write(tmp_path / "m.gguf", causal("llama", tokenizer), "llama", extra=extra)
    model, _ = remask.load(path)
    assert (model.config.is_causal, model.config.shift) == (False, True)


def test_a_split_model_is_one(stored: Callable[..., Path], tokenizer: Any) -> None:
    path = stored("llada", split=7)
    parts = sorted(path.parent.glob("*.gguf"))
    assert len(parts) > 2
    model, _ = remask.load(path.parent)
    assert torch.equal(logits(model), logits(FAMILIES["llada"](tokenizer)))
    assert gguf_file(path.parent) == parts[0]
    parts[1].unlink()
    with pytest.raises(UserError, match=f"1 of its {len(parts)} parts are not there: {parts[1].name}"):
        remask.load(path.parent)


def test_what_lies_beside_a_file_is_read_first(stored: Callable[..., Path], tokenizer: Any) -> None:
    """The config says more than the file's metadata can, and may say what of them is not read."""
    path = stored("llada", extra=lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR))
    with pytest.raises(UserError, match=r"llada.rope.scaling.type says what is not read here; put the config.json"):
        remask.load(path)
    config = FAMILIES["llada"](tokenizer).config
    config.fill = "multiple:4"
    config.save_pretrained(path.parent)
    assert remask.load(path)[0].config.fill == "multiple:4"
    FAMILIES["dream"](tokenizer).config.save_pretrained(path.parent)
    with pytest.raises(UserError, match=r"holds a llada, and the config.json beside it is of a Dream"):
        remask.load(path)


def test_scaled_rotations_are_not_guessed(tokenizer: Any, tmp_path: Path) -> None:
    def extra(writer: Any) -> None:
        writer.add_tensor("rope_freqs.weight", np.ones(4, dtype=np.float32))

    path = write(tmp_path / "m.gguf", causal("llama", tokenizer), "llama", extra=extra)
    with pytest.raises(UserError, match=r"rope_freqs.weight says what is not read here"):
        load_config(str(path))


def test_a_tokenizer_in_the_file_is_read_where_it_says_how_it_splits(tokenizer: Any, tmp_path: Path) -> None:
    letters = [f"{letter}" for letter in "abcdefghijklmnop"]
    tokens = [*letters, "ab", "abc", "<|mask|>", "<|end|>"]
    kinds = [1] * (len(tokens) - 2) + [3, 3]

    def extra(splits: str) -> Callable[[Any], None]:
        def add(writer: Any) -> None:
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(splits)
            writer.add_token_list(tokens)
            writer.add_token_types(kinds)
            writer.add_token_merges(["a b", "ab c"])

        return add

    class Named:
        mask_token_id, eos_token_id, pad_token_id = len(tokens) - 2, len(tokens) - 1, len(tokens) - 1

        def __len__(self) -> int:
            return len(tokens)

    path = write(tmp_path / "known.gguf", FAMILIES["dream"](Named()), "dream", extra=extra("qwen2"))
    _, read = remask.load(path)
    assert read("abcb<|mask|>", add_special_tokens=False)["input_ids"] == [17, 1, 18]
    assert (read.mask_token, read.eos_token) == ("<|mask|>", "<|end|>")
    assert splits()["smollm"].pre_tokenize_str("in 1984's") == [
        ("in", (0, 2)),
        ("Ġ", (2, 3)),
        *((digit, (place, place + 1)) for place, digit in enumerate("1984", 3)),
        ("'s", (7, 9)),
    ]
    path = write(tmp_path / "smol.gguf", FAMILIES["dream"](Named()), "dream", extra=extra("smollm"))
    assert remask.load(path)[1]("abcb<|mask|>", add_special_tokens=False)["input_ids"] == [17, 1, 18]
    path = write(tmp_path / "unknown.gguf", FAMILIES["dream"](Named()), "dream", extra=extra("llada-next"))
    with pytest.raises(UserError, match=r"pre 'llada-next'\); put the tokenizer.json and tokenizer_config.json"):
        remask.load(path)


def test_without_the_package_the_way_to_it_is_said(
    stored: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stored("llada")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for command in (["generate", "--model", str(path), "x"], ["plan", "--model", str(path)]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said.endswith("pip install 'remask[gguf]'\n")
        assert len(said.splitlines()) == 1


def test_a_damaged_file_is_one_clear_error(stored: Callable[..., Path]) -> None:
    """Torn anywhere, with other bytes anywhere in its head, or none of it: never another error, and no weights that
    are not there.
    """
    path, chance = stored("llada"), random.Random(0)
    whole = path.read_bytes()
    head = min(tensor.data_offset for tensor in read_gguf(path).tensors)
    torn = [0, 3, 4, 20, *chance.sample(range(head), 12), head, head + 1, len(whole) - 1]
    contents = [whole[:n] for n in torn] + [
        b"not a model at all",
        chance.randbytes(5000),
        b"GGUF" + chance.randbytes(99),
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a whole GGUF file|lack|missing"):
            remask.load(path)
    for _ in range(40):
        changed = bytearray(whole)
        changed[chance.randrange(head)] = chance.randrange(256)
        path.write_bytes(changed)
        try:
            remask.load(path)
        except UserError as error:
            assert "llada" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("llada", "gpt-oss"), r"'gpt-oss', which is not read here; these are: llada, dream"),
        (("llada.block_count", "llada.block_xount"), "llada.block_xount says what is not read here"),
        (("blk.0.attn_v.weight", "blk.0.attn_w.weight"), "has no place for: blk.0.attn_w.weight"),
        (("blk.1.attn_v.weight", "blk.7.attn_v.weight"), r"weights are missing: model.layers.1.self_attn.v_proj"),
    ],
)
def test_what_is_not_read_is_named(
    change: tuple[str, str], message: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    tokenizer.save_pretrained(tmp_path)
    before, after = change
    if before == "llada":
        gguf.GGUFWriter(path, after)
        write(path, FAMILIES["llada"](tokenizer), after)
    else:
        write(path, FAMILIES["llada"](tokenizer), "llada")
        content = path.read_bytes()
        assert before.encode() in content
        path.write_bytes(content.replace(before.encode(), after.encode()))
    with pytest.raises(UserError, match=message):
        remask.load(path)


def test_one_of_several_files_is_to_be_named(stored: Callable[..., Path], tokenizer: Any) -> None:
    path = stored("llada")
    shutil.copy(path, path.with_name("other.gguf"))
    with pytest.raises(
        UserError, match=r"holds several GGUF models: llada.gguf, other.gguf; name one of them: --model"
    ):
        remask.load(path.parent)
    remask.load(path)
    FAMILIES["llada"](tokenizer).save_pretrained(path.parent)
    assert gguf_file(path.parent) is None


def test_runs_begin_from_a_file(
    stored: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters name it as their base and load on it again; a full run is saved as other models are."""
    path = stored("llada")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "bc"}\n' * 4)
    run = ["sft", "--model", str(path), "--data", str(rows), "--max-steps", "2", "--trainer.report-to", "none"]
    assert main([*run, "--output-dir", str(tmp_path / "lora"), "--lora.rank", "2"]) == 0
    assert main([*run, "--output-dir", str(tmp_path / "full")]) == 0
    assert main(["convert", "--merge", str(tmp_path / "lora"), "--output", str(tmp_path / "merged")]) == 0
    for name in ("lora", "full", "merged"):
        remask.load(tmp_path / name)
    assert (tmp_path / "full" / "model.safetensors").exists()
    assert main([*run, "--output-dir", str(path.parent)]) == 2
    assert "is the model to train from" in capsys.readouterr().err
    assert shape_config(str(path)).num_hidden_layers == load_model(str(path)).config.num_hidden_layers


def test_another_file_is_another_model(stored: Callable[..., Path], tokenizer: Any) -> None:
    """To a run that goes on, and to an evaluation that does."""
    path = stored("llada")
    before = digest_of_base(str(path)), weights_stamp(str(path)), weights_stamp(str(path.parent))
    assert digest_of_base(str(path.parent)) == before[0]
    write(path, FAMILIES["llada"](tokenizer, rms_norm_eps=1e-6), "llada")
    after = digest_of_base(str(path)), weights_stamp(str(path)), weights_stamp(str(path.parent))
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert load_tokenizer(str(path)).get_vocab() == tokenizer.get_vocab()
