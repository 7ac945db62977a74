"""Block models: the published code's logits, losses and likelihood, and what a block is to noise and to counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from remask.analysis.estimators import tightness
from remask.cli import main
from remask.data.canvas import Fill
from remask.diffusion.attention import BlockCausal, Full, named
from remask.diffusion.blocks import attention_of, counts, in_blocks, lowest_of_each
from remask.diffusion.corruption import Canvas, Corrupted
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import elbo, elbo_coupled
from remask.diffusion.noise import GOLDEN_RATIO, Noise, collate_noise, row_noise
from remask.diffusion.objective import Objective, complement_of, corrupt, denominator, sft_terms
from remask.diffusion.reader import ModelReader, reader_of
from remask.diffusion.weights import cart_weights
from remask.errors import UserError
from remask.models.block_families import LLaDA2MoeConfig
from remask.models.blocks import in_blocks as inputs_of
from remask.models.facts import usual_fill
from remask.models.load import load, load_model
from remask.models.registry import model_class
from remask.sft.presets import PRESETS

FAMILIES = {"sdar_tiny": 1e-5, "fast_dllm_v2_tiny": 3e-5, "llada2_moe_tiny": 2e-5}
"""How near each family's logits are to the published code's."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Path]:
    return request.param, shared / "golden" / request.param


def raw(model: Any, reading: Any) -> Tensor:
    """The network's outputs as they are, not shifted back."""
    found: Tensor = model.lm_head(model.model(use_cache=False, **inputs_of(reading, None).inputs).last_hidden_state)
    return found


# ---- the published code's numbers --------------------------------------------------------------------------------


@pytest.mark.shared
@torch.no_grad()
def test_logits_are_the_published_ones(family: tuple[str, Path]) -> None:
    name, folder = family
    model, expected = load_model(str(folder)).eval(), load_file(folder / "expected_logits.safetensors")
    noisy, clean = expected["noisy_ids"], expected["clean_ids"]
    blocks, everywhere = BlockCausal(int(expected["block_length"])), torch.ones_like(noisy, dtype=torch.bool)
    for reading, logits in (
        (Full().inference(noisy, everywhere, everywhere, None), "logits_bidirectional"),
        (blocks.inference(noisy, everywhere, everywhere, None), "logits_block_causal"),
        (blocks.training(noisy, clean, everywhere, everywhere), "logits_two_stream"),
    ):
        assert (raw(model, reading) - expected[logits]).abs().max() <= FAMILIES[name]


@pytest.mark.shared
def test_what_is_saved_has_the_official_names_and_equal_tensors(family: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = family
    load_model(str(folder)).save_pretrained(tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    official, written = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    read_by_the_code = ("model_type", "architectures", "block_size", "bd_size", "rope_theta", "partial_rotary_factor")
    assert all(written.get(key) == official.get(key) for key in read_by_the_code)
    again = load_model(str(tmp_path))
    assert again.config.attention == load_model(str(folder)).config.attention
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), load_model(str(folder)).parameters(), strict=True))


