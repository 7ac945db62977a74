"""From a study to its cells, and from a cell to jobs named by what they do: equal jobs are done once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from remask import __version__
from remask import config as configs
from remask.config import EvalConfig, RlConfig, SftConfig, StudyConfig
from remask.errors import UserError
from remask.evaluation.journal import weights_stamp
from remask.models.load import EMBEDDED
from remask.models.load import resolve as model_folder
from remask.tasks.benchmark import named

Kind = Literal["sft", "rl", "eval"]
CONFIGS: dict[Kind, type] = {"sft": SftConfig, "rl": RlConfig, "eval": EvalConfig}
"""The config class of each stage, in the order in which a cell goes through the stages."""
TRAINING: tuple[Kind, ...] = ("sft", "rl")
OWN = {
    "sft": ("output_dir", "seed", "resume", "overwrite"),
    "rl": ("output_dir", "seed", "resume", "overwrite"),
    "eval": ("json", "arm", "overwrite", "processes"),
}
"""The keys that the study sets, stage by stage; a study file cannot."""
START = "start"
COLUMNS = {"arm", "task", "metric", "seeds", "seconds", "mean", "low", "high", "n"} | {
    *("difference", "difference_low", "difference_high", "p", "p_holm", "gain_over_score", "gain_over_delta"),
    *("grad_norm_mean", "grad_norm_std", "grad_norm_max"),
}
"""The columns of the results, besides the axes."""


@dataclass(frozen=True)
class Job:
    """A job is one stage of a cell. `key` says what it does and on what: its config, the stage before, the files it
    reads.
    """

    kind: Kind
    config: dict[str, Any]
    after: Job | None
    key: str

    @property
    def name(self) -> str:
        """Return the name of the job's folder or file."""
        return f"{self.kind}-{self.key}"

    def chain(self) -> Iterator[Job]:
        """Yield the jobs before it, then the job itself."""
        if self.after is not None:
            yield from self.after.chain()
        yield self


@dataclass(frozen=True)
class Cell:
    """A cell is one model's results: an arm at one level of each axis with one seed (None: the model before
    training).
    """

    arm: str
    levels: tuple[tuple[str, str], ...]
    seed: int | None
    evaluation: Job

    @property
    def training(self) -> list[Job]:
        """Return the jobs that train the cell's model."""
        return [job for job in self.evaluation.chain() if job.kind != "eval"]


def cells(study: StudyConfig, where: str) -> list[Cell]:
    """Return all cells. Raises UserError for a study that says something no run can be made of."""
    _check(study, where)
    study = _respelled(study, where)
    grids = [[(axis, level) for level in levels] for axis, levels in study.axes.items()]
    found: list[Cell] = []
    for levels in itertools.product(*grids):
        patches = [study.axes[axis][level] for axis, level in levels]
        at = ", ".join(f"{axis} {level}" for axis, level in levels)
        if study.start:
            found.append(_cell(study, START, {"sft": None, "rl": None}, patches, levels, None, f"{where}, {at} start"))
        for arm, patch in study.arms.items():
            whole = _merged(study.base, *patches, patch)
            seeds = study.seeds if any(whole.get(kind) is not None for kind in TRAINING) else (None,)
            found += [_cell(study, arm, patch, patches, levels, seed, f"{where}, {at} arm {arm}") for seed in seeds]
    return found


def _check(study: StudyConfig, where: str) -> None:
    def refuse(what: str, mend: str) -> None:
        raise UserError(what, where=where, mend=mend)

    if study.baseline not in study.arms:
        refuse(f"the baseline {study.baseline!r} is no arm", f"the arms are {', '.join(study.arms)}")
    if START in study.arms:
        refuse("an arm is called start", "that is the model before training: set start: true")
    for axis, levels in study.axes.items():
        if axis in COLUMNS:
            refuse(f"an axis is called {axis}", "that is a column of the results: call it otherwise")
        if not levels:
            refuse(f"the axis {axis} has no levels", "give it one or more, or leave it out")
    if len(set(study.seeds)) < len(study.seeds) or not study.seeds or min(study.seeds) < 0:
        refuse(f"seeds = {list(study.seeds)}", "give one or more, all different and 0 or more")
    patches = [study.base, *study.arms.values(), *(p for levels in study.axes.values() for p in levels.values())]
    for patch in patches:
        for kind, values in (patch or {}).items():
            if kind not in CONFIGS:
                refuse(f"unknown stage {kind!r}", f"the stages are {', '.join(CONFIGS)}")
            if values is not None and not isinstance(values, dict):
                refuse(
                    f"expected a mapping of keys or null for the stage {kind}, got {values!r}",
                    f"write {kind}: {{key: value}}",
                )
            for key in values or {}:
                if key in OWN[kind]:
                    refuse(f"{kind}.{key} is the study's own to set", "leave it out")
    if study.base.get("eval") is None:
        refuse("nothing is evaluated", "give base.eval, such as {tasks: sudoku, n: 200}")
    if any(((patch or {}).get("eval") or {}).get("n") == 1 for patch in patches):
        refuse("eval.n is 1", "differences need two problems or more")


