"""One job of a study, in a process of its own; what to do is in FOLDER/NAME.job.json."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from remask import config as configs
from remask.config import EvalConfig, RlConfig, SftConfig
from remask.errors import UserError
from remask.files import from_json
from remask.imports import uncollected
from remask.locks import HeldError, is_held, locked

HELD = 75
"""The exit code of a job's process where another one is at this job (EX_TEMPFAIL: to be tried again)."""


def output(folder: Path, name: str) -> Path:
    """Return a run's folder, or an evaluation's file."""
    return folder / (f"{name}.json" if name.startswith("eval-") else name)


def is_done(folder: Path, name: str) -> bool:
    """Return whether a run is finished, or an evaluation written."""
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


def lock_of(folder: Path, name: str) -> Path:
    """Return the file that a job's process holds a lock on: several studies may share the job."""
    return folder / f"{name}.lock"


def is_under_way(folder: Path, name: str) -> bool:
    """Return whether a process is at this job. One that was killed is not."""
    return is_held(lock_of(folder, name))


def main(folder: Path, name: str, log: Path, environment: dict[str, str]) -> None:
    """Carry out a job in its process, with `environment` over the one it has. Its output goes to the end of `log`; its
    exit code is 0, 2 for a mistake in the configuration, 130 where it was stopped, HELD where another process is at it.
    """
    os.setsid()  # Ctrl-C reaches the study, which ends its jobs
    os.environ.update(environment)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if threads := environment.get("OMP_NUM_THREADS"):
        import torch  # which has read the variable before, where this process is a fork

        torch.set_num_threads(int(threads))
    job = from_json((folder / f"{name}.job.json").read_text(encoding="utf-8"))
    try:
        with ExitStack() as alone:
            try:
                alone.enter_context(locked(lock_of(folder, name), holding=output(folder, name)))
            except HeldError:
                sys.exit(HELD)
            if not is_done(folder, name):  # another study may have done it meanwhile
                carry_out(folder, name, job["kind"], job["config"], job["after"])
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
