"""Which token may look at which, by hand on six tokens, and the identity of training's and sampling's passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from remask.diffusion.attention import CLEAN, NOISED, PADDING, BlockCausal, Full, Reading, may_look, named
from remask.diffusion.corruption import Canvas
from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.models.blocks import in_blocks


def pattern(reading: Reading, row: int = 0) -> list[str]:
    """A line for each token that looks, a mark for each that it may look at."""
    return ["".join("x" if seen else "." for seen in line) for line in may_look(reading)[row].tolist()]


def rows(*lengths: int, width: int, left: bool = False) -> Tensor:
    """attended [B, width], padded on the right, or on the left."""
    places = torch.arange(width)
    return torch.stack([places >= width - n if left else places < n for n in lengths])


IDS = torch.arange(10, 16)[None]
ALL = torch.ones(1, 6, dtype=torch.bool)
ANSWER = torch.tensor([[False, False, False, True, True, True]])


def test_full_attention_looks_everywhere_but_at_padding() -> None:
    reading = Full().training(IDS, IDS + 1, rows(4, width=6), ANSWER)
    assert reading.ids.tolist() == IDS.tolist()
    assert pattern(reading) == ["xxxx..", "xxxx..", "xxxx..", "xxxx..", "....x.", ".....x"]


def test_two_streams_of_three_tokens_in_blocks_of_two() -> None:
    """Blocks 0 0 1, first the noised stream, then the clean one."""
    ids = torch.tensor([[4, 5, 6]])
    reading = BlockCausal(2).training(ids, ids + 10, ids > 0, ids > 4)
    assert reading.ids.tolist() == [[4, 5, 6, 14, 15, 16]]
    assert reading.places.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert reading.block.tolist() == [[0, 0, 1, 0, 0, 1]]
    assert pattern(reading) == [
        "xx....",  # noised block 0: itself
        "xx....",
        "..xxx.",  # noised block 1: itself, and the clean block before it
        "...xx.",  # clean block 0: itself
        "...xx.",
        "...xxx",  # clean block 1: itself and what is before it
    ]


def test_one_stream_of_six_tokens_in_blocks_of_two() -> None:
    """Block 2 is not written yet, and nobody looks at it."""
    reading = BlockCausal(2).inference(IDS, ALL, ANSWER, IDS == 12)
    assert pattern(reading) == ["xx....", "xx....", "xxxx..", "xxxx..", "xxxxxx", "xxxxxx"]


def test_clean_tokens_that_look_at_no_later_one() -> None:
    """One stream: block 0 is finished, and read as a causal model reads it; block 1 is at work, block 2 not yet."""
    attention = BlockCausal(2, causal=True)
    reading = attention.inference(IDS, ALL, ANSWER, IDS == 13)
    assert reading.stream.tolist() == [[CLEAN, CLEAN, NOISED, NOISED, NOISED, NOISED]]
    assert pattern(reading) == ["x.....", "xx....", "xxxx..", "xxxx..", "xx..xx", "xx..xx"]
    finished = pattern(attention.inference(IDS, ALL, ANSWER, None))
    assert finished == ["x" * n + "." * (6 - n) for n in range(1, 7)]


@pytest.mark.parametrize(("alignment", "block"), [("row", 0), ("answer", 1)])
def test_two_streams_whose_clean_one_looks_at_no_later_token(alignment: Any, block: int) -> None:
    """Three tokens of which the last two are the answer, in blocks of two: from the row's first, 0 0 1, or from the
    answer's, −1 0 0. A noised block's first token is predicted by the clean one before it.
    """
    ids = torch.tensor([[4, 5, 6]])
    reading = BlockCausal(2, alignment, causal=True).training(ids, ids + 10, ids > 0, ids > 4)
    noised = {0: ["xx....", "xx....", "..xxx."], 1: ["x.....", ".xxx..", ".xxx.."]}
    assert pattern(reading) == [*noised[block], "...x..", "...xx.", "...xxx"]
    assert reading.before is not None
    assert reading.before.tolist() == [{0: [0, 0, 4], 1: [0, 3, 1]}[block] + [3, 3, 4]]


def test_blocks_of_one_token_write_from_left_to_right() -> None:
    assert pattern(BlockCausal(1).inference(IDS, ALL, ANSWER, None)) == [
        "x.....", "xx....", "xxx...", "xxxx..", "xxxxx.", "xxxxxx",
    ]  # fmt: skip


def test_one_block_of_a_whole_row_is_full_attention() -> None:
    block, full = BlockCausal(6).inference(IDS, ALL, ANSWER, None), Full().inference(IDS, ALL, ANSWER, None)
    assert torch.equal(may_look(block), may_look(full))


def test_several_noised_streams_share_the_clean_one_and_do_not_meet() -> None:
    """Two draws of a row of two blocks of one token: K + 1 rows' worth of tokens, not 2K."""
    block, stream = torch.tensor([[0, 1, 0, 1, 0, 1]]), torch.tensor([[1, 1, 2, 2, CLEAN, CLEAN]])
    reading = Reading(IDS, block, block, stream)
    assert pattern(reading) == ["x.....", ".x..x.", "..x...", "...xx.", "....x.", "....xx"]


@pytest.mark.parametrize(
    ("alignment", "blocks"),
    [("row", [0, 0, 1, 1, 2, 2]), ("answer", [-2, -1, -1, 0, 0, 1])],
)
def test_where_blocks_begin(alignment: Any, blocks: list[int]) -> None:
    assert BlockCausal(2, alignment).blocks(ALL, ANSWER).tolist() == [blocks]


