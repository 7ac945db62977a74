"""The likelihood of the way an answer was written: parts by hand, the published objectives, and its identity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.likelihood import Likelihood, estimate
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader
from remask.diffusion.trajectory import Trajectory, parts_of, picked, total
from remask.errors import UserError
from remask.rl.policy_loss import PolicyObjective, policy_terms, rows_counted
from remask.rl.presets import PRESETS, resolve
from remask.sampling.denoise import run
from remask.sampling.schedule import Decoding

MASK = 1


def test_parts_by_hand() -> None:
    """Steps 4 0 9 0 4 and a token that was not written: by distinct steps, two of them together, in segments."""
    written = torch.tensor([[-1, 4, 0, 9, 0, 4, -1]])
    scored = written >= 0
    assert parts_of(written, scored, None).tolist() == [[0, 1, 0, 2, 0, 1, 0]]
    assert parts_of(written, scored, None, run=2).tolist() == [[0, 0, 0, 1, 0, 0, 0]]
    # 10 steps in 4 parts, cut at 0, 2, 5, 7: step 4 is in the second, step 9 in the last, none in the third.
    assert parts_of(written, scored, None, segments=4).tolist() == [[0, 1, 0, 2, 0, 1, 0]]
    block = torch.tensor([[-1, 0, 0, 0, 1, 1, 1]])
    assert parts_of(written, scored, block).tolist() == [[0, 1, 0, 2, 0, 1, 0]]


def test_views_show_what_was_there_before_the_step() -> None:
    """Answer tokens written at 1, 0, 1 and never (fill): first the second one on a bare canvas, then the others."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    answer, written = torch.tensor([[False, True, True, True, True]]), torch.tensor([[-1, 1, 0, 1, -1]])
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer, written)
    (first,), (second,) = Trajectory().draws(canvas, [], MASK)
    assert first.ids.tolist() == [[5, MASK, MASK, MASK, MASK]]
    assert first.scored.tolist() == [[False, False, True, False, False]]
    assert second.ids.tolist() == [[5, MASK, 7, MASK, MASK]]
    assert second.scored.tolist() == [[False, True, False, True, False]]
    with pytest.raises(UserError, match="at which step"):
        Trajectory().draws(replace(canvas, written=None), [], MASK)


def test_published_merging_of_steps(shared: Path) -> None:
    """TraceRL's shrink: equal parts have equal merged steps, in the same order."""
    for item in json.loads((shared / "golden" / "rl" / "tracerl.json").read_text())["cases"]["shrink"]["items"]:
        written = torch.tensor([item["step_map"]])
        found = parts_of(written, torch.ones_like(written, dtype=torch.bool), None, run=item["s"])[0].tolist()
        merged = sorted(set(item["merged"]))
        assert found == [merged.index(step) for step in item["merged"]]


@pytest.mark.shared
@pytest.mark.parametrize("part", ["views_whole", "views_blocks"])
def test_published_views(part: str, shared: Path) -> None:
    """The canvases and the scored places of TraceRL's two files, pads not scored."""
    case = json.loads((shared / "golden" / "rl" / "tracerl.json").read_text())["cases"][part]
    ids, prompt = torch.tensor(case["ids"]), case["prompt_length"]
    answer = torch.arange(ids.shape[1]).expand_as(ids) >= prompt
    steps = torch.tensor(case["step_map"])
    written = torch.cat([torch.full((len(ids), prompt), -1), steps], dim=1)
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer & (ids != case["pad_id"]), written)
    if part == "views_blocks":
        canvas = in_blocks(canvas, BlockCausal(case["block"], "answer"))
    wanted = {
        (tuple((torch.tensor(noisy)[-steps.shape[1] :]).tolist()), tuple(scored[prompt:]))
        for noisy, scored in zip(case.get("noisy") or case["ext"], case["scored"], strict=True)
    }
    found = set()
    for (view,) in Trajectory(run=case["s"]).draws(canvas, [], case["mask_id"]):
        for row in range(len(ids)):
            if view.scored[row].any():
                found.add((tuple(view.ids[row, prompt:].tolist()), tuple(view.scored[row, prompt:].tolist())))
    scored_of = lambda views: sorted(scored for _, scored in views)  # noqa: E731
    assert scored_of(found) == scored_of({(ids, tuple(map(bool, scored))) for ids, scored in wanted})


