"""Reward functions in a process of their own: what they give is what they would give here, and they harm nothing."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remask.errors import UserError
from remask.rl.apart import Apart, set_apart
from remask.rl.completions import Completion
from remask.rl.rewards import parse_rewards, score

BODY = """
    import os, random, re, signal, subprocess, sys, time
    from remask.errors import UserError
    calls = []

    def lengths(completions, **columns): return [len(text) for text in completions]
    def counted(completions, **columns): calls.append(1); return [len(calls)] * len(completions)
    def counted_too(completions, **columns): return [len(calls)] * len(completions)
    def speaks(completions, **columns): print("hello", flush=True); return lengths(completions)
    def chance(completions, **columns): return [random.random() for _ in completions]
    def raises(completions, **columns):
        raise RuntimeError("out of paper")
    def refuses(completions, **columns): raise UserError("no", where="there", mend="mend it")
    def leaves(completions, **columns): sys.exit("bye")
    def sleeps(completions, **columns): time.sleep(1000)
    def loops(completions, **columns):
        while True: pass
    def backtracks(completions, **columns): return [bool(re.match("(a+)+$", "a" * 60 + "b"))]
    def ignores(completions, **columns):
        for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
    def exits(completions, **columns): os._exit(3)
    def crashes(completions, **columns): os.kill(os.getpid(), signal.SIGSEGV)
    def forks(completions, **columns): os.fork(); return lengths(completions)
    def begins(completions, pids, **columns):
        open(pids[0], "w").write(str(subprocess.Popen(["sleep", "1000"]).pid))
        return lengths(completions)
    def stays(completions, pids, **columns):
        pid = os.fork()
        if not pid: time.sleep(1000)
        open(pids[0], "w").write(str(pid))
        return lengths(completions)
    def unsendable(completions, **columns): return [lambda: 1]
    def timed(completions, **columns):
        def late(*_): raise TimeoutError("late")
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(1000)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "apart_functions.py"
    path.write_text(textwrap.dedent(BODY))
    return path


@pytest.fixture
def apart() -> Iterator[Apart]:
    made = Apart(timeout=1.0)
    yield made
    made.end()


def asked(**columns: Any) -> dict[str, list[Any]]:
    return {"prompts": ["say"] * 2, "completions": ["ab", "cde"], **columns}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(pids: list[int], within: float = 5.0) -> bool:
    """A process that is on its way out may need a moment on a busy machine."""
    deadline = time.monotonic() + within
    while (alive := any(map(is_alive, pids))) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive


def test_what_is_given_is_what_the_function_gives(own: Path, apart: Apart) -> None:
    assert apart.call(f"{own}:lengths", asked()) == [2, 3]
    assert apart.call(f"{own}:speaks", asked()) == [2, 3]
    assert apart.call(f"{own}:lengths", {"prompts": ["p"], "completions": ["x" * 3_000_000]}) == [3_000_000]
    assert apart.call(f"{own}:counted", asked()) == [1, 1]
    assert apart.call(f"{own}:counted", asked()) == [2, 2]
    assert apart.call(f"{own}:counted_too", asked()) == [2, 2]  # functions of a file share it


def test_chance_follows_from_what_is_asked(own: Path, apart: Apart) -> None:
    first = apart.call(f"{own}:chance", asked())
    other = apart.call(f"{own}:chance", {"prompts": ["say"], "completions": ["f"]})
    again = Apart(timeout=1.0)
    assert again.call(f"{own}:chance", asked()) == first != other
    again.end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"the reward function raised RuntimeError: out of paper \(apart_functions\.py, line 12\)"),
        ("leaves", "raised SystemExit: bye"),
        ("timed", "raised TimeoutError: late"),
        ("unsendable", "returned a list that holds more than numbers"),
        ("refuses", "^there: no; mend it$"),
        ("exits", "the reward function ended its process with exit code 3"),
        ("crashes", "the reward function ended its process by signal 11"),
        ("sleeps", r"did not return within 1 s; .*--rewards\.timeout"),
        ("loops", "did not return within 1 s"),
        ("backtracks", "did not return within 1 s"),
        ("ignores", "did not return within 1 s"),
    ],
)
def test_what_goes_wrong_is_one_error(name: str, said: str, own: Path) -> None:
    """Also where nothing in Python runs any more, as inside a regular expression."""
    rewards, apart = set_apart(parse_rewards([f"{own}:{name}"], None, canvas=20), 1.0)
    assert apart is not None
    started = time.monotonic()
    with pytest.raises(UserError, match=said):
        score(rewards, [Completion("say", "ab", 2, True)], on_bad="error")
    assert time.monotonic() - started < 10
    apart.end()


@pytest.mark.parametrize("name", ["begins", "stays"])
def test_what_a_function_leaves_behind_ends_with_the_run(name: str, own: Path, tmp_path: Path) -> None:
    apart = Apart(timeout=20.0)
    pid = tmp_path / "pid"
    assert apart.call(f"{own}:{name}", asked(pids=[str(pid)])) == [2, 3]
    left = int(pid.read_text())
    assert is_alive(left)
    apart.end()
    assert all_end([left])


def test_a_function_that_forks_and_returns_twice_answers_once(own: Path, apart: Apart) -> None:
    for _ in range(3):
        assert apart.call(f"{own}:forks", asked()) == [2, 3]
    assert apart.call(f"{own}:counted", asked()) == [1, 1]
    children = Path(f"/proc/{apart._process.pid}/task/{apart._process.pid}/children").read_text().split()
    assert all_end([int(pid) for pid in children])


def test_no_descriptor_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(2):
        Apart(5.0).end()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_it_dies_with_a_run_that_is_killed(own: Path, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        apart = Apart(timeout=100.0)
        (tmp_path / "pid").write_text(str(apart._process.pid))
        apart.call(f"{own}:backtracks", asked())
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert all_end([int((tmp_path / "pid").read_text())])


def test_without_functions_of_ones_own_there_is_no_process() -> None:
    rewards = parse_rewards(["task", "length"], None, canvas=20)
    assert set_apart(rewards, 1.0) == (rewards, None)
