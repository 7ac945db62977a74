"""Preference optimisation: the loss by hand, what noise policy and reference share, and the pairs people have."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remask.config import (
    CanvasConfig,
    DpoConfig,
    LoraConfig,
    PreferenceChoicesConfig,
    PreferenceEngineConfig,
    dump,
    load,
)
from remask.data.canvas import Fill
from remask.data.collate import Visit
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import Likelihood, estimate
from remask.diffusion.reader import LogitsReader
from remask.errors import UserError
from remask.preference.data import (
    Pair,
    PairBatch,
    PairCollator,
    PairExample,
    batch_of,
    build_pairs,
    load_pairs,
    pair_example,
)
from remask.preference.loss import PreferenceObjective, PreferenceTerms, measured, preference_terms
from remask.preference.presets import resolve
from remask.tasks import get
from remask.tasks.generator import GeneratedTask

PLAIN = PreferenceObjective(beta=0.5, sft_weight=0.0)
USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TWO, THREE = ({"role": "assistant", "content": answer} for answer in ("2", "3"))
GOOD = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}


def said(text: str) -> dict[str, str]:
    """The assistant's turn."""
    return {"role": "assistant", "content": text}


def likelihood(values: list[float], scored: list[int]) -> Likelihood:
    """Answers' log-likelihoods, spread evenly over their tokens; the chosen ones first."""
    n = torch.tensor(scored)
    token = (torch.tensor(values) / n)[:, None] * (torch.arange(int(n.max())) < n[:, None])
    return Likelihood(token, torch.tensor(values), n)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# ---- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smoothing", "sft_weight"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.05)])
def test_loss_and_gradient_by_hand(smoothing: float, sft_weight: float) -> None:
    """Two pairs, β = ½: rewards ½·(2, −1) and ½·(−3, −1), so margins 1.5 + … = 2.5 and 0."""
    objective = replace(PLAIN, label_smoothing=smoothing, sft_weight=sft_weight)
    current = likelihood([-8.0, -5.0, -9.0, -6.0], [4, 5, 3, 2])
    current = replace(current, sequence=current.sequence.requires_grad_())
    reference = likelihood([-10.0, -4.0, -6.0, -5.0], [4, 5, 3, 2])
    terms = preference_terms(objective, current, reference)
    assert terms.reward_chosen.tolist() == [1.0, -0.5]
    assert terms.reward_rejected.tolist() == [-1.5, -0.5]
    assert terms.margin.tolist() == [2.5, 0.0]
    assert terms.right.tolist() == [1.0, 0.5]
    by_hand = [
        -(1 - smoothing) * math.log(sigmoid(m)) - smoothing * math.log(sigmoid(-m)) + sft_weight * nll
        for m, nll in ((2.5, 8 / 4), (0.0, 5 / 5))
    ]
    assert terms.pair.tolist() == pytest.approx(by_hand)
    (gradient,) = torch.autograd.grad(terms.pair.sum(), current.sequence)
    pull = [0.5 * ((1 - smoothing) * sigmoid(-m) - smoothing * sigmoid(m)) for m in (2.5, 0.0)]
    expected = [-pull[0] - sft_weight / 4, -pull[1] - sft_weight / 5, pull[0], pull[1]]
    assert gradient.tolist() == pytest.approx(expected)


def test_length_normalised_by_hand() -> None:
    current, reference = likelihood([-8.0, -9.0], [4, 3]), likelihood([-10.0, -6.0], [4, 3])
    terms = preference_terms(replace(PLAIN, length_normalised=True), current, reference)
    assert terms.reward_chosen.item() == pytest.approx(0.5 * 2 / 4)
    assert terms.reward_rejected.item() == pytest.approx(0.5 * -3 / 3)
    assert terms.pair.item() == pytest.approx(-math.log(sigmoid(0.25 + 0.5)))


def test_a_huge_margin_is_finite() -> None:
    current, zero = likelihood([-1e4, -1.0, -1.0, -1e4], [1, 1, 1, 1]), likelihood([0.0] * 4, [1, 1, 1, 1])
    terms = preference_terms(replace(PLAIN, label_smoothing=0.1), current, zero)
    assert torch.isfinite(terms.pair).all()


