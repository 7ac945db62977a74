"""The clock of a profile: parts that nest, steps that follow each other, and the summary's arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from remask.analysis.profile import PARTS, Clock, Gauge, Step, summary


class Scripted(Clock):
    """A clock that reads these times, one after the other."""

    def __init__(self, times: Sequence[float]) -> None:
        super().__init__(torch.device("cpu"))
        self.times = list(times)

    def _now(self) -> float:
        return self.times.pop(0)


def test_a_part_within_another_stops_its_clock() -> None:
    clock = Scripted([0, 1, 3, 6, 10, 15])
    clock.begin()  # 0
    with clock.during("corruption"):  # 1
        with clock.during("probe"):  # 3
            assert clock.part == "probe"
        assert clock.part == "corruption"  # 6
    assert clock.part == "other"  # 10
    clock.end()  # 15
    (step,) = clock.steps
    assert step.seconds == 15
    assert {name: s for name, s in step.parts.items() if s} == {"other": 1 + 5, "corruption": 2 + 4, "probe": 3}


def test_a_step_ends_where_the_next_begins_and_its_last_part_with_it() -> None:
    clock = Scripted([0, 1, 4, 4, 9])
    clock.begin()  # 0
    clock.switch("optimiser")  # 1
    clock.begin()  # 4 ends, 4 begins
    clock.end()  # 9
    assert [step.seconds for step in clock.steps] == [4, 5]
    assert clock.steps[0].parts["optimiser"] == 3
    assert clock.steps[1].parts["other"] == 5


def test_outside_a_step_nothing_is_timed() -> None:
    clock = Scripted([])
    with clock.during("probe"):
        pass
    clock.end()
    assert not clock.steps


def test_the_summary_by_hand() -> None:
    steps = [
        Step(
            0.0, seconds, parts=dict.fromkeys(PARTS, 0.0) | {"forward": forward, "other": seconds - forward}, tokens=10
        )
        for seconds, forward in ((1.0, 0.5), (2.0, 0.5), (5.0, 3.0))
    ]
    found = summary(steps)
    parts = {part["name"]: part for part in found["parts"]}
    assert list(parts) == list(PARTS)
    assert found["seconds"] == 2
    assert found["tokens_per_second"] == 30 / 8
    assert parts["forward"]["seconds"] == 0.5
    assert parts["forward"]["share"] == 0.5
    assert sum(part["share"] for part in parts.values()) == 1


def test_a_gauge_reads_the_highest_since_it_was_read_last() -> None:
    before = torch.zeros(1000)
    gauge = Gauge(torch.device("cpu"))
    kept = before + 1
    passing = torch.zeros(2000)
    passing = passing + 1  # made while the other is still there
    del passing
    assert gauge.highest() == 4 * (1000 + 2 * 2000)
    assert gauge.highest() == 4 * 1000
    del kept
    assert gauge.highest() == 4 * 1000
    assert gauge.highest() == 0
    gauge.close()
    after = torch.zeros(50)
    assert gauge.highest() == 0
    assert len(after) == 50
