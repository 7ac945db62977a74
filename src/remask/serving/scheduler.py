"""Who is written when: one thread that takes a step of every row at work, and lets rows join and leave between steps.

Rows wait in a queue for each client, and clients take turns. A row joins as soon as the tokens at work leave room for
it. Rows of the same model and adapter share a forward; each row's tokens are those that it would get alone. A change of
weights waits until no row is at work, and rows that come later wait for it, so that every answer is of one version.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from remask.errors import UserError
from remask.models.unchanged import weights_unchanged
from remask.sampling.together import step_together
from remask.serving.jobs import AtWork, CancelledError, Job, TooLateError
from remask.serving.models import Served

log = logging.getLogger("remask.serving")


class FullError(Exception):
    """The queue has no room. retry_after: seconds until it may have some."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        self.waiting, self.retry_after = waiting, retry_after
        super().__init__(f"{waiting} requests wait already")


class StoppingError(Exception):
    """The server takes no more requests."""


@dataclass
class Limits:
    """Limits of what is at work and of what waits. tokens: of all rows at work. rows: at work. waiting: in the queue.
    apart: each row has a forward of its own (`--deterministic`).
    """

    tokens: int = 65536
    rows: int = 64
    waiting: int = 256
    apart: bool = False


@dataclass
class Counted:
    """Counts of what the scheduler has done since it began."""

    steps: int = 0
    forwards: int = 0
    row_steps: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    seconds_at_work: float = 0.0


