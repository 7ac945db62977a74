"""Steps of several batches in one forward: each gets the proposals that it would have alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor, nn

from remask.diffusion.attention import BlockCausal
from remask.errors import UserError
from remask.sampling import Decoding, run
from remask.sampling.record import Denoised, Step
from remask.sampling.together import step_together
from remask.sampling.writing import Writing

LENGTHS = (3, 6, 8, 13)
SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 8},
    {"max_new_tokens": 12, "steps": 5, "block_length": 4, "reveal": "margin", "temperature": 0.7, "seed": 5},
    {"max_new_tokens": 5, "threshold": 0.3, "temperature": 1.0, "seed": 2},
    {"max_new_tokens": 10, "reveal": "random", "top_k": 7, "temperature": 1.3, "seed": 9},
]


def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(60, 120, (1, length), generator=generator) for length in LENGTHS]


def in_company(model: nn.Module, writings: list[Writing], begin_at: list[int]) -> list[Denoised]:
    """Take steps of all that have begun, in one forward for each kind of pass."""
    tick = 0
    while any(len(writing.active) for writing in writings):
        at_work = [w for w, begins in zip(writings, begin_at, strict=True) if begins <= tick and len(w.active)]
        for writing, step in zip(at_work, step_together(model, at_work), strict=True):
            assert isinstance(step, Step)
            writing.retire()
        tick += 1
    return [writing.result(0.0) for writing in writings]


def same(found: Denoised, alone: Denoised) -> None:
    assert found.ids.tolist() == alone.ids.tolist()
    assert found.revealed_at.tolist() == alone.revealed_at.tolist()
    assert torch.allclose(found.confidence, alone.confidence, atol=1e-5, equal_nan=True)
    assert found.forwards == alone.forwards


def check(model: nn.Module, settings: list[dict[str, Any]]) -> None:
    decodings = [Decoding(**said) for said in settings]
    alone = [run(model, ids, None, decoding) for ids, decoding in zip(prompts(), decodings, strict=True)]
    writings = [Writing(model, ids, None, decoding, None) for ids, decoding in zip(prompts(), decodings, strict=True)]
    for found, expected in zip(in_company(model, writings, [0, 2, 0, 5]), alone, strict=True):
        same(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_different_lengths_steps_and_settings_share_forwards(family: str, tokenizer: Any) -> None:
    check(FAMILIES[family](tokenizer), SETTINGS)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_rows_with_approximate_caches_share_forwards(cache: str, random_model: Any) -> None:
    check(random_model, [{**said, "block_length": 4, "cache": cache} for said in SETTINGS])


@pytest.mark.parametrize("cache", ["none", "exact"])
@pytest.mark.parametrize("alignment", ["row", "answer"])
def test_rows_of_a_block_model_share_forwards(cache: str, alignment: Any, random_model: Any) -> None:
    random_model.attention = BlockCausal(4, alignment)
    check(random_model, [{**said, "block_length": 4, "cache": cache} for said in SETTINGS])


def test_forwards_with_and_without_guidance_and_caches_are_made_side_by_side(random_model: Any) -> None:
    check(random_model, [{**SETTINGS[0], "guidance": 0.5}, {**SETTINGS[1], "cache": "dual"}, *SETTINGS[2:]])


def test_company_costs_one_forward_a_step(random_model: Any) -> None:
    calls = []
    random_model.register_forward_pre_hook(lambda module, args: calls.append(1))
    four = [Writing(random_model, ids, None, Decoding(max_new_tokens=6), None) for ids in prompts()]
    in_company(random_model, four, [0, 0, 0, 0])
    assert len(calls) == 6


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_a_chunk_of_logits_may_straddle_batches(chunk: int, random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remask.diffusion.head.chunk_rows", lambda width: chunk)
    check(random_model, SETTINGS)


def test_what_is_kept_in_company_is_not_computed_again(random_model: Any) -> None:
    """Tokens of each forward: a block model's finished blocks are read once, as they are by a row alone."""
    random_model.attention = BlockCausal(4)
    read: list[int] = []
    random_model.model.embed_tokens.register_forward_pre_hook(lambda module, args: read.append(args[0].numel()))
    decoding = Decoding(max_new_tokens=8, block_length=4, cache="exact")
    ids = torch.full((1, 4), 70)
    run(random_model, ids, None, decoding)
    alone = list(read)
    read.clear()
    in_company(random_model, [Writing(random_model, ids, None, decoding, None) for _ in range(2)], [0, 0])
    assert alone == [8, 4, 4, 4, 8, 4, 4, 4]
    assert read == [2 * tokens for tokens in alone]


def test_predictions_that_are_not_finite_are_the_fault_of_one_row_alone(random_model: Any) -> None:
    good, bad = (Writing(random_model, torch.full((1, 4), 70), None, Decoding(max_new_tokens=4), None) for _ in "ab")
    plain = bad._look

    def spoiled(rows: Tensor, here: Tensor) -> Any:
        look = plain(rows, here)
        return lambda logits, part: look(logits.fill_(torch.nan), part)

    bad._look = spoiled  # type: ignore[method-assign]
    step, error = step_together(random_model, [good, bad])
    assert isinstance(step, Step)
    assert isinstance(error, UserError)