def test_what_is_measured_of_a_pair() -> None:
    current, reference = likelihood([-8.0, -9.0], [4, 3]), likelihood([-10.0, -6.0], [4, 3])
    values = measured(preference_terms(PLAIN, current, reference), current)
    assert values["elbo_per_token_chosen"].tolist() == [-2.0]
    assert values["elbo_per_token_rejected"].tolist() == [-3.0]
    assert values["accuracy"].tolist() == [1.0]
    assert values["margin"].item() == pytest.approx(values["reward_chosen"].item() - values["reward_rejected"].item())


# ---- presets -------------------------------------------------------------------------------------------------------


def test_the_naive_preset_differs_in_its_estimate_alone() -> None:
    vrpo, naive = resolve("vrpo"), resolve("dpo")
    assert (vrpo.likelihood, vrpo.draws, vrpo.shared_noise) == ("elbo", 8, True)
    assert replace(naive, draws=8, shared_noise=True) == vrpo
    assert (vrpo.beta, vrpo.sft_weight) == (0.2, 0.05)  # LLaDA 1.5, appendix D.3


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("vrdo", {}, "unknown objective 'vrdo'; the presets are vrpo, dpo"),
        ("vrpo", {"drawz": 2}, "drawz: not a choice"),
        ("vrpo", {"draws": 0}, "choices.draws = 0"),
        ("vrpo", {"beta": 0.0}, "choices.beta = 0.0"),
        ("vrpo", {"beta": math.nan}, "choices.beta = nan"),
        ("vrpo", {"sft_weight": -1.0}, "choices.sft_weight"),
        ("vrpo", {"label_smoothing": 0.5}, "choices.label_smoothing"),
        ("vrpo", {"likelihood": "mean_field"}, "every draw of mean_field is the same"),
    ],
)
def test_choices_that_make_no_sense(name: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(name, **choices)


def test_dump_then_load_is_the_identity(tmp_path: Path) -> None:
    config = DpoConfig(
        objective="dpo",
        on_bad_row="skip",
        choices=PreferenceChoicesConfig(likelihood="elbo_coupled", draws=3, beta=0.1, shared_noise=True),
        canvas=CanvasConfig(fill="none"),
        lora=LoraConfig(rank=8),
        trainer=PreferenceEngineConfig(backward="whole", eval_draws=2),
    )
    path = tmp_path / "dpo.yaml"
    path.write_text(dump(config))
    assert load(DpoConfig, path) == config
    assert config.choices.given() == {"likelihood": "elbo_coupled", "draws": 3, "beta": 0.1, "shared_noise": True}


# ---- estimates -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tokenizer: Any) -> list[Pair]:
    """Three pairs of unequal lengths."""
    texts = [("say a", "aaaa", "bb"), ("say something", "x", "something longer"), ("?", "yes, of course", "no")]
    examples = [
        PairExample(({"role": "user", "content": p},), said(w), said(r), f"row {i}")
        for i, (p, w, r) in enumerate(texts)
    ]
    return build_pairs(examples, tokenizer, max_length=100, over_long="error", on_bad_row="error").rows


def collator(fill: str = "batch", seed: int = 0, draws: int = 2, shared_noise: bool = True) -> PairCollator:
    return PairCollator(Fill.parse(fill), 0, 100, seed, draws, shared_noise)


def laid(pairs: list[Pair], collate: PairCollator, *, of: list[int] | None = None, epoch: int = 0) -> PairBatch:
    """The pairs of the given indices, each on its own visit."""
    members = range(len(pairs)) if of is None else of
    visits = [Visit(i, epoch, epoch * len(pairs) + i) for i in members]
    return batch_of(collate([(pairs[i], visit) for i, visit in zip(members, visits, strict=True)]), torch.device("cpu"))


def terms_of(
    objective: PreferenceObjective, policy: Any, reference: Any, batch: PairBatch, mask_id: int
) -> PreferenceTerms:
    def read(model: Any, noise: Any) -> Likelihood:
        return estimate(model, batch.canvas, ESTIMATORS[objective.likelihood].draws(batch.canvas, noise, mask_id))

    with torch.no_grad():
        known = read(reference, batch.reference_noise)
    return preference_terms(objective, read(policy, batch.noise), known)


@pytest.fixture
def moved(random_model: Any) -> Any:
    """The random model after a small change of all its weights."""
    model = copy.deepcopy(random_model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model


@pytest.mark.parametrize("likelihood_name", ["elbo", "elbo_coupled"])
def test_at_the_start_the_margin_is_zero_exactly_if_noise_is_shared(
    likelihood_name: Any, random_model: Any, pairs: list[Pair], tokenizer: Any
) -> None:
    objective = replace(PLAIN, likelihood=likelihood_name)
    same = copy.deepcopy(random_model)

    def start(shared_noise: bool) -> PreferenceTerms:
        batch = laid(pairs, collator(shared_noise=shared_noise))
        return terms_of(objective, random_model, same, batch, tokenizer.mask_token_id)

    shared, own = start(True), start(False)
    assert (shared.margin == 0).all()
    assert (shared.right == 0.5).all()
    assert (shared.pair == torch.tensor(2.0).log()).all()
    assert (own.margin != 0).all()
    assert ((own.pair - math.log(2)).abs() > 0.01).all()


def test_a_step_raises_the_chosen_answer_over_the_rejected(
    random_model: Any, pairs: list[Pair], tokenizer: Any
) -> None:
    batch, mask_id = laid(pairs, collator(draws=8)), tokenizer.mask_token_id
    policy = copy.deepcopy(random_model)
    terms_of(PLAIN, policy, random_model, batch, mask_id).pair.sum().backward()
    with torch.no_grad():
        for weight in policy.parameters():
            assert weight.grad is not None
            weight -= 1e-4 * weight.grad
    after = terms_of(PLAIN, policy, random_model, batch, mask_id)
    assert (after.margin > 0).all()
    assert (after.pair < math.log(2)).all()


def test_draw_by_draw_gives_the_gradient_of_all_draws_at_once(
    moved: Any, random_model: Any, pairs: list[Pair], tokenizer: Any
) -> None:
    objective = replace(PLAIN, sft_weight=0.3, label_smoothing=0.1)
    batch, mask_id = laid(pairs, collator(draws=4)), tokenizer.mask_token_id
    whole = terms_of(objective, moved, random_model, batch, mask_id).pair.sum()
    whole.backward()
    expected = [weight.grad.clone() for weight in moved.parameters()]
    moved.zero_grad()
    draws = ESTIMATORS[objective.likelihood].draws(batch.canvas, batch.noise, mask_id)
    with torch.no_grad():
        known = estimate(random_model, batch.canvas, draws)

    def predict(ids: Tensor, attended: Tensor, positions: Tensor) -> Tensor:
        return moved(input_ids=ids, attention_mask=attended.long(), positions=positions).logits

    def loss_of(current: Likelihood) -> Tensor:
        return preference_terms(objective, current, known).pair.sum()

    parts = draw_by_draw(LogitsReader(predict), batch.canvas, draws, loss_of, backward=Tensor.backward)
    parts.backward()
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)
    for weight, gradient in zip(moved.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=5e-6)


@pytest.mark.slow
def test_shared_noise_and_more_draws_lower_the_variance_and_keep_the_mean(
    moved: Any, random_model: Any, pairs: list[Pair], tokenizer: Any
) -> None:
    """120 estimates of three margins; the variances' ratios are far from 1, the means within their errors."""

    def margins(draws: int, shared_noise: bool) -> Tensor:
        found = []
        for seed in range(10):
            collate = collator(seed=seed, draws=draws, shared_noise=shared_noise)
            # The same pairs as twelve visits of as many indices: noise of their own.
            items = [(pair, Visit(3 * i + j, 0, 3 * i + j)) for i in range(12) for j, pair in enumerate(pairs)]
            batch = batch_of(collate(items), torch.device("cpu"))
            with torch.no_grad():
                terms = terms_of(PLAIN, moved, random_model, batch, tokenizer.mask_token_id)
            found.append(terms.margin.reshape(12, 3))
        return torch.cat(found).double()

    one, eight, naive, naive_eight = (margins(*case) for case in ((1, True), (8, True), (1, False), (8, False)))
    assert (eight.var(0) < one.var(0) / 4).all()
    assert (one.var(0) < naive.var(0) / 2).all()
    assert (eight.var(0) < naive_eight.var(0) / 2).all()
    error = (eight.var(0) / 120).sqrt()
    for other in (one, naive, naive_eight):
        assert ((other.mean(0) - eight.mean(0)).abs() < 4 * (error + (other.var(0) / 120).sqrt())).all()


@pytest.mark.parametrize("fill", ["batch", "none", "multiple:8", "max"])
def test_a_pair_alone_is_as_beside_others(
    fill: str, moved: Any, random_model: Any, pairs: list[Pair], tokenizer: Any
) -> None:
    """Neither its mates nor their order changes its canvases, its noise or its loss."""
    collate = collator(fill, draws=3, shared_noise=False)
    together = terms_of(PLAIN, moved, random_model, laid(pairs, collate, of=[1, 0, 2]), tokenizer.mask_token_id)
    for place, i in enumerate([1, 0, 2]):
        alone = terms_of(PLAIN, moved, random_model, laid(pairs, collate, of=[i]), tokenizer.mask_token_id)
        torch.testing.assert_close(alone.pair[0], together.pair[place], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.margin[0], together.margin[place], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fill", "lengths"),
    [("none", "own"), ("batch", "the pair's longer row"), ("multiple:8", "eights"), ("max", "all of the canvas")],
)
def test_both_answers_are_filled_by_the_same_rule(fill: str, lengths: str, pairs: list[Pair]) -> None:
    batch = laid(pairs, collator(fill))
    rows = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    found = batch.canvas.supervised.sum(-1).tolist()
    own = [len(row.response) for row in rows]
    longer = [len(pair) - len(pair.chosen.prompt) for pair in pairs]
    expected = {
        "own": own,
        "the pair's longer row": longer * 2,
        "eights": [-(-n // 8) * 8 for n in own],
        "all of the canvas": [100 - len(row.prompt) for row in rows],
    }
    assert found == expected[lengths]
    filled = batch.canvas.supervised.clone()
    for b, row in enumerate(rows):
        filled[b, : len(row)] = False
    assert (batch.canvas.ids[filled] == 0).all()
    assert torch.equal(batch.canvas.supervised, batch.canvas.corruptible)


def test_noise_is_each_answers_own_and_says_nothing_of_the_reference(pairs: list[Pair]) -> None:
    shared, own = (laid(pairs, collator(draws=8, shared_noise=which)) for which in (True, False))
    assert shared.reference_noise is shared.noise
    t = torch.stack([noise.row_tau for noise in shared.noise])
    assert len(t.unique()) == t.numel()  # 8 draws of 6 answers
    scored = shared.canvas.supervised
    u = torch.cat([noise.u[scored] for noise in shared.noise])
    assert len(u.unique()) > 0.999 * u.numel()
    for one, other, reference in zip(shared.noise, own.noise, own.reference_noise, strict=True):
        assert torch.equal(one.row_tau, other.row_tau)
        assert torch.equal(one.u, other.u)
        assert not torch.isclose(other.row_tau, reference.row_tau).any()
        assert not torch.isclose(other.u[scored], reference.u[scored]).all(-1).any()


def test_times_of_the_reference_are_independent_of_the_policys(pairs: list[Pair]) -> None:
    """Neither nearer nor further by a constant: their distances round the circle are uniform."""
    collate, apart = collator(draws=1, shared_noise=False), []
    for epoch in range(30):
        batch = laid(pairs, collate, epoch=epoch)
        apart += ((batch.reference_noise[0].row_tau - batch.noise[0].row_tau) % 1).tolist()
    uniform = (np.arange(180) + 0.5) / 180
    assert np.abs(np.sort(apart) - uniform).max() < 0.12  # Kolmogorov and Smirnov's at 1 % of 180 numbers


@pytest.mark.parametrize("of_reference", [False, True])
def test_the_times_of_an_answers_draws_are_stratified(of_reference: bool, pairs: list[Pair]) -> None:
    """Eight times of one answer leave no gap wider than a quarter."""
    for seed in range(20):
        batch = laid(pairs, collator(seed=seed, draws=8, shared_noise=not of_reference))
        t = torch.stack([noise.row_tau for noise in (batch.reference_noise if of_reference else batch.noise)])
        edges = torch.cat([torch.zeros(1, t.shape[1]), t.sort(0).values, torch.ones(1, t.shape[1])])
        assert edges.diff(dim=0).max() < 0.25


def test_every_epoch_has_new_noise(pairs: list[Pair]) -> None:
    first, second = (laid(pairs, collator(), epoch=epoch) for epoch in (0, 1))
    scored = first.canvas.supervised
    for one in first.noise:
        for other in second.noise:
            assert not torch.isclose(one.row_tau, other.row_tau).any()
            assert torch.isclose(one.u, other.u)[scored].float().mean() < 0.1


# ---- pairs people have ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (GOOD, (USER,)),
        ({"prompt": [SYSTEM, USER], "chosen": "2", "rejected": "3"}, (SYSTEM, USER)),
        ({"prompt": [USER], "chosen": [TWO], "rejected": [THREE]}, (USER,)),
        ({"chosen": [USER, TWO], "rejected": [USER, THREE], "score_chosen": 9.0}, (USER,)),
        ({"prompt": None, "chosen": [SYSTEM, USER, TWO], "rejected": [SYSTEM, USER, THREE]}, (SYSTEM, USER)),
        # ultrafeedback_binarized: the prompt stands beside the conversations that begin with it
        ({"prompt": "1+1?", "chosen": [USER, TWO], "rejected": [USER, THREE], "messages": [USER, TWO]}, (USER,)),
        ({"prompt": "1+1?", "chosen": [SYSTEM, USER, TWO], "rejected": [SYSTEM, USER, THREE]}, (SYSTEM, USER)),
        # the answer takes several turns of which the last is preferred
        ({"prompt": "1+1?", "chosen": [THREE, USER, TWO], "rejected": [THREE, USER, THREE]}, (USER, THREE, USER)),
        # hh-rlhf: whole conversations as text
        (
            {
                "chosen": "\n\nHuman: 1+1?\n\nAssistant: 3\n\nHuman: 1+1?\n\nAssistant: 2",
                "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3\n\nHuman: 1+1?\n\nAssistant: 3",
            },
            (USER, THREE, USER),
        ),
    ],
)
def test_every_format_of_pairs(row: dict[str, Any], messages: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (example,) = load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="error").examples
    assert example == PairExample(messages, TWO, THREE, f"{path}, line 1")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "mapping of columns"),
        ({"prompt": "1+1?", "chosen": "2"}, "no rejected among the columns prompt, chosen"),
        ({"prompt": "1+1?", "completion": "2"}, "no chosen and no rejected"),
        ({**GOOD, "chosen": "3"}, "chosen and rejected are the same"),
        ({**GOOD, "chosen": "3 \n"}, "chosen and rejected are the same"),
        ({**GOOD, "rejected": " "}, "rejected is empty"),
        ({**GOOD, "chosen": ""}, "chosen is empty"),
        ({**GOOD, "chosen": 2}, "chosen is neither text nor a list of messages"),
        ({**GOOD, "prompt": 2}, "prompt is neither text nor a list of messages"),
        ({"chosen": "2", "rejected": "3"}, "there is no prompt"),
        ({**GOOD, "prompt": " "}, "there is no prompt"),
        ({"prompt": [], "chosen": [TWO], "rejected": [THREE]}, "there is no prompt"),
        ({"chosen": [USER, TWO], "rejected": [SYSTEM, USER, THREE]}, "do not answer the same conversation"),
        ({"chosen": [USER], "rejected": [USER, THREE]}, "chosen does not end with an assistant's turn"),
        ({"chosen": [USER, TWO], "rejected": []}, "rejected does not end with an assistant's turn"),
        ({"chosen": [{"role": "robot", "content": "2"}], "rejected": [THREE]}, "unknown role 'robot'"),
        (
            {"prompt": "2+2?", "chosen": [USER, TWO], "rejected": [USER, THREE]},
            "prompt is not part of the conversation",
        ),
        ({"chosen": "\n\nHuman: 1+1?", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"}, "chosen does not end with"),
        ({"chosen": "\n\nHuman: 1?\n\nAssistant: 2", "rejected": "\n\nHuman: 2?\n\nAssistant: 3"}, "the same conver"),
    ],
)
def test_a_bad_pair_is_an_error_with_its_line_or_is_listed(row: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in (GOOD, row, GOOD)))
    with pytest.raises(UserError, match=said) as caught:
        load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="error")
    assert str(caught.value).startswith(f"{path}, line 2: ")
    loaded = load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="skip")
    assert [example.where for example in loaded.examples] == [f"{path}, line 1", f"{path}, line 3"]
    assert loaded.skipped == [str(caught.value)]