@pytest.mark.shared
def test_files_in_shards_load_too(family: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = family
    model = load_model(str(folder))
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for one, other in zip(model.parameters(), load_model(str(tmp_path)).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(3))
def test_sdars_published_training_loss_and_gradient(number: int, shared: Path) -> None:
    """Packed rows one by one: a sample sees its own tokens alone. The weight is 1/p, N the answers' tokens."""
    folder = shared / "golden" / "sdar_tiny"
    case = json.loads((folder / "block_training.json").read_text())["cases"][number]
    model: Any = load_model(str(folder), attention=f"block:{case['block_length']}")
    model.train()
    total = torch.zeros(())
    for row in range(len(case["input_ids"])):
        places = torch.tensor(case["position_ids"][row])
        starts = [i for i, place in enumerate(places.tolist()) if place == 0]
        for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
            part = slice(start, end)
            clean, noisy, mask, weight = (
                torch.tensor(case[key][row][part])[None] for key in ("input_ids", "noisy_ids", "mask", "weight")
            )
            labels = torch.tensor(case["labels"][row][part])[None] != -100
            if not (mask.bool() & labels).any():
                continue
            everywhere = torch.ones_like(labels)
            canvas = in_blocks(Canvas(clean, everywhere, labels, labels), attention_of(model))
            ce = ModelReader(model).losses(noisy, canvas, mask.bool())
            total = total + (ce * weight[mask.bool()]).sum()
    loss = total / case["normaliser"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    assert norm_of(model) == pytest.approx(case["grad_norm"], rel=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(3))
def test_llada2s_published_loss_and_gradient(number: int, shared: Path) -> None:
    """dFactory: no weight, over the masked answer tokens, which fill included are all after the prompt."""
    folder = shared / "golden" / "llada2_moe_tiny"
    case = json.loads((folder / "block_training.json").read_text())["cases"][number]
    model: Any = load_model(str(folder), attention=f"block:{case['block_length']}")
    clean, noisy, mask = (torch.tensor(case[key]) for key in ("input_ids", "noisy_ids", "mask"))
    places = torch.arange(clean.shape[1])
    answer = places >= torch.tensor(case["prompt_lengths"])[:, None]
    canvas = in_blocks(Canvas(clean, torch.ones_like(answer), answer, answer), attention_of(model))
    rates = torch.ones(clean.shape)
    corrupted = Corrupted(noisy, mask.bool(), rates, rates)
    objective = Objective(weight="none", normaliser="masked")
    if not case["same_token_labels"]:
        model.config.shift = True
    loss = sft_terms(objective, ModelReader(model), canvas, corrupted).loss / denominator(objective, canvas, corrupted)
    assert int(mask.sum()) == case["normaliser"]
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    assert norm_of(model) == pytest.approx(case["grad_norm"], rel=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(2))
def test_fast_dllms_published_loss_and_gradient(number: int, shared: Path) -> None:
    """Each row twice, with a mask and its complement; shifted within the noised stream; the mean over both."""
    folder = shared / "golden" / "fast_dllm_v2_tiny"
    case = json.loads((folder / "block_training.json").read_text())["cases"][number]
    model: Any = load_model(str(folder), attention=f"block:{case['block_length']}")
    clean = torch.tensor(case["input_ids"])
    answer = torch.arange(clean.shape[1]) >= torch.tensor(case["prompt_lengths"])[:, None]
    canvas = in_blocks(Canvas(clean, torch.ones_like(answer), answer, answer), attention_of(model))
    total, count = torch.zeros(()), 0
    for key in ("mask", "complementary_mask"):
        mask = torch.tensor(case[key]).bool()
        scored = mask.clone()
        scored[:, 0] = False  # a row's first token has none before it to be predicted from
        ce = ModelReader(model).losses(clean.masked_fill(mask, model.config.mask_token_id), canvas, scored)
        total, count = total + ce.sum(), count + len(ce)
    assert count == case["normaliser"]
    loss = total / count
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    assert norm_of(model) == pytest.approx(case["grad_norm"], rel=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("number", range(2))
def test_dllm_rls_loss_and_gradient_of_blocks_counted_from_the_answer(number: int, shared: Path) -> None:
    """Prompts padded on the left; an answer's padding is attended to, and masked, but not scored. What a step of the
    trace is scored on is masked and scored as given; the sum over the width of the answers, averaged over rows.
    """
    folder = shared / "golden" / "sdar_tiny"
    case = json.loads((folder / "block_training.json").read_text())["dllm_rl"][number]
    model: Any = load_model(str(folder), attention=f"block:{case['block_length']}:answer")
    given, noised = torch.tensor(case["input_ids"]), torch.tensor(case["extended_input_ids"])
    width, length = case["prompt_width"], given.shape[1]
    place = torch.arange(length).expand(len(noised), -1)
    row = (noised[:, None, :length] == given).all(-1).long().argmax(-1)  # a trace has a row for each of its steps
    prompt = torch.tensor(case["prompt_lengths"])[row, None]
    answer = place >= width
    attended = place >= width - prompt
    clean = noised[:, :length]
    shown = torch.cat([noised[:, :width], noised[:, length:]], dim=1)
    scored = torch.tensor(case["mask"]).bool()
    canvas = in_blocks(Canvas(clean, attended, answer, answer), attention_of(model))
    ce = ModelReader(model).losses(shown, canvas, scored)
    loss = ce.sum() / (case["response_width"] * len(noised))
    assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
    loss.backward()
    assert norm_of(model) == pytest.approx(case["grad_norm"], rel=1e-4)


def norm_of(model: Any) -> float:
    """The gradient's norm without the row of the pad token, to which the published classes give none."""
    others = [token for token in range(model.config.vocab_size) if token != model.config.pad_token_id]
    grads = [
        (p.grad[others] if "embed_tokens" in n else p.grad) for n, p in model.named_parameters() if p.grad is not None
    ]
    return float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())


# ---- identities ---------------------------------------------------------------------------------------------------


def rows_of_two(block: int) -> Canvas:
    """Answers of 6 and 5 tokens after prompts of 3 and 4, in blocks counted from the row's first token."""
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    answer = torch.tensor([[False] * 3 + [True] * 6, [False] * 4 + [True] * 5])
    return in_blocks(Canvas(ids, torch.ones_like(answer), answer, answer), BlockCausal(block))


def draws(count: int, width: int = 9) -> list[Noise]:
    return [
        collate_noise([row_noise(0, k, row, 2 * k + row, width) for row in range(2)], [0, 0], width)
        for k in range(count)
    ]


def test_blocks_are_counted_from_the_answers_first() -> None:
    canvas = rows_of_two(4)
    assert canvas.block is not None
    assert canvas.block.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2], [-1, -1, -1, -1, 0, 0, 0, 0, 1]]
    assert counts(canvas.corruptible, canvas.block)[canvas.corruptible].tolist() == [1, 4, 4, 4, 4, 1, 4, 4, 4, 4, 1]


