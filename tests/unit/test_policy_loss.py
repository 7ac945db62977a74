"""The policy objective: the golden loss and gradient, numbers by hand, and what methods have in common."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.likelihood import Likelihood, View, estimate
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.rl.policy_loss import MAX_LOG_RATIO, PolicyObjective, kl_estimate, policy_terms, rows_counted
from remask.rl.presets import ALIASES, PRESETS, resolve


def likelihood(*rows: list[float]) -> tuple[Likelihood, Tensor]:
    """Token log-likelihoods as given, right-padded with what is not scored."""
    width = max(map(len, rows))
    token = torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
    scored = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return Likelihood(token, token.sum(-1), scored.sum(-1)), scored


def sequences(values: list[float], n: int) -> tuple[Likelihood, Tensor]:
    value = torch.tensor(values, dtype=torch.float64)
    token = (value / n)[:, None].expand(-1, n)
    return Likelihood(token, value, torch.full((len(values),), n)), torch.ones_like(token, dtype=torch.bool)


@pytest.mark.shared
def test_golden_loss_and_gradient(shared: Path) -> None:
    cases = json.loads((shared / "golden" / "espo.json").read_text())["policy_loss"]
    assert len(cases) > 1
    for case in cases:
        n = case["completion_length"]
        objective = replace(
            resolve("espo"), clip_low=case["epsilon"], clip_high=case["epsilon"], kl_weight=case["beta"]
        )
        new, scored = sequences(case["elbo_new"], n)
        new = replace(new, sequence=new.sequence.requires_grad_())
        old, reference = (sequences(case[name], n)[0] for name in ("elbo_old", "elbo_ref"))
        advantage = torch.tensor(case["advantages"], dtype=torch.float64)
        loss = policy_terms(objective, advantage[:, None], new, old, reference, scored).row.mean()
        (gradient,) = torch.autograd.grad(loss, new.sequence)
        assert loss.item() == pytest.approx(case["loss"], rel=1e-4)
        assert gradient.tolist() == pytest.approx(case["grad_elbo_new"], rel=1e-4)


def test_kl_by_hand() -> None:
    d = torch.tensor([0.0, 0.5, -1.0])
    assert kl_estimate("k1", d).tolist() == [0.0, 0.5, -1.0]
    assert kl_estimate("k2", d).tolist() == [0.0, 0.125, 0.5]
    assert kl_estimate("k3", d).tolist() == pytest.approx([0.0, math.exp(-0.5) - 0.5, math.e - 2])
    assert kl_estimate("none", d).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("name", "forward", "backward"), [("k1", 0, 0), ("k2", 1, 0), ("k3", 0, 1)])
def test_what_each_kl_loss_has_for_a_gradient(name: str, forward: int, backward: int) -> None:
    """Exactly, over all outcomes of a three-way choice: none, that of KL(π ‖ π_ref), that of KL(π_ref ‖ π)."""
    logits = torch.tensor([0.5, -0.3, 1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.2, 0.9, -0.4], dtype=torch.float64).log_softmax(-1)
    policy = logits.log_softmax(-1)
    loss = (policy.detach().exp() * kl_estimate(name, policy - reference)).sum()  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    kl = forward * (policy.exp() * (policy - reference)).sum() + backward * -(reference.exp() * policy).sum()
    (expected,) = torch.autograd.grad(kl, logits)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", PRESETS)
def test_where_nothing_has_moved_ratios_are_one_and_kl_is_zero(name: str) -> None:
    value, scored = likelihood([-1.0, -2.5, -0.125], [-4.0, -0.5])
    terms = policy_terms(PRESETS[name], torch.tensor([0.3, -0.7])[:, None], value, value, value, scored)
    assert (terms.ratio == 1).all()
    assert (terms.kl == 0).all()
    assert not terms.clipped_low.any()
    assert not terms.clipped_high.any()


@pytest.mark.parametrize("name", PRESETS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """In double precision, through the rule that combines draws, for answers pushed up and down."""
    objective, generator = PRESETS[name], torch.Generator().manual_seed(0)
    scored = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    draws = []
    for _ in range(2):
        view = View(torch.zeros(2, 5).long(), scored & (torch.rand(2, 5, generator=generator) < 0.8), torch.rand(2, 5))
        draws.append((view,))
    values = [-torch.rand(2, 5, generator=generator, dtype=torch.float64) - 0.5 for _ in draws]
    old, reference = (-torch.rand(2, 5, generator=generator, dtype=torch.float64) * scored for _ in range(2))
    advantage = torch.tensor([[1.0], [-1.5]], dtype=torch.float64).expand(2, 5)
    combine, group = objective.combine(advantage), torch.tensor([0.7, 1.2], dtype=torch.float64)

    def loss(*read: Tensor) -> Tensor:
        token = combine([value * view.scored for value, (view,) in zip(read, draws, strict=True)], draws) / 10
        current, before, base = (Likelihood(t, t.sum(-1), scored.sum(-1)) for t in (token, old / 10, reference / 10))
        return policy_terms(objective, advantage, current, before, base, scored, group).row.sum()

    leaves = tuple(value.requires_grad_() for value in values)
    assert torch.autograd.gradcheck(loss, leaves)
    assert sum(gradient.abs().sum().item() for gradient in torch.autograd.grad(loss(*leaves), leaves)) > 0


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.level != "none"])
def test_the_gradient_raises_what_was_good(name: str) -> None:
    value, scored = likelihood([-1.0, -2.0], [-3.0, -1.0])
    token = value.token.clone().requires_grad_()
    current = Likelihood(token, token.sum(-1), value.scored)
    policy_terms(PRESETS[name], torch.tensor([1.0, -1.0])[:, None], current, value, value, scored).row.sum().backward()
    assert token.grad is not None
    assert (token.grad[0] < 0).all()
    assert (token.grad[1] > 0).all()


def test_wd1s_gradient_by_hand_on_two_completions() -> None:
    """Minimising −Σ_i w_i·ℓ_i, w = softmax(A) − softmax(−A): the better answer's ℓ rises at the rate of its weight."""
    share = (math.e - 1) / (math.e + 1)
    value, scored = likelihood([-1.0, -2.0], [-3.0, -1.0])
    token = value.token.clone().requires_grad_()
    current = Likelihood(token, token.sum(-1), value.scored)
    advantage = torch.tensor([[-share], [share]])
    policy_terms(PRESETS["wd1"], advantage, current, None, None, scored).row.sum().backward()
    assert token.grad is not None
    assert token.grad.tolist() == [pytest.approx([share, share]), pytest.approx([-share, -share])]


