"""Several processes fail as one and speak once: `gather_object` stands in for the others."""

from __future__ import annotations

from typing import Any

import pytest

from remask.errors import UserError
from remask.rl import ranks
from remask.training.sharding import shares
from remask.training.window import mean_of


def test_what_one_process_cannot_do_none_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gather_object", lambda own: [*own, UserError("no paper", where="there", mend="buy")])
    with pytest.raises(UserError, match=r"^there: in rollout 3, no paper; buy$"):
        ranks.agreed(lambda: 1, when="in rollout 3, ")


def test_what_all_can_do_is_done() -> None:
    assert ranks.agreed(lambda: 7, when="") == 7
    with pytest.raises(UserError, match=r"^now, no$"):
        ranks.agreed(_refuse, when="now, ")


def _refuse() -> int:
    raise UserError("no")


@pytest.mark.parametrize(("main", "said"), [(True, "so\n"), (False, "")])
def test_one_process_speaks(
    main: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class State:
        is_main_process: Any = main

    monkeypatch.setattr(ranks, "PartialState", State)
    ranks.tell("so")
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_process_has_as_many_jobs_and_each_counts_once(world: int) -> None:
    turns = [shares(list("abcdefg"), rank, world) for rank in range(world)]
    assert len({len(own) for own in turns}) == 1
    assert sorted(job for own in turns for job, counts in own if counts) == list("abcdefg")


def test_what_is_logged_is_the_mean_over_processes_and_of_maxima_the_largest() -> None:
    assert mean_of([{"loss": 1.0, "ratio_max": 3.0}, {"loss": 2.0, "ratio_max": 2.0}]) == {
        "loss": 1.5,
        "ratio_max": 3.0,
    }
