"""Training examples from the tasks' generators: `generated:<task>[+<task>]:<rows>[:<seed>]`, `direct:…` for the answers
without their work, and `gym:<name>[+<name>]:…` for tasks of reasoning-gym's by their names there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import cast

from remask.choices import PromptStyle, Split
from remask.data.sources import Example
from remask.errors import UserError
from remask.tasks import get
from remask.tasks.generator import GeneratedTask
from remask.tasks.gym import GYM

GENERATED, DIRECT = "generated:", "direct:"
FORM = re.compile(r"(generated|direct|gym):(?P<names>.+?):(?P<rows>[0-9]+)(:(?P<seed>[0-9]+))?", re.DOTALL)
"""The form of a source of generated problems. A user's task, `file.py:Class`, has a colon in its name."""


def is_generated(source: str) -> bool:
    """Return whether a source is one of generated problems."""
    return source.startswith((GENERATED, DIRECT, GYM))


def generated_examples(source: str, *, split: Split, prompt_style: str, wrong: bool = False) -> list[Example]:
    """Return worked answers to generated problems (of a `direct:` source the answers alone), the tasks in turn, or
    plausible `wrong` ones to the same problems. The same (source, split) gives the same examples.

    Raises UserError where the source is not of the form above.
    """
    names, count, seed = _parse(source)
    direct = source.startswith(DIRECT)
    per_task = [count // len(names) + (i < count % len(names)) for i in range(len(names))]
    pools = [
        _answers(name, n, split, seed, prompt_style, wrong, direct) for name, n in zip(names, per_task, strict=True)
    ]
    return [pool[i] for i in range(max(per_task)) for pool in pools if i < len(pool)]


def _answers(
    name: str, count: int, split: Split, seed: int, prompt_style: str, wrong: bool, direct: bool
) -> list[Example]:
    task = get(name)
    if not isinstance(task, GeneratedTask):
        raise UserError(f"{name} makes no problems of its own", mend="give a file of rows to train on")
    rng = random.Random(f"{'wrong' if wrong else 'worked'}/{task.name}/{split}/{seed}")
    examples = []
    for problem in task.generate(count, split=split, seed=seed):
        answer = task.solve(problem, rng, wrong=wrong)
        examples.append(
            Example(
                ({"role": "user", "content": task.prompt(problem, cast(PromptStyle, prompt_style))},),
                task.without_work(answer) if direct else answer,
                f"generated {split} problem {problem.key}",
            )
        )
    return examples


def _parse(source: str) -> tuple[Sequence[str], int, int]:
    found = FORM.fullmatch(source)
    if found is None or int(found["rows"]) < 1:
        raise UserError(
            f"{source!r} is not a generated source",
            mend="write generated:<task>[+<task>]:<rows>[:<seed>], direct:… for answers without work, or "
            "gym:<name>[+<name>]:<rows>[:<seed>]",
        )
    prefix = GYM if source.startswith(GYM) else ""
    return [prefix + name for name in found["names"].split("+")], int(found["rows"]), int(found["seed"] or 0)
