"""The sampling loop: choices and scores by hand, how many tokens a step reveals, rows that do not see each other."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from remask.data.chat import decode_text, encode_prompt
from remask.diffusion import token_loss
from remask.errors import UserError
from remask.models.facts import stop_token_ids
from remask.models.prediction import Prediction, predicted
from remask.sampling import Decoding, Denoised, Step, denoise, generate, run
from remask.sampling.generate import decoding_for
from remask.sampling.row_noise import RowNoise
from remask.sampling.schedule import UNSAID
from remask.sampling.selection import drawn, propose, restrict

RULES = ("confidence", "margin", "entropy", "random", "left_to_right")
MASK, EOS = 5, 4
LOG_P = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


class Table(nn.Module):
    """A model whose prediction depends on the place alone: `logits` [prompt + canvas, V]."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)
        self.config = SimpleNamespace(mask_token_id=MASK, eos_token_id=EOS, stop_token_ids=None)
        self.modes: list[bool] = []
        self.seen: list[torch.Tensor] = []

    def forward(self, input_ids: Any, attention_mask: Any, positions: Any, look: Any = None) -> Prediction:
        self.modes.append(self.training)
        self.seen.append(input_ids.clone())
        return predicted(nn.Identity(), self.logits[positions.nonzero()[:, 1]].clone(), look=look)


def table_of(probabilities: list[list[float]]) -> Table:
    """One prompt token, then places with these probabilities of tokens 0–3; EOS and the mask are impossible."""
    rows = torch.tensor([[0.25] * 4, *probabilities]).log()
    return Table(torch.cat([rows, torch.full((len(rows), 2), -torch.inf)], dim=1))


PROMPT = torch.tensor([[0]])


# ---- choosing and scoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, 4),
        (1, None, 1),
        (2, None, 2),
        (9, None, 4),
        (None, 0.4, 1),
        (None, 0.51, 2),
        (None, 0.79, 2),
        (None, 0.81, 3),
        (None, 0.96, 4),
        (None, 1.0, 4),
        (2, 0.62, 1),  # of the two left, the first holds 0.5/0.8 = 0.625
        (2, 0.63, 2),
    ],
)
def test_top_k_and_top_p_by_hand(top_k: int | None, top_p: float | None, kept: int) -> None:
    order = torch.tensor([2, 0, 3, 1])
    left = restrict(LOG_P[:, order], top_k, top_p)[0, order.argsort()]
    assert left.isfinite().tolist() == [place < kept for place in range(4)]
    assert torch.equal(left[:kept], LOG_P[0, :kept])


@pytest.mark.parametrize(
    ("rule", "score"),
    [
        ("confidence", 0.5),
        ("margin", 0.2),
        ("entropy", 0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.15 * math.log(0.15) + 0.05 * math.log(0.05)),
        ("random", 0.5),
        ("left_to_right", 0.5),
    ],
)
def test_scores_by_hand(rule: str, score: float) -> None:
    proposal = propose(LOG_P + 3, rule)
    assert proposal.token.tolist() == [0]
    assert proposal.confidence.item() == pytest.approx(0.5)
    assert proposal.score.item() == pytest.approx(score)


def test_confidence_is_that_before_temperature() -> None:
    """The number chooses token 2 at temperature 10, where all are about as likely: its confidence stays p = 0.15."""
    uniform = torch.tensor([0.6], dtype=torch.float64)
    proposal = propose(LOG_P.clone(), "confidence", temperature=10.0, uniform=uniform)
    assert proposal.token.tolist() == [2]
    assert proposal.confidence.item() == pytest.approx(0.15)


def test_sure_predictions_do_not_tie() -> None:
    """1 − 2e−9 rounds to 1 in float32; added up apart, the surer of two sure places still scores higher."""
    proposal = propose(torch.tensor([[30.0, 0.0], [20.0, 0.0]]), "confidence")
    assert proposal.score[0] > proposal.score[1]