def test_clipping_by_hand() -> None:
    """ε = 0.2 below, 0.5 above; log-ratios ±1 over one token. Only what would go further is cut off."""
    objective = PolicyObjective(kl="none", clip_low=0.2, clip_high=0.5)
    new, scored = likelihood([0.0], [0.0], [0.0], [0.0])
    old, _ = likelihood([-1.0], [-1.0], [1.0], [1.0])
    terms = policy_terms(objective, torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None], new, old, None, scored)
    assert terms.row.tolist() == pytest.approx([-1.5, math.e, -1 / math.e, 0.8])
    assert terms.clipped_high.tolist() == [True, False, False, False]
    assert terms.clipped_low.tolist() == [False, False, False, True]


@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "none"])
@pytest.mark.parametrize("normaliser", ["sequences", "tokens"])
def test_levels_coincide_for_answers_of_one_token(kl: str, normaliser: str) -> None:
    new, scored = likelihood([-0.5], [-1.5], [-2.0])
    old, _ = likelihood([-0.75], [-1.0], [-2.5])
    reference, _ = likelihood([-1.0], [-1.25], [-1.5])
    rows = [
        policy_terms(
            PolicyObjective(level=level, kl=kl, kl_weight=0.3, normaliser=normaliser),  # type: ignore[arg-type]
            torch.tensor([[1.0], [-0.5], [0.25]]),
            new,
            old,
            reference,
            scored,
        ).row
        for level in ("token", "sequence", "whole")
    ]
    assert rows[0].tolist() == pytest.approx(rows[1].tolist())
    assert rows[0].tolist() == pytest.approx(rows[2].tolist())


def of_tokens(token: Tensor) -> Likelihood:
    return Likelihood(token, token.sum(-1), torch.full((len(token),), token.shape[1]))


