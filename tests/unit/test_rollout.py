"""From sampled answers to micro-batches: what is scored, which rows go where, and noise that knows of no batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import estimate
from remask.diffusion.times import LINEAR
from remask.errors import UserError
from remask.rl.batches import Plan, PolicyBatch, batches_of, shared_anew
from remask.rl.callbacks import read_rollout
from remask.rl.loading import RolloutLoader
from remask.rl.presets import PRESETS
from remask.rl.prompts import PromptOrder
from remask.rl.rollout import Rollout, row_seed
from remask.rl.rollout_rows import Layout, until_end
from remask.sampling.generate import Row, length_of

END, EOS, CANVAS = 5, 0, 8
LENGTHS = [3, 7, 5, 6, 4, 7]


def rollout(rows: int = 6, number: int = 0) -> Rollout:
    """Rows of unequal prompts, left-padded, and answers of which some end early."""
    generator = torch.Generator().manual_seed(number)
    width = max(LENGTHS[:rows]) + CANVAS
    ids = torch.randint(10, 200, (rows, width), generator=generator)
    attended = torch.zeros(ids.shape, dtype=torch.bool)
    for row in range(rows):
        attended[row, width - CANVAS - LENGTHS[row] :] = True
        ids[row, width - CANVAS + 2 + row % 3] = END
    response = torch.zeros_like(attended)
    response[:, width - CANVAS :] = True
    scored = until_end(ids, response, torch.tensor([END, EOS]))
    advantage = (torch.arange(rows) - 2.5)[:, None] * response
    written = torch.where(response, torch.randint(0, 4, ids.shape, generator=generator), -1)
    return Rollout(
        number, Canvas(ids, attended, response, scored, written), advantage, torch.ones(rows).bool(), number, {}, [], []
    )


def test_an_answer_counts_up_to_its_end() -> None:
    ids = torch.tensor([[9, 9, END, END, EOS], [END, 9, 9, 9, 9], [9, 9, 9, 9, EOS]])
    response = torch.tensor([[False, True, True, True, True]] * 3)
    scored = until_end(ids, response, torch.tensor([END, EOS]))
    assert scored.long().tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert [length_of(row, {END, EOS}) for row in ([9, END, EOS], [9, 9, 9], [END, 9, 9])] == [2, 3, 1]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("minibatches", "batch_size"), [(1, 6), (1, 4), (2, 1), (2, 5)])
def test_a_pass_uses_every_row_once_and_ranks_share_each_step(world: int, minibatches: int, batch_size: int) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0)).numpy()
    plans = [Plan(12, 3, minibatches, batch_size, rank, world) for rank in range(world)]
    members = [plan.members(order) for plan in plans]
    assert sorted(int(row) for own in members for batch in own for row in batch) == list(range(12))
    assert plans[0].steps == 3 * minibatches
    for own in members:
        assert len(own) == minibatches * plans[0].micro_batches
        assert max(map(len, own)) <= batch_size
    first = [{int(r) for batch in own[: plans[0].micro_batches] for r in batch} for own in members]
    assert set().union(*first) == set(order[: 12 // minibatches].tolist())


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="10 answers does not divide into 2 minibatches on 2 processes"):
        Plan(10, 1, 2, 4, 0, 2)


def of_row(batches: list[PolicyBatch], plan: Plan, row: int) -> tuple[PolicyBatch, int]:
    """The micro-batch of the first pass that holds the row, and its place there (rows in order: one minibatch)."""
    for batch, members in zip(batches, plan.members(torch.arange(plan.rows).numpy()), strict=False):
        if row in members:
            return batch, members.tolist().index(row)
    raise AssertionError(row)


def test_noise_knows_of_no_batch_rank_or_width() -> None:
    whole = rollout()
    width = whole.canvas.ids.shape[1] + 9
    wider = replace(
        whole, canvas=whole.canvas.left_padded(width), advantage=torch.nn.functional.pad(whole.advantage, (9, 0))
    )
    seen = []
    for source, plan in ((whole, Plan(6, 1, 1, 6)), (wider, Plan(6, 1, 1, 2)), (whole, Plan(6, 1, 1, 1, 1, 2))):
        batches = list(batches_of(source, plan, draws=2, fresh=True, seed=3))
        batch, place = of_row(batches, plan, 4)
        length = LENGTHS[4] + CANVAS
        seen.append([(noise.row_tau[place].item(), noise.u[place, -length:].tolist()) for noise in batch.noise])
        assert all(noise.u.shape == batch.canvas.ids.shape for noise in batch.noise)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] != seen[0][1]


def test_times_are_stratified_over_draws_and_rows_and_new_in_every_pass_and_rollout() -> None:
    """Golden-ratio steps: any few consecutive times are spread."""
    plan, masks = Plan(6, 2, 1, 6), set()
    for number in (0, 1):
        for batch in batches_of(rollout(number=number), plan, draws=2, fresh=True, seed=0):
            times = torch.stack([noise.row_tau for noise in batch.noise], dim=-1)
            apart = times.diff(dim=-1).abs()
            assert torch.minimum(apart, 1 - apart).min() > 0.35
            gaps = times.flatten().sort().values.diff()
            assert gaps.min() > 0.03
            assert gaps.max() < 0.2
            masks |= {round(noise.u[0, -1].item(), 6) for noise in batch.noise}
    assert len(masks) == 8


@pytest.mark.parametrize("rows", [5, 6, 36, 72])
def test_a_rows_times_are_new_in_every_pass_whatever_the_size_of_a_rollout(rows: int) -> None:
    """72 rows of two draws are a Fibonacci number, after which golden-ratio steps come back to where they were."""
    whole = rollout()
    of_rows = torch.arange(rows) % len(whole.counted)
    source = replace(
        whole,
        canvas=whole.canvas.each(lambda value: value[of_rows]),
        **{name: getattr(whole, name)[of_rows] for name in ("advantage", "counted")},
    )
    passes = list(batches_of(source, Plan(rows, 24, 1, rows), draws=2, fresh=True, seed=0))
    first = torch.stack([batch.noise[0].row_tau[0] for batch in passes])
    steps = (first.diff() % 1).sort().values
    assert (steps - (torch.arange(23) + 0.5) / 23).abs().max() < 0.33  # Kolmogorov and Smirnov's at 1 % of 23 numbers


def test_kept_noise_is_one_pass_that_is_used_again() -> None:
    assert len(list(batches_of(rollout(), Plan(6, 4, 1, 3), draws=1, fresh=False, seed=0))) == 2
    assert len(list(batches_of(rollout(), Plan(6, 4, 1, 3), draws=1, fresh=True, seed=0))) == 8


def test_batches_are_of_the_version_that_wrote_them() -> None:
    batches = list(batches_of(rollout(number=3), Plan(6, 2, 3, 1), draws=1, fresh=True, seed=0))
    assert [batch.version for batch in batches] == [3] * 12


@pytest.mark.parametrize(("before", "now"), [(3, 1), (1, 3), (3, 3)])
def test_what_ranks_had_left_is_shared_anew_as_if_there_had_been_so_many(before: int, now: int) -> None:
    """To the bit; one of two optimiser steps of the first pass was taken."""

    def left(rank: int, world: int, batch_size: int) -> list[PolicyBatch]:
        plan = Plan(6, 2, 2, batch_size, rank, world)
        made = list(batches_of(rollout(), plan, draws=2, fresh=True, seed=1))
        for batch in made:
            batch.old = [batch.canvas.ids * 0.5, batch.canvas.ids * 0.25]
        return made[plan.micro_batches :]

    others = [left(rank, before, 2) for rank in range(before)]
    for rank in range(now):
        plan = Plan(6, 2, 2, 1, rank, now)
        shared, own = shared_anew(others, plan), left(rank, now, 1)
        assert len(shared) == len(own) > 0
        for one, other in zip(shared, own, strict=True):
            assert all(torch.equal(one.canvas.tensors()[n], value) for n, value in other.canvas.tensors().items())
            assert all(
                torch.equal(a.u, b.u) and torch.equal(a.tau, b.tau) for a, b in zip(one.noise, other.noise, strict=True)
            )
            assert torch.equal(one.advantage, other.advantage)
            assert torch.equal(one.counted, other.counted)
            assert one.version == other.version
            assert one.reference is None
            assert all(torch.equal(a, b) for a, b in zip(one.old, other.old, strict=True))


def test_padding_that_no_row_needs_is_cut_off() -> None:
    short = next(iter(batches_of(rollout(), Plan(6, 1, 1, 1), draws=1, fresh=True, seed=0)))
    assert short.canvas.ids.shape == (1, LENGTHS[0] + CANVAS)
    assert short.canvas.attended.all()


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_is_worth_the_same_whatever_its_batch_mates(name: str, random_model: Any) -> None:
    objective, found = PRESETS[name], []
    for size in (1, 6):
        plan = Plan(6, 1, 1, size)
        batches = list(batches_of(rollout(), plan, draws=objective.draws, fresh=True, seed=1))
        values = []
        for row in range(6):
            batch, place = of_row(batches, plan, row)
            views = objective.estimator.draws(batch.canvas, batch.noise, random_model.config.mask_token_id)
            with torch.no_grad():
                value = estimate(random_model, batch.canvas, views, objective.combine(batch.advantage))
            shares = objective.shares(batch.canvas, views)[place, -CANVAS:].tolist()
            values.append((value.sequence[place].item(), int(value.scored[place]), shares))
        found.append(values)
    for alone, together in zip(*found, strict=True):
        assert alone[0] == pytest.approx(together[0], rel=1e-4)
        assert alone[1:] == together[1:]


def test_prompts_come_in_epochs_and_by_rollout_alone() -> None:
    order = PromptOrder(5, per_rollout=3, seed=0)
    taken = [order.of(number) for number in range(10)]
    flat = [place for rollout_ in taken for place in rollout_]
    for epoch in range(6):
        assert sorted(flat[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]
    assert flat[:5] != flat[5:10]
    assert order.of(7) == taken[7]
    assert PromptOrder(5, per_rollout=3, seed=1).of(0) != taken[0]


def test_every_answer_has_its_own_random_numbers() -> None:
    seeds = {row_seed(s, number, row) for s in (0, 1) for number in range(20) for row in range(64)}
    assert len(seeds) == 2 * 20 * 64


@pytest.mark.parametrize(("lag", "made"), [(0, [0, 0, 1, 1, 2, 2]), (1, [1, 1, 2, 2, 3, 3]), (2, [2, 2, 3, 3, 4, 4])])
def test_rollouts_are_made_as_far_ahead_as_they_may_lag(lag: int, made: list[int]) -> None:
    """Two micro-batches a rollout: which rollout was the newest when each of the first six was used."""
    begun: list[int] = []

    def begin(number: int) -> Any:
        begun.append(number)
        return lambda: [number, number]

    loader = iter(RolloutLoader(begin, max_lag=lag, per_rollout=2))
    used = [(next(loader), begun[-1]) for _ in range(6)]
    assert [number for number, _ in used] == [0, 0, 1, 1, 2, 2]
    assert [newest for _, newest in used] == made


def test_rollouts_of_a_checkpoint_of_0_1_are_read(tmp_path: Path) -> None:
    """There a row had one time and one advantage, old likelihoods were means, and a flag said whether they were new."""
    canvas = rollout(rows=2).canvas
    stored = {
        **canvas.tensors(),
        "advantage": torch.tensor([0.5, -0.5]),
        "counted": torch.tensor([True, False]),
        "on_policy": torch.tensor(True),
        "old": torch.full(canvas.ids.shape, -1.0),
        "t0": torch.tensor([0.25, 0.75]),
        "u0": torch.rand(canvas.ids.shape),
    }
    file = tmp_path / "rollout-0-of-1.safetensors"
    facts = {"number": "3", "left": "1"}
    save_file({f"0.{name}": value.contiguous() for name, value in stored.items()}, file, metadata=facts)
    (batch,), said = read_rollout(file, 7)
    assert said == {"number": 3, "left": 1}
    assert batch.version == 7
    assert torch.equal(batch.advantage, torch.tensor([[0.5], [-0.5]]) * canvas.corruptible)
    assert torch.allclose(LINEAR.rate(batch.noise[0].tau)[:, 0], stored["t0"])
    assert [value.tolist() for value in batch.old or []] == [stored["old"].tolist()]
    stored["on_policy"] = torch.tensor(False)
    save_file({f"0.{name}": value.contiguous() for name, value in stored.items()}, file, metadata=facts)
    assert read_rollout(file, 7)[0][0].version == -1


def test_answers_become_rows_with_the_step_that_wrote_each_token() -> None:
    """Two prompts of one and three tokens, canvases of two; the second answer ends with its first token."""
    rows = [Row([7, 8], [1, 0], [0.5, 0.9], False), Row([END, EOS], [0, -1], [0.9, math.nan], True)]
    canvas = Layout(mask_id=1, stops=[END, EOS], scope="until_eos").canvas([[4], [2, 3, 4]], rows)
    assert canvas.ids.tolist() == [[1, 1, 4, 7, 8], [2, 3, 4, END, EOS]]
    assert canvas.attended.long().tolist() == [[0, 0, 1, 1, 1], [1] * 5]
    assert canvas.corruptible.long().tolist() == [[0, 0, 0, 1, 1]] * 2
    assert canvas.supervised.long().tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]
    assert canvas.written is not None
    assert canvas.written.tolist() == [[-1, -1, -1, 1, 0], [-1, -1, -1, 0, -1]]
    assert Canvas.cat([canvas, canvas]).left_padded(6).written[0].tolist() == [-1, -1, -1, -1, 1, 0]
