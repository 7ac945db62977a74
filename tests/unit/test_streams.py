"""A block model's pass holds what is needed and no more, and gives what the pass over both whole streams gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from remask.diffusion.attention import CLEAN, NOISED, BlockCausal, Reading, may_look
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.draw_by_draw import draw_by_draw
from remask.diffusion.estimators import ESTIMATORS
from remask.diffusion.likelihood import Likelihood, draw_values, estimate
from remask.diffusion.noise import Noise, collate_noise, row_noise
from remask.diffusion.reader import ModelReader
from remask.models import packing, streams
from remask.models.streams import CleanRows, Rows, Streams

MASK = 3


def canvas_of(attention: BlockCausal, lengths: list[tuple[int, int]], *, left: bool = False) -> Canvas:
    """Rows of a prompt and an answer of these lengths, padded on one side."""
    width = max(map(sum, lengths))
    ids = torch.randint(5, 200, (len(lengths), width), generator=torch.Generator().manual_seed(1))
    place = torch.arange(width).expand(len(lengths), -1)
    prompt, answer = torch.tensor(lengths).split(1, dim=1)
    place = place - (width - prompt - answer) if left else place
    attended = (place >= 0) & (place < prompt + answer)
    answered = attended & (place >= prompt)
    return in_blocks(Canvas(ids, attended, answered, answered), attention)


def versions(canvas: Canvas, count: int) -> tuple[Tensor, Tensor]:
    """Noised versions of the rows, and what is masked in them."""
    chance = torch.rand(count * len(canvas.ids), canvas.ids.shape[1], generator=torch.Generator().manual_seed(2))
    mask = (chance < 0.5) & canvas.corruptible.repeat(count, 1)
    return canvas.ids.repeat(count, 1).masked_fill(mask, MASK), mask


def written_out(found: Streams, queries: int, keys: int) -> Tensor:
    """Which query looks at which key, as the parts say."""
    pairs = torch.zeros(queries, keys, dtype=torch.bool)
    for part in found.parts:
        allowed = torch.ones(*part.queries.shape, part.keys.shape[1], dtype=torch.bool)
        allowed = allowed if part.allowed is None else part.allowed[:, 0]
        group, query, key = (allowed & part.real[:, :, None]).nonzero(as_tuple=True)
        pairs[part.queries[group, query], part.keys[group, key]] = True
    return pairs


@pytest.mark.parametrize("together", [1, 3, 128])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("alignment", ["row", "answer"])
@pytest.mark.parametrize("block", [1, 2, 4, 32])
def test_the_parts_say_what_may_look_at_what(
    block: int, alignment: Any, causal: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "TOGETHER", together)
    attention = BlockCausal(block, alignment, causal)
    canvas = canvas_of(attention, [(5, 9), (2, 6), (7, 7)], left=True)
    noised, mask = versions(canvas, 2)
    rows = Rows(attention, canvas.attended, canvas.corruptible)
    batch = streams.noised_batch(rows, noised, canvas.ids, mask, shift=False)
    T = batch.inputs["input_ids"].shape[1]
    found = written_out(batch.inputs["streams"], T, T)

    asked, block = rows.blocks_with(mask), rows.block.repeat(2, 1)
    tokens = rows.before(torch.where(asked, block, -99).view(2, 3, -1).amax((0, 2))[:, None])
    version, of_row = (torch.arange(6) // 3)[:, None], (torch.arange(6) % 3)[:, None]
    row = torch.cat([of_row[:3].expand_as(tokens)[tokens], of_row.expand_as(asked)[asked]])
    noised_ones = (NOISED + version).expand_as(asked)[asked]
    stream = torch.cat([torch.full((int(tokens.sum()),), CLEAN), noised_ones])
    of_clean, of_noised = rows.numbers
    number = torch.cat([of_clean[tokens], of_noised.repeat(2, 1)[asked]])
    reading = Reading(*(x[None] for x in (number, number, number, stream)))
    assert torch.equal(found, may_look(reading)[0] & (row[:, None] == row[None, :]))
    order = torch.cat([part.queries[part.real] for part in batch.inputs["streams"].parts])
    assert torch.equal(order[batch.inputs["streams"].order], torch.arange(T))


def test_a_pass_holds_what_is_needed() -> None:
    """Prompt 6, answer 8, blocks of 4 from the answer: of two versions in which only the second block of the answer is
    asked for, that block each, and clean the prompt and the answer's first block.
    """
    attention = BlockCausal(4, "answer")
    canvas = canvas_of(attention, [(6, 8)])
    asked = torch.zeros(2, 14, dtype=torch.bool)
    asked[:, 11] = True
    rows = Rows(attention, canvas.attended, canvas.corruptible)
    batch = streams.noised_batch(rows, canvas.ids.repeat(2, 1), canvas.ids, asked, shift=False)
    assert batch.inputs["position_ids"][0].tolist() == [*range(10), 10, 11, 12, 13, 10, 11, 12, 13]
    assert batch.positions is not None
    assert batch.positions.nonzero()[:, 0].tolist() == [11, 15]


def block_model(random_model: Any, attention: BlockCausal, shift: bool) -> Any:
    random_model.attention = attention
    random_model.config.shift = shift
    return random_model


@pytest.mark.parametrize("together", [3, 128])
@pytest.mark.parametrize(("shift", "causal"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("block", [1, 4, 32])
def test_losses_and_gradients_are_those_of_both_whole_streams(
    block: int, shift: bool, causal: bool, together: int, random_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "TOGETHER", together)
    model = block_model(random_model, BlockCausal(block, causal=causal), shift)
    canvas = canvas_of(model.attention, [(5, 9), (2, 6), (7, 7)])
    noised, mask = versions(canvas, 3)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "attention_of", lambda config: "eager")  # both streams, with a mask of all pairs
        expected = ModelReader(model).losses(noised, canvas, mask)
        expected.sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    for kept in (False, True):
        model.zero_grad()
        reader = ModelReader(model).having_read(canvas) if kept else ModelReader(model)
        assert (reader.kept is not None) == (kept and not (shift and causal))
        found = reader.losses(noised, canvas, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        found.sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(
                p.grad, grads[name], rtol=1e-4, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
            )


def noise_of(canvas: Canvas, count: int) -> list[Noise]:
    B, width = canvas.ids.shape
    return [
        collate_noise([row_noise(0, k, b, B * k + b, width) for b in range(B)], [0] * B, width) for k in range(count)
    ]


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("known", [False, True])
def test_gradients_draw_by_draw_go_through_what_all_draws_share(known: bool, factor: float, random_model: Any) -> None:
    """Also where a trainer's `backward` multiplies them, as for accumulation steps."""
    model = block_model(random_model, BlockCausal(4), False)
    canvas = canvas_of(model.attention, [(5, 9), (2, 6)])
    estimator = ESTIMATORS["elbo_coupled"]
    draws = estimator.draws(canvas, noise_of(canvas, 3), MASK)

    def loss_of(found: Likelihood) -> Tensor:
        return (found.sequence / 10).exp().sum()

    whole = loss_of(estimate(model, canvas, draws))
    (whole * factor).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.no_grad():
        values = draw_values(model, canvas, draws)
    loss = draw_by_draw(
        ModelReader(model),
        canvas,
        draws,
        loss_of,
        backward=lambda part: (part * factor).backward(),
        known=values if known else None,
    )
    torch.testing.assert_close(loss, whole)
    (loss * factor).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, grads[name], rtol=1e-4, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