def test_an_answers_ratio_is_the_geometric_mean_of_its_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    new, old = (of_tokens(-torch.rand(3, 5, generator=generator)) for _ in range(2))
    scored, advantage = torch.ones(3, 5, dtype=torch.bool), torch.ones(3)
    mean, product, each = (
        policy_terms(PolicyObjective(level=level, kl="none"), advantage[:, None], new, old, None, scored).ratio  # type: ignore[arg-type]
        for level in ("sequence", "whole", "token")
    )
    assert torch.allclose(mean, each.reshape(3, 5).log().mean(-1).exp())
    assert (mean < each.reshape(3, 5).mean(-1)).all()
    assert torch.allclose(product, each.reshape(3, 5).prod(-1))


@pytest.mark.parametrize(("moved", "same"), [(0.0, True), (0.1, False)])
def test_levels_share_their_gradient_until_the_policy_moves(moved: float, same: bool) -> None:
    """At ρ = 1 every token has A/n at either level; after that its own ratio's share, or all the same."""
    gradients = []
    for level in ("sequence", "token"):
        token = torch.tensor([[-1.0, -0.5, -2.0]], requires_grad=True)
        old = of_tokens(token.detach() - moved * torch.tensor([[1.0, -1.0, 0.5]]))
        objective = PolicyObjective(level=level, kl="none")  # type: ignore[arg-type]
        scored = torch.ones(1, 3, dtype=torch.bool)
        policy_terms(objective, torch.tensor([0.7])[:, None], of_tokens(token), old, None, scored).row.sum().backward()
        assert token.grad is not None
        gradients.append(token.grad)
    assert torch.allclose(gradients[0], gradients[0][:, :1].expand(1, 3))
    assert torch.allclose(*gradients) == same


@pytest.mark.parametrize("name", PRESETS)
def test_padding_and_batch_mates_change_nothing(name: str) -> None:
    short, longer = [-1.0, -0.5], [-2.0, -0.25, -0.75]
    both, scored = likelihood(short, longer)
    alone, own = likelihood(short)
    moved = replace(both, token=both.token * 0.9, sequence=both.sequence * 0.9)
    moved_alone = replace(alone, token=alone.token * 0.9, sequence=alone.sequence * 0.9)
    together = policy_terms(PRESETS[name], torch.tensor([0.4, -0.4])[:, None], both, moved, moved, scored)
    single = policy_terms(PRESETS[name], torch.tensor([0.4])[:, None], alone, moved_alone, moved_alone, own)
    assert together.row[0].item() == pytest.approx(single.row.item())
    assert together.kl[0].item() == pytest.approx(single.kl.item())


def test_normalisers_by_hand() -> None:
    _, scored = likelihood([0.0, 0.0, 0.0], [0.0], [0.0, 0.0], [0.0])
    counted = torch.tensor([True, True, False, True])
    counts = {name: rows_counted(PolicyObjective(normaliser=name), counted, scored, 2).item() for name in NORMALISERS}
    assert counts == {"sequences": 3, "tokens": 5, "groups": 1.5}


NORMALISERS = ("sequences", "tokens", "groups")


def test_a_token_level_row_is_the_mean_or_the_sum_of_its_tokens() -> None:
    new, scored = likelihood([0.0, 0.0])
    old, _ = likelihood([-0.1, 0.1])
    mean, total = (
        policy_terms(
            PolicyObjective(level="token", kl="none", normaliser=name),
            torch.tensor([1.0])[:, None],
            new,
            old,
            None,
            scored,
        ).row.item()
        for name in ("sequences", "tokens")
    )
    assert mean == pytest.approx(-(math.exp(0.1) + math.exp(-0.1)) / 2)
    assert total == pytest.approx(2 * mean)


def test_weighted_likelihoods_over_tokens_are_the_mean_of_their_tokens() -> None:
    """−A·ℓ is a sum over an answer's tokens already: two answers of A = −1, ℓ = −1.5 and −4 over 2 + 1 tokens."""
    value, scored = likelihood([-1.0, -0.5], [-4.0])
    objective = PolicyObjective(level="none", kl="none", normaliser="tokens")
    rows = policy_terms(objective, torch.tensor([-1.0, -1.0])[:, None], value, None, None, scored).row
    count = rows_counted(objective, torch.tensor([True, True]), scored, 2)
    assert (rows.sum() / count).item() == pytest.approx((-1.5 - 4) / 3)


