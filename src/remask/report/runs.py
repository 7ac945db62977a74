"""What a run's folder holds, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remask.errors import UserError
from remask.evaluation.arms import Evaluation, find_evaluations, read_json
from remask.report.lines import json_lines
from remask.report.rollouts import PromptGroup, read_rollouts


@dataclass(frozen=True)
class Decile:
    """A decile is a tenth of the response tokens by entropy: how many it holds, and how many of them were masked."""

    tokens: int
    masked: int


@dataclass(frozen=True)
class ClassCounts:
    """Counts by class, with a number for each row: tokens, and how many of them the model got right before training and
    after it (None: not read). `held_out`: the rows are not those trained on.
    """

    held_out: bool
    tokens: dict[str, list[int]]
    before: dict[str, list[int]] | None
    after: dict[str, list[int]] | None

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.tokens.values()), []))

    @classmethod
    def parse(cls, data: Any) -> ClassCounts:
        """Read the counts of a file. Raises KeyError, TypeError, ValueError or AttributeError for any other content."""

        def counts(key: str) -> dict[str, list[int]]:
            return {str(name): [int(n) for n in numbers] for name, numbers in data[key].items()}

        before, after = (None if data[key] is None else counts(key) for key in ("before", "after"))
        found = cls(bool(data["held_out"]), counts("tokens"), before, after)
        tables = (found.tokens, *(table for table in (before, after) if table is not None))
        if {len(numbers) for table in tables for numbers in table.values()} - {found.rows}:
            raise ValueError("classes of different numbers of rows")
        return found


@dataclass(frozen=True)
class Example:
    """An inspected response has tokens, `entropy` in nats, and per token `beta` and `rate` (mask probability) where
    they were recorded.
    """

    prompt: str
    tokens: list[str]
    entropy: list[float]
    beta: list[float] | None
    rate: list[float] | None
    time: float | None


@dataclass(frozen=True)
class Run:
    """A training run as its folder says it. `info` is run.json; what the folder lacks is empty."""

    path: Path
    method: str
    seed: int | None
    status: str
    info: dict[str, Any]
    config: str
    metrics: list[dict[str, Any]]
    deciles: list[Decile]
    examples: list[Example]
    evaluations: list[Evaluation]
    rollouts: list[PromptGroup] = field(default_factory=list)
    class_counts: ClassCounts | None = None

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return self.path.name

    @property
    def training(self) -> str:
        """Return the kind of training: `sft`, `rl` or `dpo`."""
        return str(self.info.get("training") or "sft")

    @property
    def logged(self) -> list[str]:
        """Return the keys of all that was logged, in the order in which they came up."""
        return list(dict.fromkeys(key for row in self.metrics for key in row))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of one logged quantity, in the order logged, without what is missing or not finite."""
        rows = [(row["step"], row[key]) for row in self.metrics if key in row and "step" in row]
        rows = [(step, value) for step, value in rows if isinstance(value, int | float) and abs(value) < float("inf")]
        return [float(step) for step, _ in rows], [float(value) for _, value in rows]


def load_run(path: Path | str) -> Run:
    """Read a run's folder. Raises UserError naming the file that is not a run's or cannot be read."""
    path = Path(path)
    record = path / "run.json"
    if not record.is_file():
        raise UserError("not a run's folder (it has no run.json)", where=str(path), mend="give a folder made by a run")
    info = read_json(record)
    if not isinstance(info, dict) or info.get("kind") != "remask.run":
        raise UserError("not the record of a run", where=str(record), mend="give a folder made by a run")
    odd = [name for name, kinds in OF_RECORD.items() if not _is_of(info.get(name), kinds)]
    if odd:
        raise UserError(
            f"{', '.join(odd)}: not what a run records there", where=str(record), mend="give a folder made by a run"
        )
    objective = info.get("objective")
    method = objective.get("name") if isinstance(objective, dict) else objective
    config = path / "config.yaml"
    return Run(
        path=path,
        method=str(method or path.name),
        seed=info.get("seed"),
        status=str(info.get("status", "unknown")),
        info=info,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        metrics=[row for _, row in json_lines(path / "metrics.jsonl")],
        deciles=_deciles(path / "masking.json"),
        examples=_examples(path / "inspect.json"),
        evaluations=find_evaluations(path),
        rollouts=read_rollouts(path / "completions.jsonl"),
        class_counts=_class_counts(path / "class_accuracy.json"),
    )


OF_RECORD: dict[str, tuple[type, ...]] = {
    "objective": (dict, str),
    "model": (str,),
    "seed": (int,),
    "seconds": (int, float),
    "hardware": (dict,),
    "versions": (dict,),
    "data": (dict,),
    "training": (str,),
    "diagnostics": (dict,),
}
"""The keys that are read of a run's record, and their types; null, and a missing key, are accepted."""


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return value is None or (isinstance(value, kinds) and not isinstance(value, bool))


def _deciles(path: Path) -> list[Decile]:
    if not path.is_file():
        return []
    data = read_json(path)
    try:
        return [Decile(int(d["tokens"]), int(d["masked"])) for d in data["deciles"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"is not a masking table ({error!r})", where=str(path), mend="remove it or run again"
        ) from error


def _class_counts(path: Path) -> ClassCounts | None:
    if not path.is_file():
        return None
    try:
        return ClassCounts.parse(read_json(path))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is no class table ({error!r})", where=str(path), mend="remove it or run again") from error


def _examples(path: Path) -> list[Example]:
    if not path.is_file():
        return []
    data = read_json(path)
    try:
        return parse_examples(data["examples"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"is not an inspection ({error!r})", where=str(path), mend="remove it or run again") from error


def parse_examples(examples: Sequence[dict[str, Any]]) -> list[Example]:
    """Read inspected examples. Raises KeyError, TypeError or ValueError for what is no inspected example."""
    return [_example(example) for example in examples]


def _example(data: dict[str, Any]) -> Example:
    tokens = [str(token) for token in data["tokens"]]

    def per_token(key: str) -> list[float] | None:
        if data.get(key) is None:
            return None
        values = [float(value) for value in data[key]]
        if len(values) != len(tokens):
            raise ValueError(f"{len(values)} values of {key} for {len(tokens)} tokens")
        return values

    time = data.get("time")
    entropy = per_token("entropy")
    if entropy is None:
        raise KeyError("entropy")
    return Example(
        prompt=str(data.get("prompt", "")),
        tokens=tokens,
        entropy=entropy,
        beta=per_token("beta"),
        rate=per_token("rate"),
        time=None if time is None else float(time),
    )