def test_the_lowest_of_each_block_by_hand() -> None:
    """Blocks 0 1 1 1 1 2 (and the prompt): one, two and one of them; ties go to the left."""
    canvas = rows_of_two(4)
    score = torch.tensor([[0.0, 0.0, 0.0, 0.9, 0.4, 0.1, 0.4, 0.3, 0.5]]).expand(2, 9)
    count = torch.where(canvas.block == 1, 2, 1)
    chosen = lowest_of_each(score, count, canvas.corruptible, canvas.block)
    assert chosen.long().tolist() == [[0, 0, 0, 1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 1, 0, 0, 1]]


def test_times_of_blocks_are_stratified_and_a_rows_own() -> None:
    """Golden-ratio steps from the row's τ."""
    canvas, noise = rows_of_two(2), draws(1)[0]
    assert canvas.block is not None
    tau = noise.per_block(canvas.block).tau
    for row in range(2):
        first = noise.row_tau[row].item()
        for token in canvas.corruptible[row].nonzero()[:, 0].tolist():
            block = int(canvas.block[row, token])
            assert tau[row, token].item() == pytest.approx((first + block * GOLDEN_RATIO) % 1.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_block_is_the_estimate_of_the_whole_row(name: str, random_model: Any) -> None:
    """To the bit: of a model that reads rows whole, and of a block model whose block is longer than the rows."""
    whole = rows_of_two(4)
    written = torch.where(whole.corruptible, torch.arange(9) % 3, -1)
    whole = Canvas(whole.ids, whole.attended, whole.corruptible, whole.supervised, written)
    noise = draws(2)
    estimator: Any = ESTIMATORS[name]  # type: ignore[index]
    views = [estimator.draws(canvas, noise, 1) for canvas in (whole, in_blocks(whole, BlockCausal(64)))]
    for one, other in zip(*views, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.scored, b.scored)
            assert torch.allclose(a.weight[a.scored], b.weight[b.scored], rtol=1e-6)


@torch.no_grad()
def test_blocks_of_one_token_give_the_exact_autoregressive_likelihood(random_model: Any) -> None:
    """Every draw says the same: Σ_i log p(x_i | x_<i, a mask at i), and a causal sum by hand agrees."""
    random_model.attention = BlockCausal(1)
    canvas = in_blocks(rows_of_two(1), BlockCausal(1))
    values = [elbo(random_model, canvas, [draw], 1).token for draw in draws(3)]
    assert torch.allclose(values[0], values[1], atol=1e-5)
    assert torch.allclose(values[0], values[2], atol=1e-5)
    for row in range(2):
        for place in canvas.corruptible[row].nonzero()[:, 0].tolist():
            ids = canvas.ids[row : row + 1, : place + 1].clone()
            ids[0, place] = 1
            logits = random_model(input_ids=ids).logits[0, place].float()
            gold = logits.log_softmax(-1)[canvas.ids[row, place]]
            assert values[0][row, place].item() == pytest.approx(gold.item(), abs=1e-4)


@torch.no_grad()
def test_estimates_of_blocks_are_unbiased(random_model: Any) -> None:
    """Two blocks of 3 and 2 answer tokens: the exact sum over subsets of each, and the means over draws."""
    random_model.attention = BlockCausal(4)
    ids = torch.randint(5, 200, (1, 8), generator=torch.Generator().manual_seed(1))
    answer = torch.tensor([[False] * 1 + [True] * 5 + [False] * 2])
    canvas = in_blocks(Canvas(ids, torch.arange(8)[None] < 6, answer, answer), BlockCausal(4))
    generator = torch.Generator().manual_seed(0)
    reader = reader_of(random_model)
    exact = tightness(reader, canvas, 1, orders=(1,), repetitions=1, generator=generator).elbo * 5
    many = canvas.repeat(4000)
    noise = [Noise(torch.rand(4000, 1, generator=generator).expand(4000, 8), torch.rand(4000, 8, generator=generator))]
    for estimate in (elbo, elbo_coupled):
        found = estimate(random_model, many, noise, 1).sequence
        assert found.mean().item() == pytest.approx(exact, abs=4 * found.std().item() / 4000**0.5)


def test_cart_sees_what_the_token_sees() -> None:
    """Blocks 0 0 1 1, q = ½, the second and the third masked: token 2 sees both of block 0, token 1 not block 1."""
    mask = torch.tensor([[False, True, True, False]])
    block, everywhere = torch.tensor([[0, 0, 1, 1]]), torch.ones(1, 4, dtype=torch.bool)
    found = cart_weights(mask, everywhere, 0.5, block)[0]
    assert found[1].item() == pytest.approx(0.25)  # token 0 at distance 1: ½·q
    assert found[2].item() == pytest.approx(0.25 + 0.25 + 0.125)  # tokens 1 and 3 at distance 1, 0 at distance 2


@pytest.mark.parametrize("time_per", ["block", "row"])
def test_a_block_models_corruption_has_times_of_blocks_or_of_rows(time_per: str) -> None:
    canvas, noise = rows_of_two(2), draws(1)[0]
    corrupted = corrupt(Objective(time_per=time_per), canvas, noise, 1)  # type: ignore[arg-type]
    for row in range(2):
        times = corrupted.time[row][canvas.corruptible[row]]
        assert len(times.unique()) == (
            1 if time_per == "row" else len(canvas.block[row][canvas.corruptible[row]].unique())
        )


# ---- facts --------------------------------------------------------------------------------------------------------


def test_facts_of_the_config_say_how_blocks_are_read() -> None:
    config = LLaDA2MoeConfig(hidden_size=64, num_attention_heads=4)
    assert (config.attention, config.mask_token_id, config.eos_token_id) == ("block:32", 156895, 156892)
    assert model_class(config) is not None
    assert named("block:32:answer") == BlockCausal(32, "answer")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_bias": True}, "use_bias=True"),
        ({"use_qk_norm": False}, "use_qk_norm=False"),
        ({"num_shared_experts": None}, "num_shared_experts=None"),
        ({"score_function": "softmax"}, "score_function='softmax'"),
    ],
)
def test_what_no_llada2_computes_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        LLaDA2MoeConfig(**settings)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("NemotronLabsDiffusionModel", r"a Nemotron-Labs-Diffusion model: .* which Remask does not compute"),
    ],
)
def test_a_diffusion_model_of_another_kind_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 9}))
    with pytest.raises(UserError, match=said):
        load(tmp_path)


