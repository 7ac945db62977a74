"""Figures of a running server, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from remask.serving.scheduler import Scheduler

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts what the server does. The scheduler's own counts are read when somebody asks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "remask_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "remask_tokens", "Tokens of prompts, and of the texts that were sent.", ["kind"], registry=self.registry
        )
        self.seconds = Histogram(
            "remask_request_seconds",
            "Seconds from a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "remask_first_token_seconds",
            "Seconds from a request to the first token that is written.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.waited = Histogram(
            "remask_queue_seconds", "Seconds that an answer waited.", buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_OfScheduler(scheduler))

    def text(self) -> bytes:
        """Return all figures as Prometheus reads them."""
        return generate_latest(self.registry)


class _OfScheduler:
    """The scheduler's counts."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        scheduler, counted = self.scheduler, self.scheduler.counted
        yield GaugeMetricFamily("remask_rows_waiting", "Rows in the queue.", value=scheduler.waiting)
        yield GaugeMetricFamily("remask_rows_at_work", "Rows that are being written.", value=scheduler.at_work)
        yield GaugeMetricFamily("remask_tokens_at_work", "Tokens of those rows.", value=scheduler.tokens_at_work)
        rows = CounterMetricFamily("remask_rows", "Rows by how they ended.", labels=["ended"])
        for ended in ("finished", "failed", "cancelled"):
            rows.add_metric([ended], getattr(counted, ended))
        yield rows
        yield CounterMetricFamily("remask_steps", "Steps of denoising.", value=counted.steps)
        yield CounterMetricFamily("remask_forwards", "Forwards of the model.", value=counted.forwards)
        yield CounterMetricFamily("remask_row_steps", "Rows in those forwards.", value=counted.row_steps)
        yield CounterMetricFamily(
            "remask_busy_seconds", "Seconds in which something was written.", value=counted.seconds_at_work
        )
