"""The canvas that `remask generate` draws in a terminal."""

from __future__ import annotations

from typing import Any

import torch

from remask.commands import generate
from remask.sampling import Step


def test_what_stands_where_is_told_by_its_style(tokenizer: Any) -> None:
    """Two blocks of three: a letter that stays, one that replaced another, one that is new; then masks of the block at
    work and of the next one.
    """
    mask = tokenizer.mask_token_id
    a, b, c = tokenizer.encode("abc", add_special_tokens=False)
    told = [[[a, b, c, mask, mask]], [[0, 1, 1, 0, 0]], [[0, 1, 0, 0, 0]], [[1, 1, 1, 1, 0]]]
    canvas, revealed, replaced, at_work = (torch.tensor(x) for x in told)
    view = generate._canvas(tokenizer, mask, "say")
    with view as draw:
        draw(Step(4, torch.tensor([0]), canvas, revealed.bool(), None, replaced.bool(), at_work.bool()))
        text: Any = view.live.get_renderable()
    assert text.plain == "say\nabc··\nstep 5, 1 replaced"
    assert text.style == ""
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans if span.style}
    assert styles == {"say\n": "dim", "b": "bold yellow", "c": "bold green", "·": "dim", "\nstep 5, 1 replaced": "dim"}
    assert [span.start for span in text.spans if span.style == "dim"] == [0, 8, 9]