@pytest.mark.shared
def test_d2s_published_loss_and_gradient(shared: Path) -> None:
    """Σ over segments of the clipped ratio and k3 to the reference, over the answers' tokens."""
    case = json.loads((shared / "golden" / "rl" / "d2.json").read_text())
    segment, answer = torch.tensor(case["segment"]), torch.tensor(case["answer"]).bool()
    for published in case["runs"]:
        lp = torch.tensor(case["lp"], dtype=torch.float64, requires_grad=True)

        def own(values: Any) -> Tensor:
            stacked = torch.as_tensor(values, dtype=torch.float64) if not torch.is_tensor(values) else values
            return stacked.gather(1, segment[:, None]).squeeze(1) * answer

        def value(values: Any) -> Likelihood:
            token = own(values)
            return Likelihood(token, token.sum(-1), answer.sum(-1))

        objective = replace(
            PRESETS["d2"], clip_low=published["clip"], clip_high=published["clip"], kl_weight=published["beta"]
        )
        advantage = torch.tensor(case["adv"], dtype=torch.float64)[:, None]
        terms = policy_terms(objective, advantage, value(lp), value(case["old"]), value(case["reference"]), answer)
        loss = terms.row.sum() / answer.sum()
        assert loss.item() == pytest.approx(published["loss"], rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, lp)
        assert torch.allclose(gradient, torch.tensor(published["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-9)


@pytest.mark.shared
def test_tracerls_published_loss_and_gradient(shared: Path) -> None:
    """As its file for SDAR: Σ over tokens, the KL to the old policy, over rows times the padded length. (One log-ratio
    of 11.5 is cut there at 10, here at 20: a difference of 4e-9 in its gradient.)
    """
    case = json.loads((shared / "golden" / "rl" / "tracerl.json").read_text())["cases"]["policy_loss"]
    scored = torch.tensor(case["scored"]).bool()

    def value(values: Any) -> Likelihood:
        token = (values if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float64)) * scored
        return Likelihood(token, token.sum(-1), scored.sum(-1))

    for published in (r for r in case["runs"] if r["trainer"] == "sdar"):
        lp = torch.tensor(case["lp"], dtype=torch.float64, requires_grad=True)
        objective = replace(
            PRESETS["tracerl-blocks"],
            clip_low=published["eps"],
            clip_high=published["eps"],
            kl="k3" if published["k3"] else "k1",
            kl_weight=published["beta"],
        )
        advantage = torch.tensor(case["adv_token" if published["per_token_advantage"] else "adv"], dtype=torch.float64)
        advantage = advantage if published["per_token_advantage"] else advantage[:, None]
        terms = policy_terms(objective, advantage, value(lp), value(case["old"]), None, scored)
        loss = terms.row.sum() / scored.numel()
        assert loss.item() == pytest.approx(published["loss"], rel=1e-6)
        (gradient,) = torch.autograd.grad(loss, lp)
        assert torch.allclose(gradient, torch.tensor(published["grad"], dtype=torch.float64), rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_a_trajectory_is_scored_as_it_was_sampled(random_model: Any) -> None:
    """At temperature 1 the probabilities that the sampler gave its tokens are those that the likelihood finds."""
    prompt = torch.randint(5, 200, (2, 4), generator=torch.Generator().manual_seed(0))
    decoding = Decoding(max_new_tokens=8, steps=4, temperature=1.0, stop_early=False)
    written = run(random_model, prompt, None, decoding, row_seeds=[3, 4])
    ids = torch.cat([prompt, written.ids], dim=1)
    answer = torch.arange(12).expand_as(ids) >= 4
    steps = torch.cat([torch.full((2, 4), -1), written.revealed_at], dim=1)
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer, steps)
    draws = Trajectory().draws(canvas, [], random_model.config.mask_token_id)
    assert len(draws) == 4
    found = estimate(random_model, canvas, draws, Trajectory().combine).token[:, 4:].exp()
    assert torch.allclose(found, written.confidence, rtol=0.05, atol=1e-3)  # the sampler never answers the mask


def test_the_gradient_part_by_part_is_the_whole_one(random_model: Any) -> None:
    ids = torch.randint(5, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    answer = torch.arange(8).expand_as(ids) > 2
    written = torch.where(answer, torch.arange(8).expand_as(ids) % 3, -1)
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer, written)
    objective = resolve("tracerl-blocks")
    draws, combine = objective.estimator.draws(canvas, [], MASK), objective.combine(torch.ones(2, 8))

    def loss_of(current: Likelihood) -> Tensor:
        return policy_terms(objective, torch.tensor([[1.0], [-0.5]]), current, None, None, answer).row.sum()

    found = []
    for whole in (True, False):
        random_model.zero_grad()
        if whole:
            loss = loss_of(estimate(random_model, canvas, draws, combine))
        else:
            reader = ModelReader(random_model)
            loss = draw_by_draw(reader, canvas, draws, loss_of, backward=Tensor.backward, combine=combine)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in random_model.parameters() if p.grad is not None]))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-6)
    assert found[0].abs().max() > 0