def test_a_file_of_bad_pairs_only_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "x"}))
    with pytest.raises(
        UserError, match=r"no usable rows \(.*no chosen and no rejected.*see the columns `remask dpo --help` lists"
    ):
        load_pairs(str(path), split="train", prompt_style="compact", on_bad_row="skip")


def test_over_long_pairs(tokenizer: Any) -> None:
    """A pair is as long as its longer row; cut to what fits, answers may become the same."""
    (short, _), (long, _) = pair_example(GOOD, "short"), pair_example({**GOOD, "chosen": "2" * 60}, "long")
    same, _ = pair_example({**GOOD, "chosen": "2" * 60 + "x", "rejected": "2" * 60 + "y"}, "same")
    limit = 30

    def build(*examples: PairExample, **settings: Any) -> Any:
        settings = {"over_long": "error", "on_bad_row": "error", **settings}
        return build_pairs(examples, tokenizer, max_length=limit, **settings)

    with pytest.raises(UserError, match=r"long: the row takes \d+ tokens, the canvas holds 30"):
        build(short, long)
    cut = build(short, long, over_long="truncate")
    assert (len(cut.rows), cut.truncated, cut.dropped) == (2, 1, 0)
    assert len(cut.rows[1].chosen) == limit
    assert cut.rows[1].chosen.prompt == cut.rows[1].rejected.prompt
    assert len(cut.rows[1].rejected) < limit
    dropped = build(short, long, over_long="drop")
    assert (len(dropped.rows), dropped.truncated, dropped.dropped) == (1, 0, 1)
    with pytest.raises(UserError, match="same: chosen and rejected are the same tokens in a canvas of 30"):
        build(short, same, over_long="truncate")
    skipped = build(short, same, over_long="truncate", on_bad_row="skip")
    assert (len(skipped.rows), len(skipped.skipped)) == (1, 1)
    with pytest.raises(UserError, match=r"none of \d+ rows can be used"):
        build(long, over_long="drop")
    with pytest.raises(UserError, match=r"long: the prompt takes \d+ tokens of a canvas of 4"):
        build_pairs([long], tokenizer, max_length=4, over_long="truncate", on_bad_row="error")


