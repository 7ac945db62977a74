"""Rules of one's own: what is asked, written, and masked again, by hand on models whose predictions are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_sampling import MASK, PROMPT, Table, table_of

from remask import cli
from remask.errors import UserError
from remask.sampling.denoise import run
from remask.sampling.record import Step
from remask.sampling.schedule import Decoding

EXAMPLE = Path(__file__).parents[2] / "examples" / "extend" / "remasking_rule.py"
SURE = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.9, 0.0, 0.0], [0.2, 0.2, 0.6, 0.0], [0.8, 0.1, 0.1, 0.0]]
"""Four places, surest first: 1, 3, 0, 2."""


def watched(model: Table, rule: str, **settings: Any) -> tuple[Any, list[tuple[list[int], list[int]]]]:
    """What was written, and of each step the places that were written and those that were masked again."""
    steps: list[tuple[list[int], list[int]]] = []

    def on_step(step: Step) -> None:
        again = [] if step.masked_again is None else step.masked_again[0].nonzero()[:, 0].tolist()
        steps.append((step.revealed[0].nonzero()[:, 0].tolist(), again))

    written = run(model, PROMPT, None, Decoding(max_new_tokens=4, rule=rule, **settings), on_step=on_step)
    return written, steps


def own(folder: Path, text: str) -> str:
    path = folder / "rule.py"
    path.write_text("from remask.sampling.rules import Choice\n" + text)
    return f"{path}:Rule"


def test_second_thoughts_by_hand() -> None:
    """One place at first. In the second step two, and what was written first, which is all there is, is masked again;
    from the third step on as the schedule says.
    """
    written, steps = watched(table_of(SURE), f"{EXAMPLE}:SecondThoughts")
    assert steps == [([1], []), ([0, 3], [1]), ([1], []), ([2], [])]
    assert written.ids.tolist() == [[0, 1, 2, 0]]
    assert written.revealed_at.tolist() == [[1, 2, 3, 1]]
    assert written.confidence[0].tolist() == pytest.approx([0.7, 0.9, 0.6, 0.8])
    assert written.forwards == 4


EDITING = """
class Rule:
    def __init__(self, decoding):
        pass
    def asked(self, state):
        return state.window
    def choose(self, state, proposals):
        edited = ~state.masked & state.window & (proposals.token != state.tokens)
        first = state.masked & (state.masked.cumsum(-1) == 1)
        return Choice(first | edited)
"""


class Undecided(Table):
    """Says token 0 everywhere until half of the canvas is written, then token 1."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(5, 6))

    def forward(self, input_ids: Any, attention_mask: Any, positions: Any, look: Any = None) -> Any:
        token = int((input_ids == MASK).sum() <= 2)
        self.logits = torch.full((5, 6), -torch.inf)
        self.logits[:, :4] = torch.tensor([0.1, 0.1, 0.1, 0.1]).log()
        self.logits[:, token] = 0.0
        return super().forward(input_ids, attention_mask, positions, look)


def test_a_written_token_may_be_replaced_in_the_forward_that_reveals_others(tmp_path: Path) -> None:
    written, steps = watched(Undecided(), own(tmp_path, EDITING))
    assert steps == [([0], []), ([1], []), ([0, 1, 2], []), ([3], [])]
    assert written.ids.tolist() == [[1, 1, 1, 1]]
    assert written.revealed_at.tolist() == [[2, 2, 2, 3]]


def test_what_was_given_stays_whatever_a_rule_says(tmp_path: Path) -> None:
    greedy = EDITING.replace("Choice(first | edited)", "Choice(state.masked, ~state.masked)")
    canvas = torch.tensor([[3, MASK, 3, MASK]])
    decoding = Decoding(max_new_tokens=4, rule=own(tmp_path, greedy))
    assert run(table_of(SURE), PROMPT, None, decoding, canvas=canvas).ids.tolist() == [[3, 1, 3, 0]]


def test_a_rule_writes_its_own_block_alone(tmp_path: Path) -> None:
    everything = EDITING.replace("Choice(first | edited)", "Choice(state.masked)")
    _, steps = watched(table_of(SURE), own(tmp_path, everything), block_length=2)
    assert steps == [([0, 1], []), ([2, 3], [])]


def test_a_rule_that_never_ends_is_stopped(tmp_path: Path) -> None:
    endless = EDITING.replace("Choice(first | edited)", "Choice(first, ~state.masked & state.window)")
    with pytest.raises(UserError, match=r"rule\.py:Rule: a block of 4 tokens is not finished after 64 steps"):
        watched(table_of(SURE), own(tmp_path, endless))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("class Other: pass", "there is no class Rule in .*; its classes are Other"),
        ("class Rule: pass", "Rule lacks asked, choose"),
        ("raise OSError('no')", r"cannot be imported \(OSError: no\)"),
    ],
)
def test_what_is_no_rule_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    rule = f"{tmp_path}/gone.py:Rule" if text is None else own(tmp_path, text)
    with pytest.raises(UserError, match=said):
        watched(table_of(SURE), rule)


def test_a_rule_is_named_on_the_command_line_and_in_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "eval.json"
    settings = ["--n", "2", "--decoding.max-new-tokens", "24", "--decoding.rule", f"{EXAMPLE}:SecondThoughts"]
    assert cli.main(["eval", "--model", "tiny", "--tasks", "sudoku", "--json", str(record), *settings]) == 0
    assert "remasking_rule.py:SecondThoughts@" in record.read_text()
    assert cli.main(["eval", "--model", "tiny", "--tasks", "sudoku", "--decoding.rule", "margin"]) == 2
    assert "write file.py:Class" in capsys.readouterr().err
