"""Problems to train or evaluate on: which, from where, and how they are put to the model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remask.chat_template import Message
from remask.choices import PromptStyle, Split
from remask.data.files import FILE_KINDS, is_there
from remask.errors import UserError
from remask.own_code import is_own, stamp
from remask.tasks import GeneratedTask, Problem, Task, get
from remask.tasks.base import fill_template

if TYPE_CHECKING:
    from remask.sandbox import Sandbox


@dataclass(frozen=True)
class Benchmark:
    """A benchmark holds problems of one task and where they came from."""

    task: Task
    problems: list[Problem]
    source: str

    @classmethod
    def parse(
        cls, text: str, *, count: int | None, split: Split, seed: int, sandbox: Sandbox | None = None
    ) -> Benchmark:
        """Read `sudoku` (generated problems of a split), `gsm8k` (the hub's data set: to train on, its training split),
        or `name=SOURCE`: a published file, a folder in the hub's layout or a hub id (`owner/name@split`).

        Of published problems the first `count` are taken. Tasks that run code need a sandbox.
        """
        task, source = named(text)
        if task.runs_code:
            if sandbox is None:
                raise UserError(
                    f"{task.name} runs the code that the model writes, which is off",
                    mend="allow it, in a sandbox, with --allow-code-execution",
                )
            task.sandbox = sandbox
        if source is None and isinstance(task, GeneratedTask):
            problems = task.generate(count or 100, split=split, seed=seed)
            maker = f" ({task.made_by})" if task.made_by else ""
            return cls(task, problems, f"generated {split} split, seed {seed}{maker}")
        problems = _numbered(task.load(source or None, split="train" if split == "train" else None))
        version = f" (version {stamp(text.partition('=')[0])})" if is_own(text) else ""
        return cls(task, problems[:count] if count else problems, f"{source or task.hub}{version}")


def named(text: str) -> tuple[Task, str | None]:
    """Return the task and the source that `name` or `name=SOURCE` says. Raises UserError for a task or a file that does
    not exist.
    """
    name, given, source = text.partition("=")
    task = get(name)
    if given and not is_hub_id(source) and not is_there(source):
        raise UserError("no such file", where=source, mend=f"give {name}=FILE with a file that is there")
    return task, source if given else None


def is_hub_id(source: str) -> bool:
    """Return whether a text is `owner/name`, perhaps with `:config` and `@split`, and not in the form of a
    file's path.
    """
    name = source.partition("@")[0].partition(":")[0]
    owner, slash, rest = name.partition("/")
    plain = bool(slash and owner and rest) and "/" not in rest and not name.startswith((".", "~"))
    return plain and not Path(owner).exists() and not rest.endswith((*FILE_KINDS, ".gz"))


def _numbered(problems: Sequence[Problem]) -> list[Problem]:
    """Problems that a file holds twice are told apart: results are paired by key."""
    seen: Counter[str] = Counter()
    named = []
    for problem in problems:
        seen[problem.key] += 1
        copy = seen[problem.key]
        named.append(problem if copy == 1 else replace(problem, key=f"{problem.key}#{copy}"))
    return named


@dataclass(frozen=True)
class Asking:
    """The way a problem is put: the task's wording or a template in its place, a system turn, and words that every
    answer begins with (`prefill`).
    """

    style: PromptStyle
    template: str | None = None
    system: str | None = None
    prefill: str = ""

    def prompt(self, task: Task, problem: Problem) -> str:
        """Return the user's turn: the template filled, or the task's wording."""
        return task.prompt(problem, self.style) if self.template is None else fill_template(self.template, problem)

    def turns(self, task: Task, problem: Problem) -> list[Message]:
        """Return the conversation to be answered: the problem's, or the prompt as the user's turn."""
        whole = task.turns(problem) if self.template is None else None
        if whole is None:
            return self.messages(self.prompt(task, problem))
        if self.system and whole[0]["role"] != "system":
            return [{"role": "system", "content": self.system}, *whole]
        return whole

    def messages(self, prompt: str) -> list[Message]:
        """Return the conversation to be answered, with the system turn before it."""
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return [*turns, {"role": "user", "content": prompt}]

    def described(self) -> dict[str, Any]:
        """Return what is recorded beside a score; what is not used is left out."""
        further = {"prompt_template": self.template, "system": self.system, "prefill": self.prefill or None}
        return {"prompt_style": self.style, **{key: value for key, value in further.items() if value is not None}}


def read_template(text: str | None) -> str | None:
    """Return a prompt template as given, or from the file that `@FILE` names. Raises UserError where that cannot be
    read.
    """
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the prompt template cannot be read ({error})", where=text[1:], mend="give @FILE with a text file in UTF-8"
        ) from None


def problem_seed(problem: Problem) -> int:
    """Return the number that ties a problem's random draws to the problem, not to its place in a batch."""
    return int.from_bytes(hashlib.blake2b(problem.key.encode(), digest_size=7).digest(), "big")