def test_ratios_beyond_all_measure_are_cut_and_counted() -> None:
    new, scored = likelihood([0.0], [0.0])
    old, _ = likelihood([-1000.0], [-1.0])
    terms = policy_terms(PolicyObjective(kl="none"), torch.tensor([-1.0, -1.0])[:, None], new, old, None, scored)
    assert torch.isfinite(terms.row).all()
    assert terms.cut.tolist() == [True, False]
    assert terms.ratio[0].item() == pytest.approx(math.exp(MAX_LOG_RATIO))


def test_the_presets_are_those_of_the_papers() -> None:
    """The table of the methods: each choice that is not ESPO's own."""
    espo = PRESETS["espo"]
    assert (espo.likelihood, espo.draws, espo.scope, espo.level) == ("elbo_coupled", 2, "canvas", "sequence")
    assert (espo.clip_low, espo.clip_high, espo.kl, espo.kl_weight) == (0.2, 0.2, "k2", 0.01)
    d1 = PRESETS["diffu-grpo"]
    assert (d1.likelihood, d1.level, d1.clip_low, d1.kl, d1.kl_weight) == ("mean_field", "token", 0.5, "k3", 0.04)
    assert (d1.prompt_mask, d1.fresh_noise, d1.advantage) == (0.15, True, "mean")
    coder = PRESETS["coupled-grpo"]
    assert (coder.likelihood, coder.clip_high, coder.kl, coder.kl_weight) == ("coupled", 0.5, "k3", 0.01)
    assert coder.advantage == "leave_one_out"
    wd1 = PRESETS["wd1"]
    assert (wd1.likelihood, wd1.level, wd1.kl, wd1.advantage) == ("mean_field", "none", "none", "softmax")
    square = {(PRESETS[n].level, PRESETS[n].likelihood) for n in SQUARE}
    assert len(square) == 4
    for name in SQUARE:
        same = replace(PRESETS[name], level="sequence", likelihood="elbo_coupled", draws=2, prompt_mask=0.0)
        assert same == espo


def test_the_presets_on_trajectories_are_those_of_the_papers() -> None:
    d2, blocks, tracerl, cj = (PRESETS[name] for name in ("d2", "tracerl-blocks", "tracerl", "cj-grpo"))
    agrpo, just, sepo = (PRESETS[name] for name in ("agrpo", "justgrpo", "sepo"))
    assert (d2.segments, d2.clip_high, d2.kl_weight, d2.kl_anchor) == (16, 0.5, 0.04, "reference")
    for one in (blocks, tracerl):
        assert (one.clip_low, one.kl, one.kl_weight, one.kl_anchor, one.normaliser) == (
            0.2,
            "k3",
            0.01,
            "old",
            "tokens",
        )
    assert (tracerl.steps_together, tracerl.unit, tracerl.advantage) == (8, "view", "normalised_population")
    assert (cj.steps_together, cj.segments, cj.unit, cj.normaliser) == (1, 0, "view", "sequences")
    assert (agrpo.pick, agrpo.clip_high, agrpo.kl, agrpo.unit) == (24, 0.2, "none", "view")
    assert (just.likelihood, just.scope, just.kl, just.normaliser) == ("left_to_right", "canvas", "none", "tokens")
    assert (sepo.likelihood, sepo.level, sepo.kl) == ("pseudo", "token", "none")


def test_the_presets_of_whole_answers_are_those_of_the_papers() -> None:
    spg, stable, ebpo, gdpo = (PRESETS[name] for name in ("spg", "stabledrl", "ebpo", "gdpo"))
    for one in (spg, stable):
        assert (one.likelihood, one.draws, one.prompt_mask, one.advantage) == ("block_random", 2, 0.15, "mean")
        assert (one.negatives, one.power, one.power_share, one.kl) == ("power", 1.5, 0.5, "none")
    assert (spg.level, spg.normaliser, spg.uses_old) == ("none", "tokens", False)
    assert (stable.loss, stable.weight_cap, stable.level, stable.normaliser) == (
        "self_normalised",
        5,
        "sequence",
        "sequences",
    )
    assert (ebpo.likelihood, ebpo.draws, ebpo.level, ebpo.clip_low) == ("elbo", 16, "whole", 0.2)
    assert (gdpo.likelihood, gdpo.draws, gdpo.level, gdpo.kl) == ("elbo_gauss", 2, "sequence", "none")
    for name, likelihood, level in (("trajectory-balance", "trajectory", "whole"), ("trafl", "elbo", "sequence")):
        one = PRESETS[name]
        assert (one.likelihood, one.level, one.loss, one.kl_anchor) == (likelihood, level, "square", "reference")
        assert (one.advantage, one.uses_old) == ("mean", False)