def test_the_clean_rows_are_read_once_for_all_draws(random_model: Any) -> None:
    model = block_model(random_model, BlockCausal(4), False)
    canvas = canvas_of(model.attention, [(5, 9), (2, 6)])
    passes: list[list[int]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["position_ids"][0].tolist()), with_kwargs=True
    )
    draw_values(model, canvas, ESTIMATORS["elbo"].draws(canvas, noise_of(canvas, 4), MASK))
    hook.remove()
    # Row 1 has clean blocks before the one of its last token: 12 of its 14 tokens, row 2 4 of its 8.
    assert passes[0] == [*range(12), *range(4)]
    assert len(passes) == 5
    assert all(len(read) <= 14 - 4 + 8 for read in passes[1:])


def test_what_is_kept_of_no_clean_token_is_nothing(random_model: Any) -> None:
    """An answer of one block, without a prompt, has nothing before it."""
    model = block_model(random_model, BlockCausal(32), False)
    canvas = canvas_of(model.attention, [(0, 9)])
    noised, mask = versions(canvas, 2)
    reader = ModelReader(model).having_read(canvas)
    assert isinstance(reader.kept, CleanRows)
    assert reader.kept.tensors() == []
    torch.testing.assert_close(reader.losses(noised, canvas, mask), ModelReader(model).losses(noised, canvas, mask))


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_may_be_asked(kept: bool, random_model: Any) -> None:
    model = block_model(random_model, BlockCausal(4), False)
    canvas = canvas_of(model.attention, [(5, 9), (2, 6)], left=True)
    reader = ModelReader(model).having_read(canvas) if kept else ModelReader(model)
    found = reader.losses(canvas.ids, canvas, torch.zeros_like(canvas.attended))
    assert found.shape == (0,)
    found.sum().backward()


def test_where_activations_are_computed_again_nothing_is_kept(random_model: Any) -> None:
    model = block_model(random_model, BlockCausal(4), False)
    canvas = canvas_of(model.attention, [(5, 9), (2, 6)])
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert ModelReader(model).having_read(canvas).kept is None
    model.eval()
    assert ModelReader(model).having_read(canvas).kept is not None