def test_a_block_longer_than_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="blocks of 513 tokens, and the model has 512 positions"):
        load("tiny-direct", attention="block:513")
    assert attention_of(load("tiny-direct", attention="block:512")[0]) == BlockCausal(512)


@pytest.mark.parametrize("text", ["block:0", "block:-1", "block", "blocks:4", "block:4:left", "half"])
def test_an_attention_that_is_none_is_refused(text: str, shared: Path) -> None:
    with pytest.raises(UserError, match=r"attention|blocks of 0"):
        load_model(str(shared / "golden" / "sdar_tiny"), attention=text)


# ---- recipes and runs ---------------------------------------------------------------------------------------------


def test_published_recipes_say_what_their_losses_are() -> None:
    """The choices that the published losses above were computed with."""
    assert PRESETS["sdar"] == Objective(weight="inverse_rate", normaliser="response", time_per="row")
    assert (PRESETS["llada2"].weight, PRESETS["llada2"].normaliser) == ("none", "masked")
    assert (PRESETS["llada2"].rate_low, PRESETS["llada2"].rate_high, PRESETS["llada2"].time_per) == (0.3, 0.8, "row")
    assert PRESETS["fast-dllm-v2"].complement
    assert (PRESETS["bd3lm"].time_per, PRESETS["bd3lm"].weight) == ("block", "inverse_rate")


