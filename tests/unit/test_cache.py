"""Approximate decoding: what is kept is what was computed, rows do not see each other, and less is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_models import FAMILIES
from torch import Tensor

from remask.errors import UserError
from remask.sampling import Decoding, run
from remask.sampling.cache import KeyValues, of_blocks, whole

CAUSAL = [name for name in FAMILIES if name not in ("bert", "modernbert")]
MODES = ("prefix", "dual")
every_mode = pytest.mark.parametrize("mode", MODES)


@pytest.mark.parametrize(
    ("mode", "shift", "places", "renewed"),
    [
        ("dual", False, [[2, 3, 4], [5, 6, 7]], [[1, 1, 1], [1, 1, 1]]),
        ("dual", True, [[1, 2, 3, 4], [4, 5, 6, 7]], [[1] * 4] * 2),
        ("prefix", False, [[2, 3, 4, 5, 6, 7]] * 2, [[1] * 6, [0, 0, 0, 1, 1, 1]]),
        ("prefix", True, [[1, 2, 3, 4, 5, 6, 7]] * 2, [[1] * 7, [0, 0, 0, 1, 1, 1, 1]]),
    ],
)
def test_windows_by_hand(mode: Any, shift: bool, places: list[list[int]], renewed: list[list[int]]) -> None:
    """Blocks of three that begin at 2 and 5 in rows of eight."""
    window = of_blocks(mode, torch.tensor([2, 5]), 3, 8, shift=shift)
    assert window.places.tolist() == places
    assert window.renew.int().tolist() == renewed


@pytest.mark.parametrize(
    ("shift", "places", "renewed"), [(False, [5, 6, 7], [0, 1, 1]), (True, [4, 5, 6, 7], [0, 1, 1, 1])]
)
def test_a_last_block_that_is_shorter_is_filled_up_from_before(
    shift: bool, places: list[int], renewed: list[int]
) -> None:
    """Of what fills it up nothing is renewed: the block before is finished."""
    window = of_blocks("dual", torch.tensor([6]), 3, 8, shift=shift)
    assert window.places.tolist() == [places]
    assert window.renew.int().tolist() == [renewed]


@every_mode
@pytest.mark.parametrize("family", CAUSAL)
def test_a_window_of_unchanged_rows_says_what_the_whole_said(family: str, mode: Any, tokenizer: Any) -> None:
    """Also where rows are left-padded and stand in different blocks."""
    model = FAMILIES[family](tokenizer).eval()
    ids = torch.randint(60, 120, (3, 12), generator=torch.Generator().manual_seed(0))
    attended = torch.ones_like(ids)
    attended[1, :3] = 0
    starts, rows = torch.tensor([4, 8, 6]), torch.tensor([2, 0, 1])
    positions = torch.zeros(3, 12, dtype=torch.bool)
    for row, start in enumerate(starts.tolist()):
        positions[row, start : start + 4] = True
    shift = bool(getattr(model.config, "shift", False))
    cache = KeyValues(3, 12)

    def said(window: Any, rows: Tensor) -> Tensor:
        inputs = cache.inputs(
            rows, window, input_ids=ids[rows], attention_mask=attended[rows], positions=positions[rows]
        )
        with torch.no_grad():
            return model(**inputs).logits

    with torch.no_grad():
        plain = model(input_ids=ids[rows], attention_mask=attended[rows], positions=positions[rows]).logits
    assert torch.allclose(said(whole(3, 12, ids.device), rows), plain, atol=1e-4)
    window = of_blocks(mode, starts[rows], 4, 12, shift=shift)
    assert window.places.shape[1] < 12
    assert torch.allclose(said(window, rows), plain, atol=1e-4)
    ids[0, 1] += 1  # far from every window: a cache does not see it
    assert torch.allclose(said(window, rows), plain, atol=1e-4)


class Counter:
    """Tokens that a model is called on."""

    def __init__(self, model: Any) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        self.tokens += keywords["input_ids"].numel()


def prompts() -> Tensor:
    return torch.randint(60, 120, (3, 8), generator=torch.Generator().manual_seed(1))


@every_mode
def test_one_step_a_block_is_exact(mode: Any, random_model: Any) -> None:
    settings = {"max_new_tokens": 12, "block_length": 4, "steps": 3, "stop_early": False}
    exact = run(random_model, prompts(), None, Decoding(**settings))
    assert torch.equal(run(random_model, prompts(), None, Decoding(**settings, cache=mode)).ids, exact.ids)


def test_less_is_computed_and_the_first_step_of_a_block_is_exact(random_model: Any) -> None:
    """Rows of 8 + 12 tokens, three blocks of 4 in 4 steps: 12 whole forwards exactly, 3 whole ones and 9 windows else,
    of 4 tokens (dual) or 12, 8 and 4 (prefix).
    """
    settings = {"max_new_tokens": 12, "block_length": 4, "stop_early": False}
    counter, found = Counter(random_model), {}
    for mode, tokens in (("none", 12 * 20), ("prefix", 3 * 20 + 3 * (12 + 8 + 4)), ("dual", 3 * (20 + 12))):
        counter.tokens = 0
        found[mode] = run(random_model, prompts()[:1], None, Decoding(**settings, cache=mode))
        assert counter.tokens == tokens
        assert found[mode].forwards == 12
    first = found["none"].revealed_at == 0
    for mode in MODES:
        assert torch.equal(found[mode].ids[first], found["none"].ids[first])


@pytest.mark.slow
@every_mode
@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(("temperature", "threshold"), [(0.0, 0.045), (0.9, 0.012)])
def test_a_row_alone_is_the_same_row_in_a_batch(
    family: str, mode: Any, temperature: float, threshold: float, tokenizer: Any
) -> None:
    """With a threshold, rows leave their blocks at different steps."""
    model = FAMILIES[family](tokenizer).eval()
    decoding = Decoding(
        max_new_tokens=16, block_length=4, threshold=threshold, temperature=temperature, cache=mode, stop_early=False
    )
    ids, attended = prompts(), torch.ones(3, 8, dtype=torch.long)
    attended[1, :5] = 0
    together = run(model, ids, attended, decoding, row_seeds=[4, 5, 6])
    steps = together.revealed_at.max(-1).values
    assert len(steps.unique()) > 1
    for row in range(3):
        own = attended[row].bool()
        alone = run(model, ids[row : row + 1, own], None, decoding, row_seeds=[4 + row])
        assert torch.equal(alone.ids[0], together.ids[row])
        assert torch.equal(alone.revealed_at[0], together.revealed_at[row])


def test_what_cannot_be_cached_is_refused(tokenizer: Any, random_model: Any) -> None:
    with pytest.raises(UserError, match="DiffusionBert has no keys and values to keep"):
        run(FAMILIES["bert"](tokenizer), prompts(), None, Decoding(max_new_tokens=4, cache="dual"))
    with pytest.raises(UserError, match="guidance and a cache do not go together"):
        Decoding(cache="dual", guidance=1.0)