def test_generated_pairs_are_right_and_wrong(checked: Callable[[PairExample], tuple[bool, bool]]) -> None:
    source = "generated:sudoku+countdown:20:3"
    train, held_out = (
        load_pairs(source, split=split, prompt_style="compact", on_bad_row="error").examples
        for split in ("train", "validation")
    )
    assert len(train) == len(held_out) == 20
    assert all(checked(example) == (True, False) for example in [*train, *held_out])
    assert not {example.messages[-1]["content"] for example in train} & {
        example.messages[-1]["content"] for example in held_out
    }
    again = load_pairs(source, split="train", prompt_style="compact", on_bad_row="error").examples
    assert again == train


@pytest.fixture
def checked() -> Callable[[PairExample], tuple[bool, bool]]:
    """Whether the chosen and the rejected answer of a generated pair are right, by their task's grader."""
    problems = {}
    for name in ("sudoku", "countdown"):
        task = get(name)
        assert isinstance(task, GeneratedTask)
        for split in ("train", "validation"):
            for problem in task.generate(10, split=split, seed=3):  # type: ignore[arg-type]
                problems[task.prompt(problem, "compact")] = (task, problem)

    def check(example: PairExample) -> tuple[bool, bool]:
        task, problem = problems[example.messages[-1]["content"]]
        return tuple(task.grade(problem, one["content"]).correct for one in (example.chosen, example.rejected))

    return check
