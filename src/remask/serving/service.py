"""From a request to the rows that it asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from remask.chat_template import template_of
from remask.data.chat import encode_prompt
from remask.errors import UserError
from remask.models.facts import stop_token_ids
from remask.sampling.gaps import Allowed, allowed
from remask.sampling.generate import decoding_for, refuse_long_prompt
from remask.sampling.infill import decoding_of, gaps_in, gaps_of_template
from remask.sampling.schedule import Decoding
from remask.serving.errors import ApiError, of_settings, of_work
from remask.serving.jobs import Job
from remask.serving.mailbox import Mailbox
from remask.serving.models import Served
from remask.serving.scheduler import FullError, Scheduler, StoppingError
from remask.serving.texts import Reader
from remask.serving.wire import Asked, ChatRequest, CompletionRequest, InfillRequest, is_text


@dataclass(frozen=True)
class Row:
    """A row that a request asks for. prompt: token ids. canvas: a text with gaps; `length` of its tokens are shown."""

    prompt: list[int]
    decoding: Decoding
    row_seed: int
    canvas: list[int] | None = None
    length: int | None = None
    allowed: Allowed | None = None


@dataclass(frozen=True)
class Underway:
    """A request that is being written."""

    request: Asked
    model: str
    rows: Sequence[Row]
    jobs: list[Job]
    box: Mailbox
    reader: Reader
    mask_id: int
    began: float


class Service:
    """Makes rows of requests, and hands them to the scheduler. longest: prompt and answer, in tokens. seconds: how long
    an answer may take, the time that it waits included.
    """

    def __init__(self, served: Served, scheduler: Scheduler, *, longest: int, seconds: float) -> None:
        self.served, self.scheduler, self.longest, self.seconds = served, scheduler, longest, seconds

    def begin(self, request: Asked, client: str) -> Underway:
        """Read a request and put its rows into the queue. Raises ApiError for one that cannot be served."""
        model = self._named(request.model)
        try:
            rows = self._rows(request)
        except UserError as error:
            raise of_settings(error, type(request).model_fields) from None
        most = self.scheduler.limits.waiting
        if len(rows) > most:
            raise ApiError(400, f"{len(rows)} answers are asked for, and this server takes {most} at once", param="n")
        reader = Reader(
            self.served.tokenizer, frozenset(stop_token_ids(self.served.model.config)), tuple(request.stops)
        )
        began = time.monotonic()
        options = request.stream_options
        steps = (request.stream and not isinstance(request, InfillRequest)) or (options is not None and options.canvas)
        enough = reader.has_stopped if request.stops else None
        box = Mailbox(asyncio.get_running_loop())
        jobs = [
            Job(
                row.prompt,
                row.decoding,
                box.of_row(number, steps=steps, enough=enough),
                model,
                row.row_seed,
                row.canvas,
                row.allowed,
                client,
                began + self.seconds,
            )
            for number, row in enumerate(rows)
        ]
        try:
            self.scheduler.submit(jobs)
        except (FullError, StoppingError) as error:
            raise of_work(error) from None
        return Underway(request, model, rows, jobs, box, reader, self.served.model.config.mask_token_id, began)

    def give_up(self, underway: Underway) -> None:
        """Let go of what is not written yet."""
        self.scheduler.cancel(underway.jobs)

    def default_decoding(self) -> dict[str, Any]:
        """Return the settings that an answer is written with where a request gives none."""
        return decoding_for(self.served.model).described()

    def _named(self, name: str | None) -> str:
        if name is None:
            return self.served.name
        if name not in self.served.versions:
            raise ApiError(
                404,
                f"there is no model {name!r}; the models are {', '.join(self.served.names)}",
                param="model",
                code="model_not_found",
            )
        return name

    def _rows(self, request: Asked) -> list[Row]:
        if isinstance(request, ChatRequest):
            if not is_text(request.response_format):
                return self._by_template(request)
            ids = encode_prompt(self.served.tokenizer, [turn.plain() for turn in request.messages])
            return self._chosen(request, ids, self._decoding(request, request.length))
        if isinstance(request, CompletionRequest):
            prompts = [self._ids(prompt) for prompt in request.prompts()]
            if request.suffix is not None:
                return [row for ids in prompts for row in self._before_suffix(request, ids, request.suffix)]
            decoding = self._decoding(request, request.length)
            return [row for ids in prompts for row in self._chosen(request, ids, decoding)]
        assert isinstance(request, InfillRequest)
        return self._filled(request)

    def _decoding(self, request: Asked, length: int | None) -> Decoding:
        if request.checkpoint_defaults:
            return decoding_for(self.served.model, max_new_tokens=length, **request.settings())
        given = request.settings() if length is None else {**request.settings(), "max_new_tokens": length}
        return decoding_for(self.served.model, Decoding(**given))

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a text that is continued: no turns are written around it."""
        template = template_of(self.served.tokenizer)
        if isinstance(prompt, str):
            return [*template.before, *template.ids(template.marked(prompt))]
        size = self.served.model.config.vocab_size
        if (wrong := next((token for token in prompt if not 0 <= token < size), None)) is not None:
            raise UserError(f"prompt has the token {wrong}, and the vocabulary has {size}", mend="give ids below that")
        return prompt

    def _chosen(
        self,
        request: Asked,
        ids: list[int],
        decoding: Decoding,
        canvas: list[int] | None = None,
        shown: int | None = None,
    ) -> list[Row]:
        """`n` rows of one prompt."""
        if canvas is None:
            refuse_long_prompt(self.served.model, ids, decoding)
        elif request.stops:
            raise UserError("stop = …: a text with gaps is written to its end", mend="leave stop out")
        elif not request.checkpoint_defaults:
            raise UserError(
                "checkpoint_defaults = false: a text with gaps has settings of its own",
                mend="leave checkpoint_defaults out",
            )
        if len(ids) + decoding.max_new_tokens > self.longest:
            raise UserError(
                f"max_new_tokens = {decoding.max_new_tokens} after a prompt of {len(ids)} tokens is more than the "
                f"{self.longest} tokens that this server allows",
                mend="shorten the prompt or lower max_new_tokens",
            )
        first = request.row_seed or 0
        return [Row(ids, decoding, first + number, canvas, shown) for number in range(request.n)]

    def _before_suffix(self, request: CompletionRequest, ids: list[int], suffix: str) -> list[Row]:
        """The canvas is what is to be written, and then the suffix."""
        if request.max_tokens is None:
            raise UserError(
                "max_tokens is needed beside suffix", mend="say how many tokens are missing between the two"
            )
        template = template_of(self.served.tokenizer)
        gap = [self.served.model.config.mask_token_id] * request.max_tokens
        canvas = gap + template.following(suffix)
        decoding = decoding_of(self.served.model, len(canvas), len(gap), request.settings())
        return self._chosen(request, ids, decoding, canvas, len(gap))

    def _by_template(self, request: ChatRequest) -> list[Row]:
        """An answer whose text is given but for its gaps."""
        form = request.response_format
        assert form is not None
        if form.type != "template" or form.template is None:
            raise UserError(
                f"response_format is {form.type!r}: an answer's form is given by a template",
                mend='give {"type": "template", "template": "… {{digits:3}} …"}, or leave it out',
            )
        messages = [turn.plain() for turn in request.messages]
        served = self.served
        gaps = gaps_of_template(served.model, served.tokenizer, form.template, prompt=messages, **request.settings())
        if request.length is not None and request.length < len(gaps.canvas):
            raise UserError(
                f"max_tokens = {request.length} is less than the {len(gaps.canvas)} tokens of the template",
                mend="leave it out",
            )
        return [
            replace(row, allowed=allowed(served.tokenizer, gaps.kinds, served.model.config.vocab_size))
            for row in self._chosen(request, gaps.before, gaps.decoding, gaps.canvas, gaps.length)
        ]

    def _filled(self, request: InfillRequest) -> list[Row]:
        prompt: Any = request.prompt
        if isinstance(prompt, list):
            prompt = [turn.plain() for turn in prompt]
        gaps = gaps_in(self.served.model, self.served.tokenizer, request.text, prompt=prompt, **request.settings())
        return self._chosen(request, gaps.before, gaps.decoding, gaps.canvas, gaps.length)
