"""Gradients of policy objectives beside the sampler's own, on a toy whose expected reward is written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_sampler_gradient import (
    END,
    MASK,
    PLACES,
    REWARD,
    THETA,
    TOKENS,
    Toy,
    by_likelihood,
    cosine,
    in_random_order,
    pairwise,
    slope,
)
from torch import Tensor, nn

from remask.analysis import policy_gradients
from remask.analysis.noisy_means import Moments, Products, figure
from remask.analysis.policy_gradients import (
    SAMPLER,
    FirstUpdate,
    Gathered,
    Meter,
    Sampled,
    held_against,
    kept_of,
    one_by_one,
)
from remask.models.prediction import Prediction, predicted
from remask.rl.presets import PRESETS
from remask.rl.prompts import Prompt, PromptOrder
from remask.rl.rollout import RolloutMaker
from remask.rl.rollout_rows import Layout
from remask.sampling import Decoding, run
from remask.sampling.engine import Answer, Request
from remask.sampling.generate import Row

ANSWERS, ROLLOUTS = 128, 16
NEVER = -60.0


class Model(nn.Module):
    """The toy as a model of Remask's, after a prompt of one token. It writes neither an end nor a mask."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(THETA.float().clone())
        self.head = nn.Linear(MASK + 1, MASK + 1, bias=False)
        self.head.weight = nn.Parameter(torch.eye(MASK + 1), requires_grad=False)
        self.config = SimpleNamespace(mask_token_id=MASK, eos_token_id=END, stop_token_ids=None)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any,
        positions: Tensor,
        clean: Any = None,
        answer: Any = None,
        **wanted: Any,
    ) -> Prediction:
        logits = pairwise(self.theta, input_ids[:, 1:])
        logits = nn.functional.pad(logits, (0, MASK + 1 - TOKENS), value=NEVER)
        return predicted(self.head, logits[positions[:, 1:]], **wanted)


class Writer:
    """Answers by the sampler."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def update(self, model: Any, version: int) -> None: ...

    def answer(self, requests: Sequence[Request], decoding: Decoding) -> list[Answer]:
        prompts = torch.tensor([request.prompt for request in requests])
        done = run(self.model, prompts, None, decoding, row_seeds=[request.seed for request in requests])
        rows = zip(done.ids.tolist(), done.revealed_at.tolist(), strict=True)
        return [Answer(Row(ids, steps, [], False), "", PLACES) for ids, steps in rows]


def in_table(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> Any:
    total = [REWARD[tuple(answer.row.token_ids)] for answer in answers]
    return SimpleNamespace(total=total, by_function={}, faults=[])


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gathered]:
    """All objectives' gradients on the same rollouts of one prompt, in random order at temperature 1."""
    model = Model()
    maker = RolloutMaker(
        Writer(model),
        SimpleNamespace(score=in_table, prefill=""),  # type: ignore[arg-type]
        Layout(MASK, [END], "canvas"),
        [Prompt("0", "", [0], {})],
        PromptOrder(1, per_rollout=1, seed=0),
        ANSWERS,
        Decoding(max_new_tokens=PLACES, temperature=1.0, reveal="random"),
        "leave_one_out",
        seed=0,
        batch_size=ANSWERS,
    )
    objectives = {"own": SAMPLER} | {name: PRESETS[name] for name in ("cj-grpo", "diffu-grpo", "espo", "token-elbo")}
    folder = str(tmp_path_factory.mktemp("trainer"))
    updates = {
        name: FirstUpdate(model, objective, maker, mask_id=MASK, batch_size=100, folder=folder)
        for name, objective in objectives.items()
    }
    rollouts = [Sampled(number, *maker.answered(number)) for number in range(ROLLOUTS)]
    found = {name: own for name, own, _ in one_by_one(model, updates, rollouts)}
    assert not list(Path(folder).iterdir())
    assert all(p.grad is None for p in model.parameters())
    assert all(len(own.kept) == ROLLOUTS for own in found.values())
    return found


def test_the_samplers_own_gradient_is_that_of_the_expected_reward(gathered: dict[str, Gathered]) -> None:
    """Along the enumerated slope each rollout has its length, within five standard errors; and nothing else is left."""
    truth = -slope(Toy(THETA), in_random_order)
    own = gathered["own"].matrix
    along = own @ truth / truth.norm()
    assert abs(along.mean() - truth.norm()) < 5 * along.std() / ROLLOUTS**0.5
    known = truth.expand(2, -1)
    products = Products((own @ own.T).numpy(), (known @ known.T).numpy(), (own @ known.T).numpy(), paired=False)
    found = figure(products, Moments.cosine)
    assert found.value == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("name", "likelihood"), [("diffu-grpo", "mean_field"), ("espo", "elbo")])
def test_others_have_the_cosine_that_is_worked_out(gathered: dict[str, Gathered], name: str, likelihood: Any) -> None:
    toy = Toy(THETA)
    expected = cosine(by_likelihood(toy, in_random_order, likelihood), slope(toy, in_random_order))
    found = held_against(name, gathered[name], gathered["own"], ANSWERS).cosine
    assert None not in (found.value, found.low, found.high)
    assert expected < 0.97
    assert found.low < expected < found.high < 1  # type: ignore[operator]


def test_a_trajectory_has_the_samplers_own_gradient(gathered: dict[str, Gathered]) -> None:
    found = held_against("cj-grpo", gathered["cj-grpo"], gathered["own"], ANSWERS)
    assert found.cosine.value == pytest.approx(1, abs=1e-5)
    assert found.relative.value == pytest.approx(
        held_against("own", gathered["own"], gathered["own"], ANSWERS).relative.value, rel=1e-3
    )
    # Three steps: read without gradient, then with it (3 each); of the sampler's own the last one is read once.
    assert found.forwards == 12
    assert gathered["own"].forwards == 11 * ANSWERS * ROLLOUTS
    assert gathered["diffu-grpo"].forwards == 3 * ANSWERS * ROLLOUTS
    assert found.compute.value == pytest.approx(12 / 11, rel=1e-3)


def test_at_the_first_update_a_ratio_of_tokens_has_the_gradient_of_a_ratio_of_answers(
    gathered: dict[str, Gathered],
) -> None:
    assert torch.allclose(gathered["espo"].matrix, gathered["token-elbo"].matrix, atol=1e-6)


def test_of_a_long_gradient_a_sketch_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = {"b": torch.arange(3.0), "a": torch.ones(2, 2)}
    assert kept_of(gradient).tolist() == [1, 1, 1, 1, 0, 1, 2]
    monkeypatch.setattr(policy_gradients, "MOST_KEPT", 6)
    assert len(kept_of(gradient)) == 6


def test_a_pass_with_gradient_counts_three_times() -> None:
    model, meter = Model(), Meter()
    ids, everywhere = torch.zeros(5, 1 + PLACES, dtype=torch.long), torch.ones(5, 1 + PLACES, dtype=torch.bool)
    with meter.of(model):
        model(ids, None, everywhere)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=None, positions=everywhere)
    model(ids, None, everywhere)
    assert meter.rows == 5 * 3 + 5
