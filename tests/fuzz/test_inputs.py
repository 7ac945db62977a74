"""A fixed sample of the cases of `inputs.py`, and that it sees what it looks for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import inputs
import pytest
from inputs import Case, case, run

SAMPLE = range(56)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("number", SAMPLE)
def test_a_spoilt_command_works_or_is_refused_in_one_line(number: int, tmp_path: Path) -> None:
    one = case(0, number)
    _, wrong = run(one, tmp_path, seconds=60)
    assert wrong is None, f"{'; '.join(one.changes)}\n{one.command}"


def test_a_number_is_always_the_same_case() -> None:
    assert case(0, 5) == case(0, 5)
    assert len({repr(case(0, number)) for number in SAMPLE}) == len(SAMPLE)


def leave_a_file() -> int:
    Path("half.tmp").touch()
    print("remask eval: no", file=sys.stderr)
    return 2


def say(text: str, code: int = 2) -> Callable[[], int]:
    def ended() -> int:
        print(text, file=sys.stderr)
        return code

    return ended


def write_nan() -> int:
    Path("x.json").write_text('{"a": NaN}')
    return 0


@pytest.mark.parametrize(
    ("ends", "seen"),
    [
        (lambda: {}["x"], "KeyError"),
        (lambda: 1, "exit code 1"),
        (say("Traceback (most recent call last):\nremask eval: no"), "a traceback is printed"),
        (say("remask eval: no\nmore"), "not one line of error"),
        (say("remask eval: no\nremask eval: no"), "not one line of error"),
        (say(""), "not one line of error"),
        (say(f"remask eval: {'x' * 9999}"), "a message of 10012 characters"),
        (say("remask eval: \x1b[2J"), "control characters"),
        (leave_a_file, "left behind: half.tmp"),
        (write_nan, "x.json is written and is not JSON"),
        (lambda: 0, "passed over"),
        (lambda: [None for _ in iter(int, 1)], "took over 0.2 s"),
        (say("remask eval: no"), None),
    ],
)
def test_what_is_looked_for_is_seen(
    ends: Callable[[], int], seen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "remask", lambda _: ends())
    _, wrong = run(Case(["eval"], {}, "", [], hopeless=seen == "passed over"), tmp_path, seconds=0.2)
    assert (wrong is None) == (seen is None)
    assert seen is None or seen in str(wrong)