@pytest.mark.parametrize(
    ("temperature", "top_k", "expected"),
    [
        (1.0, None, [0.5, 0.3, 0.15, 0.05]),
        (0.5, None, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),  # p² renormalised
        (1.0, 2, [0.625, 0.375, 0.0, 0.0]),
    ],
)
def test_samples_have_the_right_frequencies(temperature: float, top_k: int | None, expected: list[float]) -> None:
    n = 3000
    model = table_of([[0.5, 0.3, 0.15, 0.05]])
    ids = denoise(model, PROMPT.expand(n, 1), max_new_tokens=1, temperature=temperature, top_k=top_k)
    for token, p in enumerate(expected):
        share = (ids == token).float().mean().item()
        assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_a_mask_is_never_written() -> None:
    """The model's favourite everywhere is the mask; the runner-up is written."""
    logits = torch.zeros(4, 6)
    logits[:, MASK], logits[:, 2] = 9.0, 5.0
    for temperature in (0.0, 1.0):
        ids = denoise(Table(logits), PROMPT, max_new_tokens=3, temperature=temperature)
        assert not (ids == MASK).any()
    assert denoise(Table(logits), PROMPT, max_new_tokens=3).tolist() == [[2, 2, 2]]


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.4999, 0), (0.5, 1), (0.7999, 1), (0.8, 2), (0.9499, 2), (0.95, 3), (1.0, 3)]
)
def test_a_token_is_drawn_where_the_running_sum_passes(uniform: float, token: int) -> None:
    """Of 20: sums 10, 16, 19, 20."""
    weight = torch.tensor([[10.0, 6.0, 3.0, 1.0]])
    assert drawn(weight, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("vocabulary", [4, 262, 1000, 1021, 32000])
def test_drawing_by_groups_is_drawing_from_all(vocabulary: int) -> None:
    """Against running sums over all tokens; whole numbers, so that both are exact. Tokens without weight never come."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 4, (200, vocabulary), generator=generator).float()
    weight[:, vocabulary // 2] += 1
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    sums = weight.double().cumsum(-1)
    right = (sums <= (uniform * sums[:, -1])[:, None]).sum(-1)
    assert torch.equal(drawn(weight, uniform), right)
    assert (weight.gather(-1, right[:, None]) > 0).all()
    ends = drawn(weight, torch.ones(200, dtype=torch.float64))
    assert (weight.gather(-1, ends[:, None]) > 0).all()


def test_numbers_of_a_row_are_its_own() -> None:
    """Uniform on [0, 1); new for every row, step, place and use; the same whatever rows stand beside it."""
    noise = RowNoise(3, [5, 9, 7], torch.device("cpu"))
    rows = torch.arange(3)
    numbers = torch.stack([noise.uniform(rows, step, 50, use) for step in range(40) for use in ("token", "order")])
    assert len(numbers.unique()) == numbers.numel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers.float(), 20, 0, 1)
    chi2 = ((counts - numbers.numel() / 20) ** 2 / (numbers.numel() / 20)).sum().item()
    assert chi2 < 45  # p = 0.001 at 19 degrees of freedom: 43.8
    flat = numbers.movedim(1, 0).flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.1
    for lag in (1, 50, 100):
        assert abs(torch.corrcoef(torch.stack([flat[0, lag:], flat[0, :-lag]]))[0, 1]) < 0.1
    alone = RowNoise(3, [9], torch.device("cpu")).uniform(torch.tensor([0]), 7, 50, "token")
    assert torch.equal(alone[0], numbers[14, 1])


def test_the_generator_is_the_published_one() -> None:
    """SplitMix64 of state 1234567: 6457827717110365317, 3203168211198807973, … (the reference code's first numbers)."""
    noise = RowNoise(0, [0], torch.device("cpu"))
    noise.keys = torch.tensor([1234567])
    found = noise.uniform(torch.tensor([0]), 0, 4, "token")[0]
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert found.tolist() == [(number >> 11) * 2.0**-53 for number in published]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
def test_chunks_change_nothing(rule: str, temperature: float, random_model: Any, monkeypatch: Any) -> None:
    prompts = torch.randint(6, 200, (3, 5), generator=torch.Generator().manual_seed(0))
    decoding = Decoding(max_new_tokens=12, steps=6, temperature=temperature, reveal=rule, stop_early=False)
    whole = run(random_model, prompts, None, decoding)
    monkeypatch.setattr(token_loss, "CHUNK_ELEMENTS", 5 * 262)
    parts = run(random_model, prompts, None, decoding)
    assert torch.equal(whole.ids, parts.ids)
    assert torch.allclose(whole.confidence, parts.confidence, rtol=1e-5)


# ---- how much, and where --------------------------------------------------------------------------------------

SURE = [[0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1], [0.1, 0.8, 0.05, 0.05], [0.25, 0.25, 0.2, 0.3]]


@pytest.mark.parametrize(
    ("rule", "order"),
    [
        ("confidence", [0, 2, 1, 3]),
        ("left_to_right", [0, 1, 2, 3]),
        ("margin", [0, 2, 1, 3]),
        ("entropy", [0, 2, 1, 3]),
    ],
)
def test_the_surest_place_is_revealed_first(rule: str, order: list[int]) -> None:
    """p: 0.97, 0.4, 0.8, 0.3; margins: 0.96, 0.1, 0.7, 0.05; entropies: 0.17, 1.28, 0.71, 1.38."""
    result = run(table_of(SURE), PROMPT, None, Decoding(max_new_tokens=4, reveal=rule))
    assert result.revealed_at[0].argsort().tolist() == order
    assert result.ids.tolist() == [[0, 0, 1, 3]]
    assert result.confidence[0].tolist() == pytest.approx([0.97, 0.4, 0.8, 0.3])
    assert (result.forwards, result.row_forwards) == (4, 4)


def test_each_step_reads_what_the_last_one_wrote() -> None:
    model = table_of(SURE)
    run(model, PROMPT, None, Decoding(max_new_tokens=4))
    assert [seen[0].tolist() for seen in model.seen] == [
        [0, MASK, MASK, MASK, MASK],
        [0, 0, MASK, MASK, MASK],
        [0, 0, MASK, 1, MASK],
        [0, 0, 0, 1, MASK],
    ]


@pytest.mark.parametrize(
    ("length", "steps", "block", "counts"),
    [
        (10, 5, 5, [2, 2, 1, 3, 2]),  # five steps over two blocks: 3 and 2; five tokens in three steps: 2, 2, 1
        (16, 3, 16, [6, 5, 5]),
        (7, 7, 3, [1] * 7),
        (7, 3, 3, [3, 3, 1]),
        (4, None, 2, [1] * 4),
        (6, 20, 6, [1] * 6),  # more steps than tokens
        (5, 1, 5, [5]),
    ],
)
@pytest.mark.parametrize("rule", RULES)
def test_tokens_per_step_and_block_order(
    rule: str, length: int, steps: int | None, block: int, counts: list[int], random_model: Any
) -> None:
    decoding = Decoding(max_new_tokens=length, steps=steps, block_length=block, reveal=rule, stop_early=False)
    result = run(random_model, torch.tensor([[10, 20, 30], [40, 50, 60]]), None, decoding)
    for row in result.revealed_at:
        assert row.bincount().tolist() == counts
        blocks = row.split(block)
        assert all(left.max() < right.min() for left, right in itertools.pairwise(blocks))
    assert result.forwards == len(counts)


def test_a_threshold_reveals_all_that_reach_it_and_at_least_one() -> None:
    decoding = Decoding(max_new_tokens=4, threshold=0.75)
    result = run(table_of(SURE), PROMPT, None, decoding)
    assert result.revealed_at.tolist() == [[0, 1, 0, 2]]
    assert run(table_of(SURE), PROMPT, None, Decoding(max_new_tokens=4, threshold=2.0)).forwards == 4
    assert run(table_of(SURE), PROMPT, None, Decoding(max_new_tokens=4, threshold=0.0)).forwards == 1


def test_a_threshold_stays_inside_the_block() -> None:
    result = run(table_of(SURE), PROMPT, None, Decoding(max_new_tokens=4, block_length=2, threshold=0.75))
    assert result.revealed_at.tolist() == [[0, 1, 2, 3]]


def test_steps_are_shown_as_they_happen(random_model: Any) -> None:
    steps: list[Step] = []
    decoding = Decoding(max_new_tokens=6, steps=3, stop_early=False)
    result = run(random_model, torch.tensor([[10, 20]]), None, decoding, on_step=steps.append)
    assert [step.number for step in steps] == [0, 1, 2]
    mask = random_model.config.mask_token_id
    assert [(step.canvas == mask).sum().item() for step in steps] == [4, 2, 0]
    assert torch.equal(steps[-1].canvas, result.ids)
    for step in steps:
        assert torch.equal(step.revealed, result.revealed_at == step.number)


# ---- batches --------------------------------------------------------------------------------------------------


def left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@pytest.mark.slow
@pytest.mark.parametrize("stop_early", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rule", RULES)
def test_a_row_alone_is_the_same_row_in_a_batch(
    rule: str, temperature: float, stop_early: bool, random_model: Any
) -> None:
    random_model.config.stop_token_ids = list(range(6, 40))  # so that rows stop at different times
    prompts = [[60, 61, 62], list(range(70, 81)), [90], [100, 101, 102, 103, 104]]
    seeds = [31, 7, 7000, 2]
    decoding = Decoding(
        max_new_tokens=12, steps=8, block_length=6, reveal=rule, temperature=temperature, seed=3, stop_early=stop_early
    )
    ids, mask = left_padded(prompts, 6)
    together = run(random_model, ids, mask, decoding, row_seeds=seeds)
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = run(random_model, torch.tensor([prompt]), None, decoding, row_seeds=[seed])
        assert torch.equal(alone.ids[0], together.ids[row])
        assert ((alone.revealed_at[0] >= 0) == (together.revealed_at[row] >= 0)).all()
    if temperature:
        other = run(random_model, ids, mask, decoding, row_seeds=[1, 2, 3, 4])
        assert not torch.equal(other.ids, together.ids)


@pytest.mark.parametrize("change", ["seed", "row_seed"])
def test_seeds_decide_samples_and_nothing_else_does(change: str, random_model: Any) -> None:
    prompt = torch.tensor([[60, 61, 62]])

    def sample(seed: int = 0, row_seed: int = 0) -> list[int]:
        decoding = Decoding(max_new_tokens=12, temperature=1.0, seed=seed, stop_early=False)
        return run(random_model, prompt, None, decoding, row_seeds=[row_seed]).ids[0].tolist()

    first = sample()
    torch.rand(3)
    assert sample() == first
    assert sample(**{change: 1}) != first


@pytest.mark.slow
@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("rule", RULES)
def test_stopping_early_changes_no_text(
    rule: str, temperature: float, block: int | None, random_model: Any, tokenizer: Any
) -> None:
    random_model.config.stop_token_ids = list(range(6, 60))
    prompts = torch.randint(60, 200, (5, 4), generator=torch.Generator().manual_seed(0))
    results: list[Denoised] = []
    for stop_early in (True, False):
        decoding = Decoding(
            max_new_tokens=16, steps=16, block_length=block, reveal=rule, temperature=temperature, stop_early=stop_early
        )
        results.append(run(random_model, prompts, None, decoding))
    early, full = results
    stops = stop_token_ids(random_model.config)
    for row in range(5):
        texts = [decode_text(tokenizer, result.ids[row].tolist(), stops) for result in results]
        assert texts[0] == texts[1]
    assert early.row_forwards < full.row_forwards
    filled = early.revealed_at == -1
    assert (early.ids[filled] == random_model.config.eos_token_id).all()
    assert early.confidence[filled].isnan().all()
    assert not early.confidence[~filled].isnan().any()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training: bool) -> None:
    model = table_of(SURE).train(training)
    denoise(model, PROMPT, max_new_tokens=4)
    assert not any(model.modes)
    assert model.training == training


def test_the_mode_comes_back_after_an_error() -> None:
    model = table_of(SURE).train()

    def interrupt(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, PROMPT, None, Decoding(max_new_tokens=4), on_step=interrupt)
    assert model.training


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_gone_to_nan_is_an_error_and_no_endless_loop(temperature: float) -> None:
    def patience(step: Step) -> None:
        assert step.number < 20, "the loop goes on"

    model = Table(torch.full((9, 6), torch.nan))
    with pytest.raises(UserError, match="finite"):
        run(model, PROMPT, None, Decoding(max_new_tokens=8, block_length=4, temperature=temperature), on_step=patience)


# ---- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"block_length": -1}, "block_length = -1"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"top_p": 1.5}, r"top_p = 1\.5"),
        ({"temperature": -0.1}, r"temperature = -0\.1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"reveal": "loudest"}, "unknown reveal 'loudest'.*confidence, margin, entropy"),
        ({"max_new_tokens": 8, "block_length": 2, "steps": 3}, "3 steps cannot finish 4 blocks"),
        ({"threshold": 0.5, "reveal": "random"}, "threshold has no meaning"),
        ({"threshold": 0.5, "reveal": "left_to_right"}, "threshold has no meaning"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoding(**settings)


def test_settings_are_described_with_their_defaults() -> None:
    described = Decoding(max_new_tokens=8).described()
    assert (described["steps"], described["block_length"], described["temperature"]) == (8, 8, 0.0)
    assert Decoding(max_new_tokens=8, threshold=0.9).described()["steps"] is None
    assert set(described) == set(Decoding.__dataclass_fields__) - set(UNSAID)


def test_a_checkpoints_settings_give_way_to_those_given(random_model: Any) -> None:
    random_model.config.default_decoding = {"max_new_tokens": 80, "steps": 40, "block_length": 80}
    assert decoding_for(random_model) == Decoding(80, 40, 80)
    assert decoding_for(random_model, steps=20, temperature=None) == Decoding(80, 20, 80)
    assert decoding_for(random_model, max_new_tokens=16) == Decoding(16)
    own = Decoding(5)
    assert decoding_for(random_model, own) is own
    with pytest.raises(UserError, match="one or the other"):
        decoding_for(random_model, own, steps=3)
    with pytest.raises(UserError, match=r"step_count.*max_new_tokens, steps"):
        decoding_for(random_model, step_count=3)


# ---- texts ----------------------------------------------------------------------------------------------------


def test_generate_keeps_the_order_of_prompts_whatever_the_batches(random_model: Any, tokenizer: Any) -> None:
    prompts = ["a long first prompt", "b", [{"role": "user", "content": "middle"}], "another one"]
    settings = {"max_new_tokens": 10, "temperature": 0.8, "row_seeds": [4, 3, 2, 1]}
    one = generate(random_model, tokenizer, prompts, batch_size=1, **settings)
    all_at_once = generate(random_model, tokenizer, prompts, batch_size=4, **settings)
    in_pairs = generate(random_model, tokenizer, prompts, batch_size=3, **settings)
    assert one.token_ids == all_at_once.token_ids == in_pairs.token_ids
    assert one.texts == in_pairs.texts
    ids = torch.tensor([encode_prompt(tokenizer, prompts[2])])
    alone = denoise(random_model, ids, row_seeds=[2], max_new_tokens=10, temperature=0.8)
    assert one.token_ids[2] == alone[0].tolist()
    assert one.stats["prompts"] == 4
    assert one.stats["row_forwards"] == all_at_once.stats["row_forwards"]
    assert one.stats["decoding"] == Decoding(10, temperature=0.8).described()
    assert [row.token_ids for row in one.history] == one.token_ids


def test_generate_counts_the_tokens_of_text(random_model: Any, tokenizer: Any) -> None:
    random_model.config.stop_token_ids = list(range(6, 60))
    result = generate(random_model, tokenizer, ["one", "two", "three"], max_new_tokens=12)
    stops = stop_token_ids(random_model.config)
    by_hand = 0
    for ids in result.token_ids:
        places = [place for place, token in enumerate(ids) if token in stops]
        by_hand += places[0] + 1 if places else len(ids)
    assert result.stats["tokens"] == by_hand < 36


def test_one_string_is_not_a_list_of_prompts(random_model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="list of prompts"):
        generate(random_model, tokenizer, "hello")


def test_a_prompt_too_long_for_the_model_is_named(random_model: Any, tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"prompt 1: .*exceed the model's 256"):
        generate(random_model, tokenizer, ["short", "x" * 250], max_new_tokens=16)
