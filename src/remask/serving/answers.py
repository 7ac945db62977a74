"""What goes back: whole answers, and streams of them, in OpenAI's shapes.

An answer has, besides OpenAI's fields, `remask`: the version of the weights, the forwards and the seconds it took, and
the settings that it was written with. A stream may hold the canvas after every step, in a field `canvas` of its events.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from remask.serving.errors import of_work
from remask.serving.jobs import Finished, Progress
from remask.serving.service import Underway
from remask.serving.wire import ChatRequest, InfillRequest


class Answer:
    """The answer to a request, in the making."""

    def __init__(self, underway: Underway) -> None:
        self.underway, self.request, self.reader = underway, underway.request, underway.reader
        self.is_chat = isinstance(self.request, ChatRequest)
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.finished: dict[int, Finished] = {}
        self.first_token: float | None = None
        """Seconds until something was written, where steps are told."""

    async def whole(self) -> dict[str, Any]:
        """Wait for all rows and return the answer. Raises ApiError where one of them was given up."""
        async for _ in self._news():
            pass
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [self._choice(number, self.finished[number]) for number in range(len(self.underway.rows))]
        return {**self._head(kind), "choices": choices, "usage": self.usage(), "remask": self.told()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a stream: text that is final, as it becomes so, and the canvas where it is asked for.

        Raises ApiError where a row was given up.
        """
        options = self.request.stream_options
        canvas = options is not None and options.canvas
        sent = [""] * len(self.underway.rows)
        if self.is_chat:
            for number in range(len(self.underway.rows)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
        async for number, told in self._news():
            text = self._text_so_far(number, told)
            new, sent[number] = text[len(sent[number]) :], max(text, sent[number], key=len)
            last = isinstance(told, Finished)
            reason = self._reason(told) if isinstance(told, Finished) else None
            drawn = self._canvas(number, told) if canvas else None
            if new or last or drawn is not None:
                piece = {"content": new} if new else {}
                event = self._chunk(number, piece, reason, drawn)
                if isinstance(told, Finished):
                    self._add_probabilities(event, told)
                yield event
        if options is not None and options.include_usage:
            yield {**self._head(self._chunk_kind), "choices": [], "usage": self.usage(), "remask": self.told()}

    def usage(self) -> dict[str, Any]:
        """Return the counts of tokens; of a prompt with several answers it is counted once."""
        rows = self.underway.rows
        prompt = sum(len(row.prompt) for row in rows[:: self.request.n])
        written = sum(self.reader.tokens_of_text(done) for done in self.finished.values())
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def told(self) -> dict[str, Any]:
        """Return what Remask says of the answer."""
        done = self.finished.values()
        return {
            "version": max((one.version for one in done), default=0),
            "forwards": sum(one.forwards for one in done),
            "waited": round(max((one.waited for one in done), default=0.0), 4),
            "seconds": round(max((one.seconds for one in done), default=0.0), 4),
            "decoding": self.underway.rows[0].decoding.described(),
        }

    async def _news(self) -> AsyncIterator[tuple[int, Progress | Finished]]:
        async for number, told in self.underway.box.read(len(self.underway.rows)):
            if isinstance(told, BaseException):
                raise of_work(told)
            if self.first_token is None and isinstance(told, Progress):
                self.first_token = time.monotonic() - self.underway.began
            if isinstance(told, Finished):
                self.finished[number] = told
            yield number, told

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.underway.model}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _text_so_far(self, number: int, told: Progress | Finished) -> str:
        if isinstance(told, Finished):
            return self._text(number, told)
        return "" if self.underway.rows[number].canvas is not None else self.reader.settled(told)

    def _text(self, number: int, finished: Finished) -> str:
        """The whole text of a row: of one with a canvas of its own what stands there, the end token left out."""
        row, tokenizer = self.underway.rows[number], self.reader.tokenizer
        if row.canvas is None:
            return self.reader.text(finished.row.token_ids)[0]
        return str(tokenizer.decode(finished.row.token_ids[: row.length], skip_special_tokens=False))

    def _reason(self, finished: Finished) -> str:
        stopped = self.reader.text(finished.row.token_ids)[1]
        return "stop" if finished.row.ended or stopped else "length"

    def _choice(self, number: int, finished: Finished) -> dict[str, Any]:
        text = self._text(number, finished)
        choice: dict[str, Any] = {"index": number, "finish_reason": self._reason(finished), "logprobs": None}
        choice |= (
            {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
        )
        self._add_probabilities({"choices": [choice]}, finished)
        if self.request.canvas:
            earlier = [[one.place, one.token, one.written_at, one.until] for one in finished.row.earlier]
            choice["canvas"] = {**self._canvas(number, finished), "ended": finished.row.ended, "earlier": earlier}
        if isinstance(self.request, InfillRequest):
            choice["token_ids"] = finished.row.token_ids[: self.underway.rows[number].length]
            choice["written"] = self._gaps(number)
        return choice

    def _gaps(self, number: int) -> list[int]:
        row = self.underway.rows[number]
        return [place for place, token in enumerate((row.canvas or [])[: row.length]) if token == self.underway.mask_id]

    def _chunk(
        self, number: int, piece: dict[str, str], reason: str | None = None, canvas: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": number, "finish_reason": reason, "logprobs": None}
        choice |= {"delta": piece} if self.is_chat else {"text": piece.get("content", "")}
        event = {**self._head(self._chunk_kind), "choices": [choice]}
        return event if canvas is None else {**event, "canvas": canvas}

    def _add_probabilities(self, event: dict[str, Any], finished: Finished) -> None:
        """Add the tokens' log-probabilities to the event's choice, where they are asked for."""
        wanted = getattr(self.request, "logprobs", None)
        if wanted is None or wanted is False:
            return
        found = self.reader.probabilities(finished)
        if self.is_chat:
            event["choices"][0]["logprobs"] = {"content": found, "refusal": None}
            return
        offsets = [0]
        for one in found[:-1]:
            offsets.append(offsets[-1] + len(one["token"]))
        event["choices"][0]["logprobs"] = {
            "tokens": [one["token"] for one in found],
            "token_logprobs": [one["logprob"] for one in found],
            "top_logprobs": None,
            "text_offset": offsets[: len(found)],
        }

    def _canvas(self, number: int, told: Progress | Finished) -> dict[str, Any]:
        """A canvas as events have it: each place's text, or null where nothing is written; and what the step did."""
        if isinstance(told, Finished):
            row = told.row
            return {
                "index": number,
                "done": True,
                "tokens": self.reader.pieces(row.token_ids),
                "token_ids": row.token_ids,
                "written_at": row.revealed_at,
                "confidence": [None if math.isnan(p) else p for p in row.confidence],
                "block": row.block,
                "ends": told.tokens,
                "forwards": told.forwards,
                "seconds": round(told.seconds, 4),
            }
        pieces = self.reader.pieces(told.tokens)
        return {
            "index": number,
            "done": False,
            "step": told.number,
            "tokens": [piece if there else None for piece, there in zip(pieces, told.written, strict=True)],
            "confidence": told.confidence,
            "new": told.new,
            "replaced": told.replaced,
            "masked_again": told.masked_again,
            "block": list(told.block),
            "settled": told.settled,
        }