def test_a_complement_masks_the_other_tokens_at_the_other_rates() -> None:
    canvas, noise = rows_of_two(2), draws(1)[0]
    first = corrupt(PRESETS["fast-dllm-v2"], canvas, noise, 1)
    second = complement_of(canvas, first, 1)
    assert torch.equal(first.mask ^ second.mask, canvas.corruptible)
    assert not (first.mask & second.mask).any()
    inside = canvas.corruptible
    assert torch.allclose(first.rate[inside] + second.rate[inside], torch.ones(int(inside.sum())), atol=2e-3)
    assert (second.ids[second.mask] == 1).all()
    assert torch.equal(second.ids[~second.mask], canvas.ids[~second.mask])


@pytest.mark.parametrize(("prompt", "answer", "length"), [(3, 5, 5), (3, 6, 9), (4, 4, 4), (1, 1, 3)])
def test_fill_ends_with_a_whole_block(prompt: int, answer: int, length: int) -> None:
    fill = Fill.parse("block:4")
    assert fill.length(prompt, answer, longest_row=99, max_length=64) == length
    assert (prompt + length) % 4 == 0
    assert fill.length(prompt, answer, longest_row=99, max_length=prompt + answer) == answer


def test_a_run_of_a_block_model_is_loaded_as_one(tmp_path: Path) -> None:
    """Its weights with their attention in config.json, or an adapter with the run's word for it, or its own."""
    base = ("--model", "tiny-direct", "--model-attention", "block:4", "--data", "direct:sudoku:8", "--max-steps", "1")
    flags = (*base, "--trainer.report-to", "none", "--report.diagnostics", "off")
    for name, more in (("full", ()), ("lora", ("--lora.rank", "2"))):
        folder = tmp_path / name
        assert main(["sft", *flags, "--objective", "gift", *more, "--output-dir", str(folder)]) == 0
        model, _ = load(folder)
        assert attention_of(model) == BlockCausal(4)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(tmp_path / "lora" / name, alone)
    assert attention_of(load(alone)[0]) == BlockCausal(4)


@pytest.mark.parametrize(
    ("attention", "fill"), [("block:8", "block:8"), ("block:8:answer", "multiple:8"), ("full", "batch")]
)
def test_answers_are_filled_to_whole_blocks_where_nothing_else_is_said(attention: str, fill: str) -> None:
    assert usual_fill(named(attention)) == fill