def test_blocks_are_counted_from_a_rows_first_token_wherever_it_stands() -> None:
    """Six places, of which the last four are a row's: its blocks and places are those of the row alone."""
    attended = rows(4, width=6, left=True)
    reading = BlockCausal(2).inference(IDS, attended, ANSWER, None)
    assert reading.block[0, 2:].tolist() == [0, 0, 1, 1]
    assert reading.places[0, 2:].tolist() == [0, 1, 2, 3]
    assert reading.stream.tolist() == [[PADDING] * 2 + [CLEAN] * 4]
    assert pattern(reading) == ["x.....", ".x....", "..xx..", "..xx..", "..xxxx", "..xxxx"]


def test_a_row_without_an_answer_has_its_blocks_counted_from_its_end() -> None:
    nothing = torch.zeros(1, 6, dtype=torch.bool)
    assert BlockCausal(4, "answer").blocks(ALL, nothing).tolist() == [[-2, -2, -1, -1, -1, -1]]


def test_names() -> None:
    assert named("full") == Full()
    assert named("block:32") == BlockCausal(32)
    assert named("block:4:answer") == BlockCausal(4, "answer")
    assert named("block:4:causal") == BlockCausal(4, causal=True)
    assert named("block:4:answer:causal") == BlockCausal(4, "answer", causal=True)
    for wrong in (
        "blocks",
        "block",
        "block:",
        "block:0",
        "block:-1",
        "block:4:prompt",
        "block:4:row:1",
        "full:4",
        "block:4:causal:answer",
        "full:causal",
    ):
        with pytest.raises(UserError, match="attention"):
            named(wrong)


LENGTHS, PROMPTS, BLOCK = (11, 7), (3, 5), 4


@pytest.fixture(params=["llada", "dream", "a2d-qwen3"])
def noised_rows(request: pytest.FixtureRequest, tokenizer: Any) -> tuple[Any, Canvas, Tensor]:
    """A model of LLaDA's, Dream's and Qwen3's layout with attention in blocks, two rows, and the same rows noised."""
    model = FAMILIES[request.param](tokenizer)
    model.config.shift = False  # the network's own outputs are compared
    model.attention = BlockCausal(BLOCK)
    generator = torch.Generator().manual_seed(1)
    attended = rows(*LENGTHS, width=max(LENGTHS))
    ids = torch.randint(5, 60, attended.shape, generator=generator)
    answer = attended & (torch.arange(attended.shape[1]) >= torch.tensor(PROMPTS)[:, None])
    mask = answer & (torch.rand(ids.shape, generator=generator) < 0.6)
    return model, Canvas(ids, attended, answer, answer), ids.masked_fill(mask, model.config.mask_token_id)


@torch.no_grad()
def test_a_noised_block_of_training_is_the_block_at_work_of_sampling(noised_rows: tuple[Any, Canvas, Tensor]) -> None:
    """Two streams at once = one stream over the clean blocks before, then the noised block, for every block."""
    model, canvas, noised = noised_rows
    everywhere = ModelReader(model).call(noised, canvas, canvas.attended).logits
    for row, length in enumerate(LENGTHS):
        before = int(canvas.attended[:row].sum())
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            alone = torch.cat([canvas.ids[row, :start], noised[row, start:end]])[None]
            logits = model(input_ids=alone).logits[0, start:]
            torch.testing.assert_close(everywhere[before + start : before + end], logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_block_reads_what_full_attention_reads(noised_rows: tuple[Any, Canvas, Tensor]) -> None:
    model, canvas, noised = noised_rows
    model.attention = BlockCausal(64)
    in_one = ModelReader(model).call(noised, canvas, canvas.attended).logits
    model.attention = Full()
    torch.testing.assert_close(
        in_one, ModelReader(model).call(noised, canvas, canvas.attended).logits, rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_left_padding_moves_no_block(noised_rows: tuple[Any, Canvas, Tensor]) -> None:
    model, canvas, noised = noised_rows
    padded, before = canvas.left_padded(15), torch.full((2, 4), model.config.mask_token_id)
    moved = ModelReader(model).call(torch.cat([before, noised], dim=1), padded, padded.attended).logits
    torch.testing.assert_close(
        moved, ModelReader(model).call(noised, canvas, canvas.attended).logits, rtol=0, atol=1e-5
    )


def test_losses_of_blocks_carry_the_gradient_of_their_logits(noised_rows: tuple[Any, Canvas, Tensor]) -> None:
    model, canvas, noised = noised_rows
    where = (noised != canvas.ids) & canvas.attended
    found = []
    for losses in (
        ModelReader(model).losses(noised, canvas, where),
        torch.nn.functional.cross_entropy(
            ModelReader(model).call(noised, canvas, where).logits, canvas.ids[where], reduction="none"
        ),
    ):
        model.zero_grad()
        losses.sum().backward()
        found.append([losses.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


def test_a_shifted_block_model_reads_a_tokens_output_before_it_in_its_own_stream() -> None:
    """Of two streams of three tokens the first token of each has nothing before it: its own output is taken."""
    reading = BlockCausal(2).training(
        torch.ones(1, 3).long(), torch.ones(1, 3).long(), rows(3, width=3), rows(3, width=3)
    )
    batch = in_blocks(reading, torch.tensor([[True, True, True]]))
    assert batch.starts.tolist() == [[True, False, False, True, False, False]]
    assert batch.positions is not None
    assert batch.positions.tolist() == [[True] * 3 + [False] * 3]


def test_a_block_model_takes_no_positions_that_would_undo_its_blocks(noised_rows: tuple[Any, Canvas, Tensor]) -> None:
    model, canvas, noised = noised_rows
    places = torch.arange(noised.shape[1]).expand(noised.shape)
    with pytest.raises(UserError, match="block model was called with embeddings, position_ids or a cache"):
        model(input_ids=noised, attention_mask=canvas.attended.long(), position_ids=places)