def _respelled(study: StudyConfig, where: str) -> StudyConfig:
    """The study with its keys as they are called here: a patch overrides another one's key however it is spelled."""

    def of(patch: dict[str, Any]) -> dict[str, Any]:
        done = dict(patch or {})
        for kind in CONFIGS:
            if done.get(kind):
                done[kind], problems = configs.respelled(CONFIGS[kind], done[kind])
                if problems:
                    raise UserError("; ".join(problems), where=f"{where}, {kind}")
        return done

    axes = {axis: {level: of(patch) for level, patch in levels.items()} for axis, levels in study.axes.items()}
    return replace(study, base=of(study.base), arms={arm: of(patch) for arm, patch in study.arms.items()}, axes=axes)


def _cell(
    study: StudyConfig,
    arm: str,
    patch: dict[str, Any],
    levels_patches: list[dict[str, Any]],
    levels: tuple[tuple[str, str], ...],
    seed: int | None,
    where: str,
) -> Cell:
    whole = _merged(study.base, *levels_patches, patch)
    job: Job | None = None
    for kind in TRAINING:
        if whole.get(kind) is not None:
            before = {} if job is None else {"model": "the stage before"}
            job = _job(kind, {**whole[kind], "seed": seed, **before}, job, where)
    values = {**whole["eval"], "arm": arm}
    if job is None:
        values.setdefault("model", study_model(_merged(study.base, *levels_patches)))
    elif "model" in values:
        raise UserError("eval.model is given for a model that is trained here", where=where, mend="leave it out")
    return Cell(arm, levels, seed, _job("eval", values, job, where))


def study_model(stages: dict[str, Any]) -> str:
    """Return the model that the first stage begins from."""
    first: dict[str, Any] = next((stages[kind] for kind in TRAINING if stages.get(kind) is not None), {})
    return first.get("model", "tiny")


def _job(kind: Kind, values: dict[str, Any], after: Job | None, where: str) -> Job:
    config: Any = configs.from_dict(CONFIGS[kind], values, where=f"{where}, {kind}")
    _check_objective(config)
    _check_tasks(config)
    stamps = sorted(_stamps(values))
    if after is None:
        begun = model_folder(config.model)  # that it is not there is said now, and not when its turn comes
        if config.model in EMBEDDED:
            stamps.append(f"{config.model} {_digest(Path(begun) / 'model.safetensors')}")
    parts = [kind, values, after.key if after else None, __version__, stamps]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return Job(kind, values, after, key)


def _check_objective(config: Any) -> None:
    """Raises UserError for a method or a choice that is not known: now, and not when its turn comes."""
    if isinstance(config, SftConfig):
        from remask.sft.presets import resolve

        resolve(config.objective, **config.choices.given())
    elif isinstance(config, RlConfig):
        from remask.rl.presets import resolve as resolve_policy

        resolve_policy(config.objective, **config.choices.given())


def _check_tasks(config: Any) -> None:
    """Raises UserError for a task or its file that is not there: now, too."""
    if isinstance(config, EvalConfig):
        for text in config.named_tasks():
            named(text)
    elif isinstance(config, RlConfig) and config.data is None:
        for text in config.tasks.split(","):
            named(text.strip())


def _stamps(values: dict[str, Any]) -> Iterator[str]:
    """What the local files and folders that a config names hold."""
    for value in values.values():
        if isinstance(value, dict):
            yield from _stamps(value)
        for part in value.split(",") if isinstance(value, str) else ():
            path = Path(part.rpartition("=")[2].strip())
            if path.is_file():
                yield f"{path} {_digest(path)}"
            elif path.is_dir() and (stamp := weights_stamp(str(path))):
                yield f"{path} {stamp}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _merged(*patches: dict[str, Any] | None) -> dict[str, Any]:
    """The patches laid over each other, mappings key by key; None takes a key out, until it is given again."""
    whole: dict[str, Any] = {}
    for patch in patches:
        for key, value in (patch or {}).items():
            if isinstance(value, dict) and isinstance(whole.get(key), dict):
                whole[key] = _merged(whole[key], value)
            else:
                whole[key] = value
    return whole
