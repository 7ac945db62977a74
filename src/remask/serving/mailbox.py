"""From the scheduler's thread to the server's: what is told of a request's rows, in the order it was told."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from remask.serving.jobs import Finished, Progress

News = tuple[int, Progress | Finished | BaseException]
"""Which row, and what is told of it."""
BACKLOG = 1024
"""Steps that are kept for a reader who is slow; older ones are let go of."""


class Mailbox:
    """Collects what is told of several rows. It is filled by the scheduler and emptied by one reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.filled = loop, asyncio.Event()
        self.news: deque[News] = deque()
        self.steps, self.lock = 0, threading.Lock()

    def of_row(self, number: int, *, steps: bool, enough: Callable[[Progress], bool] | None = None) -> RowBox:
        """Return the watcher of a row. enough: called after each step; the row ends where it says so."""
        return RowBox(self, number, steps, enough)

    def post(self, news: News) -> None:
        """Take news, in the scheduler's thread."""
        with self.lock:
            self.news.append(news)
            if isinstance(news[1], Progress):
                self.steps += 1
                if self.steps > BACKLOG:
                    self._let_go_of_the_oldest()
        with suppress(RuntimeError):  # the loop is closed: nobody reads
            self.loop.call_soon_threadsafe(self.filled.set)

    def _let_go_of_the_oldest(self) -> None:
        for place, (_, told) in enumerate(self.news):
            if isinstance(told, Progress):
                del self.news[place]
                self.steps -= 1
                return

    async def read(self, rows: int) -> AsyncIterator[News]:
        """Yield what is told until all rows have ended."""
        while rows:
            await self.filled.wait()
            self.filled.clear()
            while (news := self._next()) is not None:
                rows -= not isinstance(news[1], Progress)
                yield news

    def _next(self) -> News | None:
        with self.lock:
            if not self.news:
                return None
            news = self.news.popleft()
            self.steps -= isinstance(news[1], Progress)
            return news


class RowBox:
    """The watcher of a row, which posts what it is told."""

    def __init__(self, box: Mailbox, number: int, steps: bool, enough: Callable[[Progress], bool] | None) -> None:
        self.box, self.number, self.steps, self.enough = box, number, steps, enough
        self.wants_steps = steps or enough is not None

    def step(self, progress: Progress) -> bool:
        """Post a step. Returns whether the row has enough of them."""
        if self.steps:
            self.box.post((self.number, progress))
        return self.enough is not None and self.enough(progress)

    def done(self, finished: Finished) -> None:
        """Post the end of the row."""
        self.box.post((self.number, finished))

    def failed(self, error: BaseException) -> None:
        """Post that the row was given up."""
        self.box.post((self.number, error))
