"""Carrying out jobs: several processes at a time, each job once, after the one it builds on."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from remask.errors import UserError
from remask.files import write_atomically
from remask.progress import Tracker, progress
from remask.report.words import plural
from remask.study import work
from remask.study.grid import Cell, Job
from remask.study.work import HELD, is_done, is_under_way, output

LOOK_SECONDS = 2.0
"""The seconds between readings of the logs of running jobs for their steps, and between looks at the jobs of others."""


@dataclass
class Running:
    """A running job has a process and a place."""

    job: Job
    process: BaseProcess
    place: int
    """The number of the job's place among those of the processes (and of its GPU)."""


def run_all(cells: Iterable[Cell], folder: Path, processes: int, *, label: str = "study", quiet: bool = False) -> None:
    """Do all jobs that are not done yet; `label` names the study in the progress line.

    A job that another process is at is left to it, and the next one is taken: so several processes share a study. If
    that process ends without the job's result, however it ends, the job is taken here.
    When a job fails or the study is stopped, all that run are stopped; what is done stays done, and runs go on from
    their checkpoints the next time.
    """
    jobs = {job.name: job for cell in cells for job in cell.evaluation.chain()}
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs.values() if not is_done(folder, job.name)]
    running: list[Running] = []
    with progress(label, len(waiting), enabled=not quiet and bool(waiting)) as tick:
        try:
            _loop(waiting, running, folder, processes, tick)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.join()


def _loop(waiting: list[Job], running: list[Running], folder: Path, processes: int, tick: Tracker) -> None:
    waiting, total, looked = list(waiting), len(waiting), 0.0
    while waiting or running:
        free = [place for place in range(processes) if place not in {one.place for one in running}]
        if free:
            waiting = [job for job in waiting if not is_done(folder, job.name)]  # another process may have done it
        for place, job in list(zip(free, _ready(waiting, folder), strict=False)):
            running.append(Running(job, _begin(job, folder, processes, place), place))
            waiting.remove(job)
        time.sleep(0.1 if running else LOOK_SECONDS)
        if waiting and not running:
            tick(total - len(waiting), f"{plural(len(waiting), 'job')} left to other processes")
        for one in [one for one in running if one.process.exitcode is not None]:
            running.remove(one)
            if one.process.exitcode == HELD:
                waiting.insert(0, one.job)
                continue
            if one.process.exitcode or not is_done(folder, one.job.name):
                raise UserError(
                    f"{one.job.name} failed ({_last_line(folder, one.job)})",
                    where=str(_log(folder, one.job)),
                    mend="read that file; the same command goes on with what is left",
                )
            tick(total - len(waiting) - len(running), one.job.name)
        if running and time.monotonic() - looked >= LOOK_SECONDS:
            looked = time.monotonic()
            share, note = _under_way(running, folder)
            tick(total - len(waiting) - len(running) + share, note)


def _ready(waiting: list[Job], folder: Path) -> Iterator[Job]:
    """The jobs that can begin now: what they build on is done, and no other process is at them."""
    for job in waiting:
        if (job.after is None or is_done(folder, job.after.name)) and not is_under_way(folder, job.name):
            yield job


def _under_way(running: list[Running], folder: Path) -> tuple[float, str]:
    """(how many jobs the running ones have done together, as far as it is known; at which step each is)."""
    share, notes = 0.0, []
    for job in (one.job for one in running):
        if step := _step(folder, job):
            share += step / job.config.get("max_steps", math.inf)
            notes.append(f"{job.name} at step {step}")
    return min(share, 0.99 * len(running)), ", ".join(notes) or running[0].job.name


def _step(folder: Path, job: Job) -> int:
    """The training step that a running job last logged; 0 before the first, and for an evaluation."""
    try:
        lines = (output(folder, job.name) / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError, KeyError):
        return 0


def _begin(job: Job, folder: Path, processes: int, place: int) -> BaseProcess:
    record = {"kind": job.kind, "config": job.config, "after": job.after.name if job.after else None}
    write_atomically(folder / f"{job.name}.job.json", json.dumps(record, indent=1))
    environment: dict[str, str] = {}
    if not os.environ.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    if gpus := [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    process = process_context().Process(
        target=work.main, args=(folder, job.name, _log(folder, job), environment), name=job.name
    )
    process.start()
    return process


def process_context() -> ForkServerContext | SpawnContext:
    """Return how a job's process begins: as a fork of one that has imported what jobs need, which takes seconds each
    time otherwise. CUDA cannot be used in a fork of a process that has asked for its devices, as an import may do, nor
    Apple's frameworks in any: there each job has a new interpreter.
    """
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["remask.study.preloaded"])
    return context


def _log(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.log"


def _last_line(folder: Path, job: Job) -> str:
    lines = [line for line in _log(folder, job).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
