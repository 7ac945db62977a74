"""One process at a time: the second is told who holds it, a dead one holds nothing, and no file is left behind."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from remask import locks
from remask.errors import UserError
from remask.locks import HeldError, alone_in, is_held, locked

HOLD = """
import sys
from pathlib import Path
from remask.locks import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
    if sys.argv[2] == "fails":
        raise ValueError
"""
COUNT = """
import sys, time
from pathlib import Path
from remask.locks import HeldError, locked
count, done = Path(sys.argv[1]), 0
while done < 25:
    try:
        with locked(count.with_suffix(".lock"), holding=count):
            number = int(count.read_text())
            time.sleep(0.0005)
            count.write_text(str(number + 1))
            done += 1
    except HeldError:
        time.sleep(0.0005)
"""


def hold(folder: Path, end: str = "ends") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    process = hold(folder)
    with pytest.raises(UserError) as refused, alone_in(folder):
        pass
    said = str(refused.value)
    assert said.startswith(f"{folder}: is being worked on by process {process.pid} on {platform.node()} since ")
    assert re.search(r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(-c ", said)
    process.communicate("\n")
    with alone_in(folder):
        assert [path.name for path in folder.iterdir()] == [".remask.lock"]
    assert not (tmp_path / "runs").exists()  # nothing was put into it


@pytest.mark.parametrize("end", ["ends", "fails", "is killed", "is interrupted"])
def test_it_is_let_go_of_however_its_process_ends(end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("x")
    process = hold(tmp_path, end)
    assert is_held(tmp_path / ".remask.lock")
    if end == "is killed":
        process.kill()
    elif end == "is interrupted":
        process.send_signal(2)
    process.communicate("\n")
    assert (tmp_path / ".remask.lock").exists() == (end == "is killed")
    assert not is_held(tmp_path / ".remask.lock")
    with alone_in(tmp_path):
        holder = json.loads((tmp_path / ".remask.lock").read_text())
    assert holder["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert capsys.readouterr().err == ""


def test_within_a_process_too(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="is being worked on by this process"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        assert is_held(tmp_path / ".remask.lock")
        with pytest.raises(HeldError), alone_in(tmp_path):  # to have looked has not let go of it
            pass
    assert not is_held(tmp_path / ".remask.lock")
    with alone_in(tmp_path):
        pass


def test_the_first_of_several_processes_of_a_run_holds_it_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = hold(tmp_path)
    monkeypatch.setenv("RANK", "1")
    with alone_in(tmp_path):
        pass
    process.communicate("\n")


def test_many_that_try_come_one_after_the_other(tmp_path: Path) -> None:
    """Each removes the file that the others try to lock."""
    count = tmp_path / "count"
    count.write_text("0")
    counters = [subprocess.Popen([sys.executable, "-c", COUNT, str(count)]) for _ in range(4)]
    assert [process.wait(120) for process in counters] == [0] * 4
    assert count.read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", refuse)
    with locked(tmp_path / "x.lock", holding=tmp_path / "x"):
        pass
    assert "no locks on this file system" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