def test_a_view_shares_one_among_its_tokens() -> None:
    """Four tokens written at 1, 0, 1, 1 and one that is not scored: shares ⅓, 1; each 1 where tokens count alike."""
    answer = torch.tensor([[False, True, True, True, True, True]])
    scored = answer & (torch.arange(6) < 5)
    canvas = Canvas(torch.zeros(1, 6).long(), answer, answer, scored, torch.tensor([[-1, 1, 0, 1, 1, 2]]))
    draws = Trajectory().draws(canvas, [], MASK)
    third = pytest.approx(1 / 3)
    assert resolve("cj-grpo").shares(canvas, draws).tolist() == [[0, third, 1, third, third, 0]]
    assert resolve("d2").shares(canvas, draws).tolist() == [[0, 1, 1, 1, 1, 0]]
    with pytest.raises(UserError, match="scores a token in several views"):
        replace(PRESETS["espo"], unit="view").shares(canvas, draws)


def test_views_count_alike_by_hand() -> None:
    """Ratios e^0.1, 1 in one view and e^-0.1 in another, A = 1: the mean over views, and their sum where N counts."""
    new = torch.tensor([[0.1, 0.0, -0.1]])
    likelihoods = [Likelihood(t, t.sum(-1), torch.tensor([3])) for t in (new, 0 * new)]
    shares = torch.tensor([[0.5, 0.5, 1.0]])
    own = [math.exp(0.1), 1.0, math.exp(-0.1)]
    by_view = -((own[0] + own[1]) / 2 + own[2])
    for name, expected in (("cj-grpo", by_view / 2), ("tracerl", by_view)):
        objective = replace(PRESETS[name], kl="none", clip_high=0.5)
        row = policy_terms(objective, torch.ones(1, 1), *likelihoods, None, shares).row
        assert row.item() == pytest.approx(expected)
        counted = rows_counted(objective, torch.tensor([True]), shares, 1).item()
        assert counted == {"cj-grpo": 1, "tracerl": 2}[name]


def test_parts_are_picked_by_hand() -> None:
    """Three of five parts from u = ½: ⌊(k + ½)·5/3⌋; two parts are no more than three; none is none."""
    found = picked(torch.tensor([5, 2, 0]), 3, torch.full((3,), 0.5))
    assert found.tolist() == [[0, 2, 4], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize(("count", "pick"), [(5, 3), (7, 1), (9, 8), (64, 24)])
def test_every_part_is_picked_as_often_as_any_other_and_once_at_most(count: int, pick: int) -> None:
    u = (torch.arange(960, dtype=torch.float64) + 0.5) / 960
    found = picked(torch.full((960,), count), pick, u)
    assert all(len(set(row)) == pick for row in found.tolist())
    often = torch.bincount(found.flatten(), minlength=count)
    assert len(often) == count
    assert (often / 960 - pick / count).abs().max() < 0.01


def test_a_trajectory_may_be_scored_in_part(random_model: Any) -> None:
    """Two of four steps: a view each, other ones for another τ; what is not picked has no share and no value."""
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    answer = torch.arange(12).expand_as(ids) >= 4
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer, torch.where(answer, torch.arange(12) % 4, -1))
    objective, all_views = resolve("agrpo", pick=2), resolve("agrpo", pick=0)
    whole = estimate(random_model, canvas, all_views.estimator.draws(canvas, [], MASK), total).token
    seen = set()
    for tau in (0.1, 0.4, 0.6, 0.9):
        noise = Noise(torch.full((2, 12), tau, dtype=torch.float64), torch.rand(2, 12))
        draws = objective.estimator.draws(canvas, [noise], MASK)
        shares = objective.shares(canvas, draws)
        assert len(draws) == 2
        assert shares.sum(-1).tolist() == [2, 2]
        found = estimate(random_model, canvas, draws, total).token
        assert torch.allclose(found, whole * (shares > 0), atol=1e-5)
        seen.add(tuple(shares[0].tolist()))
    assert len(seen) == 2


