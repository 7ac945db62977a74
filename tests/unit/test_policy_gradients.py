"""Gradients of policy objectives beside the sampler's own, on a toy whose expected reward is written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
    random_theta,
    slope,
)
from torch import Tensor, nn

from remask.analysis import policy_gradients
from remask.analysis.noisy_means import Moments, Products, figure
from remask.analysis.policy_gradients import (
    SAMPLER,
    FirstUpdate,
    Gathered,
    LaterUpdate,
    Meter,
    Sampled,
    held_against,
    kept_of,
    one_by_one,
)
from remask.analysis.policy_step import downhill, gains, length_of
from remask.models.prediction import Prediction, predicted
from remask.rl.groups import Group
from remask.rl.presets import PRESETS
from remask.rl.prompts import Prompt, PromptOrder
from remask.rl.rollout import RolloutMaker
from remask.rl.rollout_rows import Layout
from remask.sampling import Decoding, run
from remask.sampling.engine import Answer, Request
from remask.sampling.generate import Row

ANSWERS, ROLLOUTS = 96, 12
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


def maker_of(model: Model) -> RolloutMaker:
    """Rollouts of one prompt, in random order at temperature 1."""
    return RolloutMaker(
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


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gathered]:
    """All objectives' gradients on the same rollouts."""
    model = Model()
    maker = maker_of(model)
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


def test_after_a_move_ratios_count_and_weights_are_put_back(tmp_path: Path) -> None:
    """A ratio of tokens then weighs each token by its own, so that the gradients of both levels part. Without a clip
    or KL −A·ρ/n·Σ∇ℓ is what an answer adds at level sequence, with ρ = exp((ℓ − ℓ_old)/n), as worked out here by hand.
    """
    model = Model()
    maker, before = maker_of(model), model.theta.detach().clone()
    move = downhill({"theta": random_theta(8).float()}, 2.0)
    assert length_of(move) == pytest.approx(2)
    plain = replace(PRESETS["sequence-mean-field"], prompt_mask=0.0, kl="none", clip_low=1e9, clip_high=1e9)
    setting: dict[str, Any] = {"mask_id": MASK, "batch_size": ANSWERS, "folder": str(tmp_path), "move": move}
    sampled = Sampled(0, *maker.answered(0))
    found = LaterUpdate(model, plain, maker, **setting)(sampled)["theta"]
    assert torch.equal(model.theta, before)
    token = LaterUpdate(model, replace(plain, level="token"), maker, **setting)(sampled)["theta"]
    assert 0.5 < cosine(found, token) < 0.999
    ids = torch.tensor([answer.row.token_ids for group in sampled.groups for answer in group.answers])
    rewards = torch.tensor([REWARD[tuple(row)] for row in ids.tolist()])
    gain = (rewards - rewards.mean()) * ANSWERS / (ANSWERS - 1)

    def log_p(theta: Tensor) -> Tensor:
        logits = pairwise(theta, torch.full((1, PLACES), MASK)).log_softmax(-1).expand(ANSWERS, -1, -1)
        return logits.gather(-1, ids[..., None]).sum((1, 2))

    theta = (before + move["theta"]).requires_grad_()
    loss = -(gain * ((log_p(theta) - log_p(before)) / PLACES).exp()).mean()
    assert torch.allclose(found, torch.autograd.grad(loss, theta)[0], atol=1e-6)


def test_a_step_gains_what_the_reward_says() -> None:
    """Of two problems' answers one each is worth Σθ and Σθ/2: 0.1·4 before. Each θ moves by −0.2·(−1)/√4 = 0.1, and
    the problems' means by 0.2 and 0.1.
    """
    model = nn.Linear(4, 1, bias=False)
    nn.init.constant_(model.weight, 0.1)

    def answered() -> list[Group]:
        worth = model.weight.sum().item()
        return [Group(0, [], [worth, 0.0], {}), Group(1, [], [worth / 2, 0.0], {})]

    (gain,) = gains(model, {"own": {"weight": -torch.ones(1, 4)}}, {"own": 3.0}, 0.2, answered)
    assert (gain.name, gain.expected) == ("own", pytest.approx(0.6))
    assert gain.measured == pytest.approx(0.15)
    assert gain.low < 0.15 < gain.high
    assert torch.equal(model.weight, torch.full((1, 4), 0.1))


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