SQUARE = ("espo", "token-elbo", "sequence-mean-field", "token-mean-field")


def test_names_of_autoregressive_methods() -> None:
    for alias, name in ALIASES.items():
        assert resolve(alias) == resolve(name)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("espoo", {}, "unknown objective 'espoo'.*espo, diffu-grpo"),
        ("espo", {"lvel": "token"}, "lvel: not a choice"),
        ("espo", {"draws": 0}, "draws = 0"),
        ("espo", {"clip_low": -0.1}, "clip_low = -0.1"),
        ("espo", {"kl_weight": math.nan}, "kl_weight = nan"),
        ("espo", {"kl_weight": math.inf}, "kl_weight is infinite"),
        ("espo", {"prompt_mask": 0.15}, "only mean_field and block_random mask the prompt"),
        ("diffu-grpo", {"prompt_mask": 1.0}, "below 1"),
        ("espo", {"advantage": "softmax"}, "set choices.level to none"),
        ("sequence-mean-field", {"prompt_mask": 0.0, "draws": 2}, "every draw of mean_field is the same"),
    ],
)
def test_choices_that_do_not_fit(name: str, choices: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(name, **choices)


def test_tokens_have_advantages_of_their_own_at_their_level() -> None:
    """−ρ·A of each token by hand, averaged over the answer: ρ = e^0.1, 1; A = 1, −2."""
    new, scored = likelihood([-0.4, -1.0])
    old, _ = likelihood([-0.5, -1.0])
    advantage = torch.tensor([[1.0, -2.0]])
    terms = policy_terms(PolicyObjective(level="token", kl="none"), advantage, new, old, None, scored)
    assert terms.row.item() == pytest.approx((-math.exp(0.1) + 2) / 2, rel=1e-6)
    for level in ("sequence", "whole", "none"):
        with pytest.raises(UserError, match=f"different advantages, and at level {level}"):
            policy_terms(PolicyObjective(level=level, kl="none"), advantage, new, old, None, scored)  # type: ignore[arg-type]


def test_an_objective_may_combine_draws_otherwise_where_answers_are_to_become_less_likely(random_model: Any) -> None:
    """The mean where A > 0, the smallest draw elsewhere; the gradient draw by draw is the whole one's."""

    class Pessimist(PolicyObjective):
        def combine(self, advantage: Tensor) -> Any:
            def of(values: Any, draws: Any = ()) -> Tensor:
                stacked = torch.stack(list(values))
                return torch.where(advantage > 0, stacked.mean(0), stacked.amin(0))

            return of

    objective, generator = Pessimist(draws=3, level="none", kl="none"), torch.Generator().manual_seed(0)
    ids = torch.randint(5, 200, (2, 8), generator=generator)
    answer = (torch.arange(8) > 2).expand(2, 8)
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer)
    noise = [Noise.at(torch.rand(2, generator=generator), torch.rand(2, 8, generator=generator)) for _ in range(3)]
    draws = objective.estimator.draws(canvas, noise, 1)
    advantage = torch.tensor([[1.0], [-1.0]]).expand(2, 8)
    combine = objective.combine(advantage)

    def loss_of(current: Likelihood) -> Tensor:
        return policy_terms(objective, advantage, current, None, None, answer).row.sum()

    found = []
    for whole in (True, False):
        random_model.zero_grad()
        if whole:
            loss = loss_of(estimate(random_model, canvas, draws, combine))
        else:
            reader = ModelReader(random_model)
            loss = draw_by_draw(reader, canvas, draws, loss_of, backward=Tensor.backward, combine=combine)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in random_model.parameters() if p.grad is not None])
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
    mean = estimate(random_model, canvas, draws).token
    other = estimate(random_model, canvas, draws, combine).token
    assert torch.equal(mean[0], other[0]) or torch.allclose(mean[0], other[0])
    assert (other[1] < mean[1]).any()
