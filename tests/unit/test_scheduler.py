"""Who is written when: turns among clients, room for tokens, and changes of weights that wait."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from remask.memory import free_bytes
from remask.sampling import Decoding
from remask.serving.jobs import CancelledError, Finished, Job, Progress, TooLateError
from remask.serving.models import Served
from remask.serving.room import measured
from remask.serving.scheduler import FullError, Limits, Scheduler, StoppingError


class Told:
    """Keeps what it is told, and in which order rows end."""

    ended: list[Told]

    def __init__(self, ended: list[Told], *, steps: bool = False, enough: int | None = None) -> None:
        self.ended, self.wants_steps, self.enough = ended, steps or enough is not None, enough
        self.progress: list[Progress] = []
        self.result: Finished | BaseException | None = None
        self.over = threading.Event()

    def step(self, progress: Progress) -> bool:
        self.progress.append(progress)
        return self.enough is not None and progress.number + 1 >= self.enough

    def done(self, finished: Finished) -> None:
        self._end(finished)

    def failed(self, error: BaseException) -> None:
        self._end(error)

    def _end(self, result: Finished | BaseException) -> None:
        self.result = result
        self.ended.append(self)
        self.over.set()

    @property
    def finished(self) -> Finished:
        assert self.over.wait(20)
        assert isinstance(self.result, Finished), self.result
        return self.result


@pytest.fixture
def scheduling(random_model: Any, tokenizer: Any) -> Iterator[Any]:
    """Makes schedulers of a random model; what is submitted before `start` waits for it."""
    made: list[Scheduler] = []

    def make(**limits: Any) -> Scheduler:
        made.append(Scheduler(Served(random_model, tokenizer, "m"), Limits(**limits)))
        return made[-1]

    yield make
    for scheduler in made:
        if scheduler.is_alive:
            scheduler.stop(20)


def job(told: Told, client: str = "", tokens: int = 4, **more: Any) -> Job:
    return Job([70, 71], Decoding(max_new_tokens=tokens), told, "m", client=client, **more)


def begun(scheduler: Scheduler, jobs: list[Job]) -> None:
    """Begin with all of these jobs in the queue, so that the order in which they came is known."""
    for one in jobs:
        scheduler._queues.setdefault(one.client, deque()).append(one)
    scheduler.start()


def test_clients_take_turns(scheduling: Any) -> None:
    """One client asks for four rows before another asks for two: the second one's first row is not behind the four."""
    scheduler, ended = scheduling(rows=1), []
    many = [Told(ended) for _ in range(4)]
    few = [Told(ended) for _ in range(2)]
    begun(scheduler, [*(job(told, "a") for told in many), *(job(told, "b") for told in few)])
    for told in [*many, *few]:
        assert told.finished
    assert ended == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_tokens_at_work_stay_within_the_budget(scheduling: Any) -> None:
    """Each row is of six tokens: two fit into fifteen; a row of twenty is written, but by itself."""
    scheduler, ended, most = scheduling(tokens=15), [], []

    class Counting(Told):
        def step(self, progress: Progress) -> bool:
            most.append(scheduler.at_work)
            return False

    told = [Counting(ended, steps=True) for _ in range(5)]
    begun(scheduler, [job(one, tokens=18 if number == 2 else 4) for number, one in enumerate(told)])
    for one in told:
        assert one.finished
    assert max(most) == 2
    assert len(told[2].finished.row.token_ids) == 18


def test_a_row_that_is_cancelled_or_late_is_told_so(scheduling: Any) -> None:
    scheduler, ended = scheduling(rows=1), []
    gone, late, fine = (Told(ended) for _ in range(3))
    begun(scheduler, [job(gone, cancelled=True), job(late, deadline=time.monotonic() - 1), job(fine)])
    assert fine.finished
    assert isinstance(gone.result, CancelledError)
    assert isinstance(late.result, TooLateError)