class Scheduler:
    """Writes the rows of jobs in a thread of its own."""

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served, self.limits, self.counted = served, limits, Counted()
        self._queues: OrderedDict[str, deque[Job]] = OrderedDict()
        self._changes: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._at_work: list[AtWork] = []
        self._lock = threading.Condition()
        self._stopping = False
        self._seconds_a_row = 1.0
        self._thread = threading.Thread(target=self._run, name="remask-scheduler", daemon=True)

    def start(self) -> None:
        """Begin to write what is submitted."""
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return the number of rows that wait."""
        return sum(map(len, self._queues.values()))

    @property
    def at_work(self) -> int:
        """Return the number of rows that are being written."""
        return len(self._at_work)

    @property
    def tokens_at_work(self) -> int:
        """Return the tokens of the rows that are being written."""
        return sum(one.job.tokens for one in self._at_work)

    @property
    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, jobs: list[Job]) -> None:
        """Take all of these jobs, or none. Raises FullError or StoppingError."""
        with self._lock:
            if self._stopping or not self.is_alive:
                raise StoppingError
            if self.waiting + len(jobs) > self.limits.waiting:
                rows_a_second = max(1, self.at_work) / self._seconds_a_row
                raise FullError(self.waiting, min(60, 1 + int(self.waiting / rows_a_second)))
            for job in jobs:
                self._queues.setdefault(job.client, deque()).append(job)
            self._lock.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Let go of these jobs before the next step; of those that are done already nothing happens."""
        with self._lock:
            for job in jobs:
                job.cancelled = True
            self._lock.notify()

    def change(self, make: Callable[[], Any]) -> Future[Any]:
        """Call `make` when no row is at work, before any row that comes later. The future has what it returns."""
        told: Future[Any] = Future()
        with self._lock:
            if self._stopping:
                raise StoppingError
            self._changes.append((make, told))
            self._lock.notify()
        return told

    def stop(self, within: float) -> bool:
        """Take no more jobs, finish those that were taken, and end. Return whether all were finished in `within`
        seconds; what was not is cancelled.
        """
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if not self.is_alive:
            return True
        self._thread.join(within)
        done = not self._thread.is_alive()
        if not done:
            with self._lock:
                for job in [*self._waiting_jobs(), *(one.job for one in self._at_work)]:
                    job.cancelled = True
                self._lock.notify()
            self._thread.join(30.0)
        return done

    def _waiting_jobs(self) -> Iterator[Job]:
        for queue in self._queues.values():
            yield from queue

    def _run(self) -> None:
        with weights_unchanged(self.served.model, at_once=True):  # but by `change`, which PyTorch counts
            self._serve()

    def _serve(self) -> None:
        while True:
            with self._lock:
                while not (self._stopping or self._queues or self._changes or self._at_work):
                    self._lock.wait()
                if self._stopping and not (self._queues or self._changes or self._at_work):
                    return
                joining = self._leave_the_queue()
            self._begin(joining)
            if not self._at_work:
                self._make_changes()
                continue
            began = time.monotonic()
            self._let_go()
            self._step()
            self.counted.seconds_at_work += time.monotonic() - began

    def _leave_the_queue(self) -> list[Job]:
        """Jobs that wait no longer: those that there is room for, a client's after another's, and those given up."""
        now = time.monotonic()
        leaving = []
        for queue in self._queues.values():
            leaving += [job for job in queue if job.cancelled or job.deadline < now]
        gone = set(map(id, leaving))
        rows, tokens = len(self._at_work), self.tokens_at_work
        for client in list(self._queues):
            kept = deque(job for job in self._queues[client] if id(job) not in gone)
            self._queues[client] = kept
            if not kept:
                del self._queues[client]
        while self._queues and not self._changes and rows < self.limits.rows:
            client, queue = next(iter(self._queues.items()))
            if rows and tokens + queue[0].tokens > self.limits.tokens:
                break
            job = queue.popleft()
            rows, tokens = rows + 1, tokens + job.tokens
            leaving.append(job)
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # behind the others
        return leaving

    def _begin(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._given_up(job):
                continue
            try:
                self._at_work.append(AtWork(job, self.served.model, self.served.versions[job.model]))
            except Exception as error:
                self._fail(job, error)

    def _given_up(self, job: Job) -> bool:
        """Whether nobody waits for it, or it is too late; it is told."""
        if job.cancelled:
            self.counted.cancelled += 1
            job.watcher.failed(CancelledError())
            return True
        if job.deadline < time.monotonic():
            self._fail(job, TooLateError())
            return True
        return False

    def _let_go(self) -> None:
        self._at_work = [one for one in self._at_work if not self._given_up(one.job)]

    def _make_changes(self) -> None:
        while True:
            with self._lock:
                if not self._changes:
                    return
                make, told = self._changes.popleft()
            if not told.set_running_or_notify_cancel():
                continue
            try:
                told.set_result(make())
            except BaseException as error:
                told.set_exception(error)

    def _step(self) -> None:
        """One step of every row at work: a forward for each model's rows, or for each row."""
        by_model: dict[str, list[AtWork]] = {}
        for one in self._at_work:
            by_model.setdefault(one.job.model, []).append(one)
        left: list[AtWork] = []
        self.counted.steps += bool(by_model)
        for name, rows in by_model.items():
            with self.served.using(name) as model:
                for group in [[one] for one in rows] if self.limits.apart else [rows]:
                    left += self._stepped(model, group)
        self._at_work = left

    def _stepped(self, model: Any, rows: list[AtWork]) -> list[AtWork]:
        """Take a step of these rows together, and return those that are not done."""
        self.counted.row_steps += len(rows)
        self.counted.forwards += 1
        try:
            steps = step_together(model, [one.writing for one in rows])
        except Exception as error:  # the forward failed, and with it all rows in it
            log.exception("a forward of %d rows failed", len(rows))
            for one in rows:
                self._fail(one.job, error)
            return []
        left = []
        for one, step in zip(rows, steps, strict=True):
            try:
                if isinstance(step, UserError):
                    raise step
                enough = one.job.watcher.wants_steps and one.job.watcher.step(one.progress(step))
                one.writing.retire()
                if enough or one.is_done:
                    self._finish(one)
                else:
                    left.append(one)
            except Exception as error:
                self._fail(one.job, error)
        return left

    def _finish(self, one: AtWork) -> None:
        finished = one.finished()
        self.counted.finished += 1
        self._seconds_a_row += 0.1 * (finished.seconds - self._seconds_a_row)
        one.job.watcher.done(finished)

    def _fail(self, job: Job, error: BaseException) -> None:
        self.counted.failed += 1
        if not isinstance(error, UserError | TooLateError):
            log.error("a row failed", exc_info=error)
        job.watcher.failed(error)
