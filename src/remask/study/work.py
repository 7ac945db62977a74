"""One job in a process of its own: `python -m remask.study.work FOLDER NAME`, what to do in FOLDER/NAME.job.json."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.config import EvalConfig, RlConfig, SftConfig
from remask.errors import UserError
from remask.files import from_json
from remask.imports import uncollected
from remask.locks import locked


def output(folder: Path, name: str) -> Path:
    """A run's folder, or an evaluation's file."""
    return folder / (f"{name}.json" if name.startswith("eval-") else name)


def is_done(folder: Path, name: str) -> bool:
    path = output(folder, name)
    if path.suffix == ".json":
        return path.exists()
    try:
        return from_json((path / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def carry_out(folder: Path, name: str, kind: str, values: dict[str, Any], after: str | None) -> None:
    """Train or evaluate; a run that was stopped goes on from its newest checkpoint."""
    path = output(folder, name)
    if after is not None:
        values = {**values, "model": str(output(folder, after))}
    if kind == "eval":
        with uncollected():
            from remask.evaluation.evaluate import evaluate_model

        config = configs.from_dict(EvalConfig, values, where=name)
        evaluate_model(replace(config, json=str(path), overwrite=True), quiet=True)
        return
    begun = (path / "run.json").exists()
    values = {**values, "output_dir": str(path), "resume": "auto" if begun else None, "overwrite": not begun}
    if kind == "sft":
        with uncollected():
            from remask.sft.run import run_sft

        outcome = run_sft(configs.from_dict(SftConfig, values, where=name), quiet=True)
    else:
        with uncollected():
            from remask.rl.run import run_rl

        outcome = run_rl(configs.from_dict(RlConfig, values, where=name), quiet=True)
    if not outcome.finished:
        raise KeyboardInterrupt


def alone_with(folder: Path, name: str) -> AbstractContextManager[None]:
    """Studies share jobs: where another one is at this job, wait for it."""
    return locked(folder / f"{name}.lock", holding=output(folder, name), wait=True)


def main() -> int:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    job = from_json((folder / f"{name}.job.json").read_text(encoding="utf-8"))
    try:
        with alone_with(folder, name):
            if not is_done(folder, name):  # another study may have done it meanwhile
                carry_out(folder, name, job["kind"], job["config"], job["after"])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