def test_a_row_ends_where_its_watcher_has_enough(scheduling: Any) -> None:
    scheduler, told = scheduling(), Told([], enough=2)
    scheduler.start()
    scheduler.submit([job(told, tokens=8)])
    assert told.finished.forwards == 2
    assert len(told.progress) == 2
    assert sum(step >= 0 for step in told.finished.row.revealed_at) == 2


def test_what_a_step_tells(scheduling: Any) -> None:
    scheduler, told = scheduling(), Told([], steps=True)
    scheduler.start()
    scheduler.submit([Job([70, 71], Decoding(max_new_tokens=6, steps=3, reveal="left_to_right"), told, "m")])
    row = told.finished.row
    for number, progress in enumerate(told.progress):
        assert progress.number == number
        assert progress.new == [2 * number, 2 * number + 1]
        assert progress.settled == 2 * (number + 1)
        assert progress.block == (0, 6)
        assert progress.tokens[: progress.settled] == row.token_ids[: progress.settled]
        assert [p is not None for p in progress.confidence] == progress.written


def test_nothing_is_settled_that_may_be_replaced(scheduling: Any) -> None:
    """Under edits what is before the block at work is settled, and no more."""
    scheduler, told = scheduling(), Told([], steps=True)
    scheduler.start()
    decoding = Decoding(max_new_tokens=6, block_length=3, threshold=0.0, edit_threshold=2.0, reveal="confidence")
    scheduler.submit([Job([70, 71], decoding, told, "m")])
    assert told.finished
    assert [progress.settled for progress in told.progress] == [progress.block[0] for progress in told.progress]


def test_all_jobs_are_taken_or_none(scheduling: Any) -> None:
    scheduler, ended = scheduling(waiting=2), []
    scheduler.start()
    with pytest.raises(FullError) as full:
        scheduler.submit([job(Told(ended)) for _ in range(3)])
    assert full.value.retry_after >= 1
    assert scheduler.waiting == 0


def test_a_change_waits_for_rows_and_rows_wait_for_it(scheduling: Any) -> None:
    scheduler, ended = scheduling(), []
    first, second = Told(ended), Told(ended)
    scheduler.start()
    scheduler.submit([job(first, tokens=60)])
    while not scheduler.at_work:
        time.sleep(0.001)
    seen: list[int] = []
    change = scheduler.change(lambda: seen.append(scheduler.at_work) or len(ended))
    scheduler.submit([job(second)])
    assert change.result(timeout=20) == 1
    assert seen == [0]
    assert second.finished
    assert ended == [first, second]


def test_a_change_that_fails_tells_who_asked(scheduling: Any) -> None:
    scheduler = scheduling()
    scheduler.start()
    with pytest.raises(ZeroDivisionError):
        scheduler.change(lambda: 1 // 0).result(timeout=20)
    told = Told([])
    scheduler.submit([job(told)])
    assert told.finished


def test_what_was_taken_is_finished_before_the_end(scheduling: Any) -> None:
    scheduler, ended = scheduling(rows=1), []
    told = [Told(ended) for _ in range(3)]
    scheduler.start()
    scheduler.submit([job(one) for one in told])
    assert scheduler.stop(within=20)
    assert all(one.finished for one in told)
    with pytest.raises(StoppingError):
        scheduler.submit([job(Told(ended))])


def test_what_is_not_finished_in_time_is_cancelled(scheduling: Any) -> None:
    scheduler, told = scheduling(), Told([])
    scheduler.start()
    scheduler.submit([job(told, tokens=200)])
    assert not scheduler.stop(within=0.01)
    assert told.over.wait(20)
    assert isinstance(told.result, CancelledError)


def test_room_is_measured(random_model: Any) -> None:
    room = measured(random_model)
    assert room.free == pytest.approx(free_bytes(torch.device("cpu")), rel=0.5)
    config = random_model.config
    keys_and_values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert room.a_token > keys_and_values
    assert 1 <= room.tokens <= 1 << 20
