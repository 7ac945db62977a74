"""DiffusionGemma: transformers' own logits, what its checkpoint says, what is saved, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import DiffusionGemmaForBlockDiffusion as Published

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import attention_of
from remask.errors import UserError
from remask.models.diffusion_gemma import canvas_columns
from remask.models.diffusion_gemma_config import DiffusionGemmaConfig
from remask.models.facts import facts
from remask.models.load import load_config, load_model
from remask.models.registry import known_types
from remask.sampling.infill import infill


@pytest.fixture
def folder(shared: Path) -> Path:
    return shared / "golden" / "diffusion_gemma_tiny"


@pytest.fixture
def model(folder: Path) -> Any:
    return load_model(str(folder)).eval()


NEAR = 1e-4
"""The largest difference of logits from the golden ones, which were computed on another processor."""


def both(logits: Any, part: slice) -> tuple[torch.Tensor, ...]:
    return (logits.clone(),)


# ---- logits ------------------------------------------------------------------------------------------------------


@pytest.mark.shared
@torch.no_grad()
def test_logits_are_transformers_own(model: Any, folder: Path) -> None:
    """Encoder, first step and self-conditioned step: equal but for the last bits, which depend on the processor."""
    expected = load_file(folder / "expected_logits.safetensors")
    canvas, prefix = expected["canvas_ids"], model.empty_prefix()
    model(clean=expected["prompt_ids"], prefix=prefix, keep=True)
    first = model(input_ids=canvas, prefix=prefix).logits
    assert (first - expected["logits_first_step"]).abs().max() <= NEAR
    signal = model.embeddings_of(first)
    found = model(input_ids=canvas, prefix=prefix, signal=signal).logits
    assert (found - expected["logits_self_conditioned"]).abs().max() <= NEAR
    alone = torch.cat([signal[:1], torch.zeros_like(signal[1:])])
    found = model(input_ids=canvas, prefix=prefix, signal=alone).logits
    assert (found - expected["logits_row0_self_conditioned"]).abs().max() <= NEAR


@pytest.mark.shared
@torch.no_grad()
def test_the_encoder_gives_transformers_own_logits(model: Any, folder: Path) -> None:
    expected = load_file(folder / "expected_logits.safetensors")
    ids = expected["prompt_ids"]
    hidden = model.read(ids, torch.ones_like(ids, dtype=torch.bool), model.empty_prefix())
    assert (model.capped()(hidden) - expected["encoder_logits"]).abs().max() <= NEAR


@pytest.mark.shared
@torch.no_grad()
@pytest.mark.parametrize("parts", [(4, 9), (1, 11, 1), (13,)])
def test_a_text_may_be_read_in_parts(model: Any, folder: Path, parts: tuple[int, ...]) -> None:
    """The cache of what was read is exact, the cut of sliding layers included (their window is 8)."""
    expected = load_file(folder / "expected_logits.safetensors")
    prefix = model.empty_prefix()
    for ids in expected["prompt_ids"].split(list(parts), dim=1):
        model(clean=ids, prefix=prefix, keep=True)
    found = model(input_ids=expected["canvas_ids"], prefix=prefix).logits
    assert (found - expected["logits_first_step"]).abs().max() <= 2e-5
    assert [layer.keys.shape[2] for layer in prefix.layers] == [7, 7, 13]


@pytest.mark.shared
@torch.no_grad()
def test_padding_moves_nothing(model: Any, folder: Path) -> None:
    expected = load_file(folder / "expected_logits.safetensors")
    ids, canvas, prefix = expected["prompt_ids"], expected["canvas_ids"], model.empty_prefix()
    attended = torch.ones(2, 18, dtype=torch.long)
    attended[:, :5] = 0
    padded = torch.cat([torch.full((2, 5), 77), ids], dim=1)
    model(clean=padded, attention_mask=attended, prefix=prefix, keep=True)
    found = model(input_ids=canvas, prefix=prefix).logits
    assert (found - expected["logits_first_step"]).abs().max() <= 2e-5


@pytest.mark.shared
@torch.no_grad()
def test_a_canvas_of_a_longer_row_sees_what_stands_before_it(model: Any, folder: Path) -> None:
    """In training the whole row is read at once, and each row's canvas lies somewhere in it."""
    case = json.loads((folder / "block_training.json").read_text())["cases"][1]
    clean, noised = (torch.tensor(case[name])[None] for name in ("input_ids", "noisy_ids"))
    start = case["prompt_length"] + 8 * case["scored_canvas"]
    answer, positions = torch.zeros_like(clean, dtype=torch.bool), torch.zeros_like(clean, dtype=torch.bool)
    answer[:, case["prompt_length"] :] = True
    positions[:, start + 1 : start + 7] = True
    prefix = model.empty_prefix()
    model(clean=clean[:, :start], prefix=prefix, keep=True)
    alone = model(input_ids=noised[:, start : start + 8], prefix=prefix).logits[0, 1:7]
    padded = [torch.cat([each, torch.zeros_like(each[:, :3])], dim=1) for each in (noised, clean, answer, positions)]
    attended = torch.cat([torch.ones_like(clean), torch.zeros_like(clean[:, :3])], dim=1)
    said = model(
        input_ids=padded[0], clean=padded[1], answer=padded[2], positions=padded[3], attention_mask=attended, look=both
    )
    assert (said.seen[0] - alone).abs().max() <= 2e-5


