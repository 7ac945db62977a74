"""Published policy losses and gradients, from the numbers that their own functions gave (float64)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import Likelihood, View
from remask.rl.advantage import advantages
from remask.rl.in_groups import from_group, to_group
from remask.rl.policy_loss import kl_estimate, policy_terms
from remask.rl.presets import PRESETS, resolve

pytestmark = pytest.mark.shared


def published(shared: Path, method: str) -> Any:
    return json.loads((shared / "golden" / "rl" / f"{method}.json").read_text())


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def value(token: Any, scored: Tensor) -> Likelihood:
    token = (token if torch.is_tensor(token) else real(token)) * scored
    return Likelihood(token, token.sum(-1), scored.sum(-1))


def of_step(values: Any, step: Tensor) -> Tensor:
    """[B, T, L] → each token's number in the view of its own step [B, L]."""
    values = values if torch.is_tensor(values) else real(values)
    return values.gather(1, step[:, None]).squeeze(1)


def share(part: Tensor) -> Tensor:
    """One part of the tokens of each token's view, where `part` numbers the views of a row and −1 is not scored."""
    size = (part[:, :, None] == part[:, None, :]).sum(-1)
    return torch.where(part >= 0, 1 / size, 0.0)


def agrees(loss: Tensor, leaf: Tensor, run: Any) -> None:
    assert loss.item() == pytest.approx(run["loss"], rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.allclose(gradient, real(run["grad"]), rtol=1e-6, atol=1e-8)


def test_tracerl_as_its_file_for_llada(shared: Path) -> None:
    """A row is a view; −mean_rows[Σ C/|τ|] + β·mean_rows[Σ KL]. There the KL is not divided by |τ|, here it is; so each
    is compared by itself, the KL with every token counting alike.
    """
    case = published(shared, "tracerl")["cases"]["policy_loss"]
    scored = torch.tensor(case["scored"]).bool()
    part = torch.where(scored, 0, -1)
    runs = [run for run in case["runs"] if run["trainer"] == "llada"]
    assert len(runs) > 1
    for run in runs:
        lp = real(case["lp"]).requires_grad_()
        objective = replace(
            PRESETS["tracerl"],
            clip_low=run["eps"],
            clip_high=run["eps"],
            kl="k3" if run["k3"] else "k1",
            kl_weight=run["beta"],
        )
        advantage = real(case["adv_token"]) if run["per_token_advantage"] else real(case["adv"])[:, None]
        new, old = value(lp, scored), value(case["old"], scored)
        clipped = policy_terms(replace(objective, kl="none"), advantage, new, old, None, share(part)).row
        kl = policy_terms(replace(objective, unit="token"), 0 * advantage, new, old, None, scored).row
        agrees((clipped.sum() + kl.sum()) / len(scored), lp, run)


def test_tracerls_advantages(shared: Path) -> None:
    for item in published(shared, "tracerl")["cases"]["reward"]["items"]:
        found = advantages(PRESETS["tracerl"].advantage, real([item["correct"]]).float())[0]
        assert found.tolist() == pytest.approx(item["advantage"])


def test_cj_grpo_over_steps(shared: Path) -> None:
    """Its own file takes the mean of a step over the batch. Every step of this case reveals two tokens of each answer,
    where that is the paper's mean over an answer's steps.
    """
    case = published(shared, "cj_grpo")["official"]
    step = torch.tensor(case["step_map"])
    scored = torch.ones_like(step).bool()
    for run in case["runs"]:
        lp = real(case["lp"]).requires_grad_()
        objective = replace(PRESETS["cj-grpo"], clip_low=run["clip"], clip_high=run["clip"], kl_weight=run["beta"])
        new, reference = value(of_step(lp, step), scored), value(of_step(case["reference"], step), scored)
        old = value(of_step(case["old"], step), scored) if run["old"] == "given" else None
        terms = policy_terms(objective, real(case["adv"])[:, None], new, old, reference, share(step))
        agrees(terms.row.mean(), lp, run)


def test_cj_grpo_over_steps_of_blocks(shared: Path) -> None:
    """DARE's form: means over a step of a block, over an answer's steps, over answers; with a dual clip."""
    for case in published(shared, "cj_grpo")["dare_blocks"]:
        step, block = torch.tensor(case["local_step"]), torch.tensor(case["block_ids"])
        scored = step >= 0
        lp = real(case["lp"]).requires_grad_()
        objective = replace(
            PRESETS["cj-grpo"],
            clip_low=case["clip"],
            clip_high=case["clip"],
            dual_clip=case["dual_clip"],
            kl="none",
        )
        part = torch.where(scored, block * 100 + step, -1)
        new, old = value(lp, scored), value(case["old"], scored)
        terms = policy_terms(objective, real(case["adv"])[:, None], new, old, None, share(part))
        agrees(terms.row.mean(), lp, case)


def test_agrpo_on_the_steps_it_drew(shared: Path) -> None:
    """A mean over K draws and answers of a step's sum, which is twice its mean in this case (every step writes two
    tokens). A step that was drawn twice counts twice there.
    """
    case = published(shared, "agrpo")
    step = torch.tensor(case["unmask_step"])
    runs = [run for run in case["runs"] if run["sampling"] == "uniform" and not run["beta"]]
    assert runs
    for run in runs:
        lp = real(case["lp"]).requires_grad_()
        counts = (torch.tensor(run["steps"])[:, :, None] == step[:, None]).sum(1).double()
        scored = counts > 0
        objective = replace(PRESETS["agrpo"], clip_low=run["clip_low"], clip_high=run["clip_high"])
        new, old = value(of_step(lp, step), scored), value(case["old"], scored)
        terms = policy_terms(objective, real(case["adv"])[:, None], new, old, None, counts * share(step))
        agrees(2 * terms.row.mean(), lp, run)


def test_justgrpo_as_released(shared: Path) -> None:
    """Its ratio is always 1, and it divides by the tokens of answers with an advantage."""
    case = published(shared, "justgrpo")["official"]
    lp = real(case["lp"]).requires_grad_()
    scored = torch.ones(lp.shape).bool()
    terms = policy_terms(PRESETS["justgrpo"], real(case["adv"])[:, None], value(lp, scored), None, None, scored)
    agrees(terms.row.sum() / lp.shape[1] / (case["trained_answers"] + 1e-5), lp, case)


def test_justgrpos_views(shared: Path) -> None:
    """One view a token: the answer before it, and masks."""
    case = published(shared, "justgrpo")["official"]
    views = torch.tensor(case["views"])
    length = len(case["lp"][0])
    prompt = views.shape[2] - length
    last = views[:, -1].clone()
    last[:, -1] = 7  # which no view shows
    answer = (torch.arange(views.shape[2]) >= prompt).expand_as(last)
    draws = PRESETS["justgrpo"].estimator.draws(
        Canvas(last, torch.ones_like(answer), answer, answer), [], case["mask_id"]
    )
    assert [len(views_of) for views_of in draws] == [1] * length
    for place, (view,) in enumerate(draws):
        assert torch.equal(view.ids, views[:, place])
        assert view.scored.nonzero()[:, 1].tolist() == [prompt + place] * len(views)


def test_justgrpo_with_a_ratio(shared: Path) -> None:
    """DARE's form, with its three ways to average."""
    case = published(shared, "justgrpo")["dare"]
    answer = torch.tensor(case["answer"]).bool()
    for run in case["runs"]:
        lp = real(case["lp"]).requires_grad_()
        normaliser = "sequences" if run["normaliser"] == "seq-mean-token-mean" else "tokens"
        objective = replace(
            PRESETS["justgrpo"],
            clip_low=run["clip_low"],
            clip_high=run["clip_high"],
            dual_clip=run["dual_clip"],
            normaliser=normaliser,
        )
        new, old = value(lp, answer), value(case["old"], answer)
        rows = policy_terms(objective, real(case["adv"])[:, None], new, old, None, answer).row
        count = {
            "token-mean": answer.sum(),
            "seq-mean-token-mean": len(answer),
            "seq-mean-token-sum-norm": answer.shape[1],
        }[run["normaliser"]]
        agrees(rows.sum() / count, lp, run)


def bounded(case: Any, run: Any, lp: Tensor, advantage: Tensor, name: str) -> Likelihood:
    """SPG's estimate: up where A > 0, and elsewhere as the run says."""
    scored, answer = torch.tensor(case["scored"]).bool(), torch.tensor(case["answer"]).bool()
    weight = answer.sum(-1)[:, None] / scored.sum(-1).double()
    draws = [
        (View(torch.zeros(answer.shape).long(), scored[:, k], weight[:, k, None].expand(answer.shape)),)
        for k in range(scored.shape[1])
    ]
    share = {"elbo": 0.0, "eubo": 1.0, "mix": run["omega"]}[run["negative"]]
    objective = resolve(name, power=run["beta"], power_share=share)
    values = [lp[:, k] * view.weight * view.scored for k, (view,) in enumerate(draws)]
    return value(objective.combine(advantage[:, None].expand(answer.shape))(values, draws), answer)


def test_spg_below_and_above(shared: Path) -> None:
    case = published(shared, "spg")
    answer, advantage = torch.tensor(case["answer"]).bool(), real(case["adv"])
    runs = [run for run in case["runs"] if run["negative"] != "zero"]
    assert {run["negative"] for run in runs} == {"elbo", "eubo", "mix"}
    for run in runs:
        lp = real(case["lp"]).requires_grad_()
        current = bounded(case, run, lp, advantage, "spg")
        assert (current.sequence / answer.sum(-1)).tolist() == pytest.approx(run["ell"], rel=1e-6)
        terms = policy_terms(PRESETS["spg"], advantage[:, None], current, None, None, answer)
        agrees(terms.row.sum() / answer.sum(), lp, run)


def test_stabledrl_weighs_answers_by_their_ratios(shared: Path) -> None:
    """Weights are a softmax of capped log-ratios of the bounds from below, over one group; without them it is SPG."""
    case = published(shared, "stabledrl")
    answer, advantage = torch.tensor(case["answer"]).bool(), real(case["adv"])
    n = answer.sum(-1)
    for run in case["runs"]:
        lp = real(case["lp"]).requires_grad_()
        if not run["self_normalised"]:
            terms = policy_terms(
                PRESETS["spg"], advantage[:, None], bounded(case, run, lp, advantage, "spg"), None, None, answer
            )
            agrees(terms.row.sum() / n.sum(), lp, run)
            continue
        objective = replace(PRESETS["stabledrl"], weight_cap=run["cap"])
        below = bounded(case, {**run, "negative": "elbo"}, lp.detach(), advantage, "stabledrl")
        old = Likelihood(below.token, real(case["old_elbo"]) * n, n)
        own = to_group(objective, below, old, answer.float())
        weight = from_group(objective, own, own.mean().expand(len(own)))
        assert (weight / len(own)).tolist() == pytest.approx(run["weights"], rel=1e-6)
        current = bounded(case, run, lp, advantage, "stabledrl")
        terms = policy_terms(objective, advantage[:, None], current, old, None, answer, weight)
        agrees(terms.row.mean(), lp, run)


def test_ebpo_over_whole_answers(shared: Path) -> None:
    """The ratio is not divided by the length, and there nor is the KL. (Here it is: it is added by itself.)"""
    case = published(shared, "ebpo")
    answer, advantage = torch.tensor(case["answer"]).bool(), real(case["adv"])
    counts = real(case["scored"]) * real(case["weight"])
    for run in case["runs"]:
        share = real(run["timestep_weights"] or [1 / counts.shape[1]] * counts.shape[1])
        lp = real(case["lp"]).requires_grad_()
        new, old, reference = (
            value(((own if torch.is_tensor(own) else real(own)) * counts * share[:, None]).sum(1), answer)
            for own in (lp, case["old"], case["reference"])
        )
        objective = replace(PRESETS["ebpo"], clip_low=run["clip_low"], clip_high=run["clip_high"])
        loss = policy_terms(objective, advantage[:, None], new, old, None, answer).row.mean()
        kl = kl_estimate(run["kl"] or "none", new.sequence - reference.sequence).mean()
        agrees(loss + run["kl_weight"] * kl, lp, run)


def test_gdpo_at_fixed_shares(shared: Path) -> None:
    """Its weights are 1/t of ⌊t·n⌋ masked tokens; the KL is of whole answers, here n = 8 times that per token."""
    case = published(shared, "gdpo")
    scored, time = real(case["scored"]), (real(case["points"]) + 1) / 2
    weight = scored * (real(case["weights"]) / 2 / time)[:, None]
    answer = torch.ones(len(scored), case["L"]).bool()
    for run in case["runs"]:
        lp = real(case["lp"]).requires_grad_()
        new = value((lp * weight).sum(1), answer)
        assert new.sequence.tolist() == pytest.approx(case["ell"])
        old, reference = (Likelihood(new.token, real(case[name]), new.scored) for name in ("old", "reference"))
        objective = replace(
            PRESETS["gdpo"], clip_low=run["clip"], clip_high=run["clip"], kl="k3", kl_weight=run["beta"] * case["L"]
        )
        terms = policy_terms(objective, real(case["adv"])[:, None], new, old, reference, answer)
        agrees(terms.row.mean(), lp, run)
