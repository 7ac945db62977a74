"""Run the tutorials of docs/learn in an empty folder each, and write what their commands print into them.

    python scripts/run_tutorials.py docs/learn/01-first-fine-tuning.md      # run it, and write the outputs anew
    python scripts/run_tutorials.py --check                                 # run all, and compare: `make tutorials`

A block of `bash` or `python` is run. One with a title, of whatever kind, is a file of that name, and is only written. A
block of `text` behind one that was run is what it printed on stdout. A paragraph `*Not run here: REASON.*` before a
block leaves it out, and tells the reader why. A comment on the line before a block says what else differs:

- `<!-- background -->` for one that goes on while the next blocks run;
- `<!-- exit code N -->` for one that ends with an error, whose stderr is shown;
- `<!-- varies -->` for an output of which only its presence is compared.

Times and speeds are written as `…`. Other numbers are compared with a tolerance (`alike`), since processors differ in
the order in which they add, and a training amplifies that; words are compared exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEARN = ROOT / "docs" / "learn"
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>.*?) -->\n|^\*Not run here: (?P<why>.*?)\.\*\n\n)?"
    r"^(?P<fence>```+)(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
TIMES = re.compile(r"(?<![\w.])[\d:.,]+(?= (?:s|ms|min|seconds|tokens a second)\b)")
NUMBER = re.compile(r"(?<![\w.])[-−+]?\d[\d,]*(?:\.\d+)?")
SHELL = re.compile(r"[|&;<>()$`*?]")
PORT = "8000"
"""The port that pages name; a free one is taken in its place."""
LIMIT = 300
"""The seconds that a block may take."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its kind, the file that it is, the comment before it, the reason why it is not run
    (empty where it is), its text and where that lies.
    """

    kind: str
    title: str | None
    note: str
    why: str
    body: str
    span: tuple[int, int]

    @property
    def runs(self) -> bool:
        """Whether it is run: no reason why not is shown before it."""
        return self.kind in ("bash", "python") and self.title is None and not self.why


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [
        Block(found["kind"], found["title"], found["note"] or "", found["why"] or "", found["body"], found.span("body"))
        for found in BLOCK.finditer(text)
    ]


def outputs(found: list[Block]) -> dict[int, Block]:
    """Return {index of a block that is run: the block that shows what it printed}."""
    pairs = zip(range(len(found)), found, found[1:], strict=False)
    return {number: after for number, before, after in pairs if before.runs and after.kind == "text"}


class Session:
    """The blocks of one page, run one after the other in a folder. With `here`, commands of Remask and blocks of Python
    run in this process, which saves the seconds in which each would import torch.
    """

    def __init__(self, folder: Path, *, here: bool = False) -> None:
        self.folder, self.here = folder, here
        self.begun: list[subprocess.Popen[str]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])
        paths = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "PYTHONPATH": str(ROOT / "src"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
        }

    def run(self, block: Block) -> str:
        """Write a file or run a block, and return what is shown of its output. Raises RuntimeError where it fails."""
        if block.title is not None:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body)
            return ""
        if not block.runs:
            return ""
        body = block.body.replace(PORT, self.port)
        if block.note == "background":
            return self.begin(body)
        code, out, err = self.in_process(block.kind, body) if self.here else self.in_shell(block.kind, body)
        wanted = int(block.note.removeprefix("exit code ")) if block.note.startswith("exit code ") else 0
        if code != wanted:
            raise RuntimeError(f"exit code {code} instead of {wanted}:\n{block.body}\n{out}\n{err}")
        return shown(out + (err if wanted else "")).replace(self.port, PORT)

    def begin(self, body: str) -> str:
        """Begin a command that goes on, and return the first line that it prints."""
        # `exec`: the process that is ended is the command, not the shell before it.
        self.begun.append(
            subprocess.Popen(
                ["bash", "-c", f"exec {body}"],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        assert self.begun[-1].stdout is not None
        return shown(self.begun[-1].stdout.readline()).replace(self.port, PORT)

    def end(self) -> None:
        """End what goes on."""
        for process in self.begun:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()

    def in_shell(self, kind: str, body: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr) of a block as a process."""
        asked = ["bash", "-euo", "pipefail", "-c", body] if kind == "bash" else [sys.executable, "-c", body]
        done = subprocess.run(
            asked, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def in_process(self, kind: str, body: str) -> tuple[int, str, str]:
        """The same in this process, where every line is a command of Remask or the block is Python."""
        commands = [line for line in body.replace("\\\n", " ").split("\n") if line.strip() and line[0] != "#"]
        if kind == "bash" and any(not line.startswith("remask ") or SHELL.search(line) for line in commands):
            return self.in_shell(kind, body)
        from remask.cli import main

        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            if kind == "python":
                exec(compile(body, "block", "exec"), {"__name__": "__main__"})
            for line in commands if kind == "bash" else []:
                code = code or main(shlex.split(line)[1:])
        return code, out.getvalue(), err.getvalue()


def shown(text: str) -> str:
    """Return an output as pages show it: without times, and without blanks at the ends of lines."""
    lines = [line.rstrip() for line in TIMES.sub("…", text).split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def alike(one: str, other: str) -> bool:
    """Return whether two outputs have the same words, and numbers that are the same but for what a processor changes:
    a tenth of their size, or 3 of the last digit that is shown.
    """
    words = [" ".join(re.sub(r"[-─━ ]+", " ", NUMBER.sub("0", text)).split()) for text in (one, other)]
    numbers = [NUMBER.findall(text) for text in (one, other)]
    return words[0] == words[1] and all(_near(a, b) for a, b in zip(*numbers, strict=True))


def _near(one: str, other: str) -> bool:
    a, b = (float(text.replace(",", "").replace("−", "-")) for text in (one, other))
    last = 10.0 ** -len(one.partition(".")[2])
    return abs(a - b) <= max(0.1 * max(abs(a), abs(b)), 3 * last * 1.001)


def carried_out(text: str, folder: Path, *, here: bool = False) -> Iterator[tuple[Block, str]]:
    """Run a page's blocks; yield each block of output with what was printed now."""
    found = blocks(text)
    pairs, session = outputs(found), Session(folder, here=here)
    try:
        for number, block in enumerate(found):
            said = session.run(block)
            if number in pairs:
                yield pairs[number], said
    finally:
        session.end()


def differences(text: str, folder: Path, *, here: bool = False) -> list[str]:
    """Run a page and return the outputs that are not alike, as differences line by line."""
    wrong = []
    for block, said in carried_out(text, folder, here=here):
        same = bool(said.strip()) if block.note == "varies" else alike(block.body, said)
        if not same:
            lines = difflib.unified_diff(block.body.split("\n"), said.split("\n"), "page", "now", lineterm="")
            wrong.append("\n".join(lines))
    return wrong


def written(text: str, folder: Path) -> str:
    """Run a page and return it with its outputs as they are now."""
    for block, said in reversed(list(carried_out(text, folder))):
        text = text[: block.span[0]] + said + text[block.span[1] :]
    return text


def processor_seconds() -> float:
    """Return the seconds that this process and those that it began, and that have ended, kept a core busy."""
    return sum(os.times()[:4])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=sorted(LEARN.glob("*.md")))
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    asked, failed = parser.parse_args(), 0
    for page in asked.pages:
        started, used, text = time.perf_counter(), processor_seconds(), page.read_text()
        print(f"{page.name}: running", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            if asked.check:
                wrong = differences(text, Path(folder))
                failed += bool(wrong)
                print("\n".join(wrong), end="\n" if wrong else "")
            else:
                page.write_text(written(text, Path(folder)))
        ran = sum(block.runs for block in blocks(text))
        passed, used = time.perf_counter() - started, processor_seconds() - used
        print(f"{page.name}: {ran} blocks in {passed:.0f} s, {used:.0f} s of a processor core", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