@torch.no_grad()
def test_read_from_left_to_right_a_likelihood_is_exact(random_model: Any) -> None:
    """Σ log p(x_i | what stands left of it, masks behind), whatever the padding; parts are alike under it too."""
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(0))
    answer = torch.arange(9).expand_as(ids) >= 4
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer)
    estimator = resolve("justgrpo").estimator
    found = estimate(random_model, canvas, estimator.draws(canvas, [], MASK), estimator.combine)
    for place in range(4, 9):
        shown = torch.where(torch.arange(9) < place, ids, MASK)
        logits = random_model(input_ids=shown).logits[0, place].float()
        assert found.token[0, place].item() == pytest.approx(logits.log_softmax(-1)[ids[0, place]].item(), abs=1e-4)
    for choices in ({}, {"segments": 2}, {"steps_together": 2}):
        own = resolve("justgrpo", **choices).estimator
        parts = [view.scored[:, -5:].tolist() for (view,) in own.draws(canvas, [], MASK)]
        assert parts == [view.scored[:, -5:].tolist() for (view,) in own.draws(canvas.left_padded(20), [], MASK)]


def test_a_sum_over_neighbours_is_the_pseudo_likelihood(random_model: Any) -> None:
    """SEPO's Σ_y π_y·∇log s(x, y), s(x, y) = p(y)/p(x), over all answers y that differ from x in one token: with y's
    probability among those that differ at its place it is −∇ Σ_i log p(x_i | all others), which `sepo` takes.
    """
    ids = torch.randint(5, 200, (1, 7), generator=torch.Generator().manual_seed(0))
    answer = torch.arange(7).expand_as(ids) >= 3
    canvas = Canvas(ids, torch.ones_like(answer), answer, answer)
    estimator, found = resolve("sepo").estimator, []
    parameters = [p for p in random_model.parameters() if p.requires_grad]
    summed = torch.zeros(())
    for place in range(3, 7):
        hidden = ids.clone()
        hidden[0, place] = MASK
        log_p = random_model(input_ids=hidden).logits[0, place].log_softmax(-1)
        neighbours = torch.arange(len(log_p)) != ids[0, place]
        score = log_p[neighbours] - log_p[ids[0, place]]
        summed = summed + (log_p[neighbours].detach().exp() * score).sum()
    ours = estimate(random_model, canvas, estimator.draws(canvas, [], MASK), estimator.combine).sequence.sum()
    for value in (-summed, ours):
        gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in gradients if g is not None]))
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5)
    assert found[1].abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "choices", "said"),
    [
        ("cj-grpo", {"level": "sequence"}, "unit = view at level sequence"),
        ("agrpo", {"level": "whole"}, "pick = 24 at level whole"),
        ("espo", {"unit": "view"}, "unit = view with the likelihood elbo_coupled, which has no steps"),
        ("espo", {"pick": 2}, "set choices.pick to 0, or set choices.likelihood to trajectory"),
        ("espo", {"steps_together": 2}, "steps_together = 2 with the likelihood elbo_coupled"),
        ("espo", {"segments": 2}, "segments = 2 with the likelihood elbo_coupled"),
        ("agrpo", {"pick": -1}, "choices.pick = -1"),
        ("d2", {"scope": "canvas"}, "until_eos"),
        ("d2", {"draws": 2}, "one trajectory"),
        ("justgrpo", {"draws": 2}, "one trajectory"),
        ("d2", {"steps_together": 0}, "steps_together = 0"),
        ("d2", {"dual_clip": 1.0}, "dual_clip = 1.0"),
        ("d2", {"dual_clip": math.nan}, "dual_clip = nan"),
    ],
)
def test_choices_that_make_no_trajectory_are_refused(name: str, choices: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(name, **choices)


def test_dual_clip_by_hand() -> None:
    """A = −1 and ρ = 1, 2, 20: −ρ·A, but never over 3; A = 1 is not touched."""
    objective = PolicyObjective(dual_clip=3.0)
    log_ratio = torch.tensor([1.0, 2.0, 20.0]).log()
    assert objective.surrogate(log_ratio, torch.tensor(-1.0)).tolist() == pytest.approx([1, 2, 3])
    assert objective.surrogate(log_ratio, torch.tensor(1.0)).tolist() == pytest.approx([-1, -1.2, -1.2])


def test_the_kl_may_be_to_the_policy_that_wrote_the_answer() -> None:
    """k3 of d = 0.1 by hand; no reference model is needed."""
    objective = PolicyObjective(level="token", kl="k3", kl_weight=1.0, kl_anchor="old")
    assert (objective.uses_reference, objective.uses_old) == (False, True)
    token = torch.tensor([[-0.4]])
    new, old = (Likelihood(t, t.sum(-1), torch.tensor([1])) for t in (token, token - 0.1))
    terms = policy_terms(objective, torch.zeros(1, 1), new, old, None, torch.ones(1, 1, dtype=torch.bool))
    assert terms.kl.item() == pytest.approx(torch.tensor(-0.1).exp().item() - 1 + 0.1, rel=1e-4)