def test_canvases_are_counted_from_the_answer() -> None:
    answer = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    positions = torch.zeros_like(answer)
    positions[0, 7] = True
    start, columns = canvas_columns(answer, positions, 4)
    assert start.tolist() == [[6], [4]]
    assert columns.tolist() == [[6, 7, 8, 9], [4, 5, 6, 7]]
    positions[0, 3] = True
    with pytest.raises(UserError, match="positions in more than one canvas of 4 tokens"):
        canvas_columns(answer, positions, 4)


# ---- the checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.shared
def test_facts(model: Any, folder: Path) -> None:
    known = facts(model)
    assert (known.corruption, known.mask_token_id, known.eos_ids, known.stop_ids) == ("uniform", None, (1,), (1,))
    assert (known.attention, known.fill, known.shift) == ("block:8:answer", "multiple:8", False)
    assert attention_of(model) == BlockCausal(8, "answer")
    assert (model.config.vocab_size, model.config.hidden_size, model.config.max_position_embeddings) == (160, 48, 512)
    assert "diffusion_gemma" in known_types()


@pytest.mark.shared
def test_what_ends_a_text_is_read_from_all_places(folder: Path, tmp_path: Path) -> None:
    """The config's own list before that of its text part; and transformers' generation config adds to it."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    change(tmp_path, eos_token_id=[1, 9])
    assert facts(load_model(str(tmp_path))).eos_ids == (1, 9)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    model = load_model(str(tmp_path))
    assert facts(model).stop_ids == (1, 9, 7)
    model.save_pretrained(tmp_path / "saved")
    assert facts(load_model(str(tmp_path / "saved"))).stop_ids == (1, 9, 7)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.shared
def test_what_is_saved_has_the_official_names_and_equal_tensors(model: Any, folder: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    official, written = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    assert lost(official, written) == []
    expected = load_file(folder / "expected_logits.safetensors")
    with torch.no_grad():
        again = Published.from_pretrained(tmp_path).eval()
        found = again(input_ids=expected["prompt_ids"], decoder_input_ids=expected["canvas_ids"]).logits
        prefix = model.empty_prefix()
        model(clean=expected["prompt_ids"], prefix=prefix, keep=True)
        ours = model(input_ids=expected["canvas_ids"], prefix=prefix).logits
    assert torch.equal(found, ours)  # transformers' own class, to the last bit on one processor
    assert (found - expected["logits_first_step"]).abs().max() <= NEAR


@pytest.mark.shared
def test_a_config_that_lacks_sizes_or_is_computed_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    whole = json.loads((folder / "config.json").read_text())["text_config"]
    for without, said in (("hidden_size", "config.json lacks hidden_size"), ("num_experts", "lacks num_experts in te")):
        change(tmp_path, text_config={key: value for key, value in whole.items() if key != without})
        with pytest.raises(UserError, match=said):
            load_config(str(tmp_path))
    change(tmp_path, text_config=whole | {"use_bidirectional_attention": "all"})
    with pytest.raises(UserError, match="use_bidirectional_attention='all', which no published"):
        load_config(str(tmp_path))


def lost(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys whose value is another, nested ones included."""
    found = []
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(after.get(key), dict):
            found += lost(value, after[key])
        elif value != after.get(key) and key != "transformers_version":
            found.append(key)
    return found


# ---- what does not work with it ----------------------------------------------------------------------------------

NO_MASK = "this model has no mask token: noise replaces its tokens by others, and what was asked for masks them"


@pytest.mark.shared
def test_another_attention_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="attention block:4, and a DiffusionGemma reads canvases of 8 tokens"):
        load_model(str(folder), attention="block:4")
    assert load_model(str(folder), attention="block:8:answer").attention == BlockCausal(8, "answer")


@pytest.mark.shared
def test_what_masks_says_that_there_is_no_mask_token(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=NO_MASK) as caught:
        _ = facts(model).mask_id
    assert "remask sft --objective diffusion-gemma" in str(caught.value)
    with pytest.raises(UserError, match=NO_MASK):
        infill(model, tokenizer, "1 + <|mask|> = 2")


@pytest.mark.shared
def test_a_call_that_is_none_of_its_kinds_is_refused(model: Any) -> None:
    with pytest.raises(UserError, match="was called without a clean text, an answer and positions"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_the_config_reads_like_the_others() -> None:
    sizes = {"num_experts": 2, "top_k_experts": 1, "moe_intermediate_size": 8, "num_hidden_layers": 6}
    config = DiffusionGemmaConfig(text_config=sizes, vision_config={"model_type": "gemma4_vision"})
    assert (config.canvas_length, config.attention, config.eos_token_id) == (256, "block:256:answer", 1)
    assert (config.num_hidden_layers, config.num_attention_heads) == (6, 8)
    config.eos_token_id = None
    assert config.eos_token_id == 1
