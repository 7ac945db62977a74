"""The fields of a request: OpenAI's, and beside them the settings of decoding. All else is refused by name."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from remask.chat_template import Message
from remask.config import DecodingConfig
from remask.config.explained import option_help
from remask.errors import UserError

NOT_SERVED = ("rule", "max_new_tokens")
"""Settings of decoding that no request may give: a rule is code of the server's owner, and a canvas is `max_tokens`."""
MOST_CHOICES, MOST_STOPS, LONGEST_STOP = 64, 16, 256


class Strict(BaseModel):
    """A part of a request. A field that it does not have is an error, and a number is not read from a text."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _decoding_fields() -> type[Strict]:
    """The settings of decoding as fields of a request, with their help."""
    hints, told = get_type_hints(DecodingConfig), option_help(DecodingConfig)
    known: dict[str, Any] = {}
    for field in fields(DecodingConfig):
        if field.name not in NOT_SERVED:
            assert field.default is not MISSING
            known[field.name] = (hints[field.name], Field(default=None, description=told.get(field.name) or None))
    return create_model("DecodingFields", __base__=Strict, **known)


DecodingFields = _decoding_fields()
"""Settings of decoding, each absent where the checkpoint's own default holds."""


class StreamOptions(Strict):
    """Say what a stream holds besides text."""

    include_usage: bool = False
    canvas: bool = False
    """An event after every step, with the whole canvas."""


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A turn of a conversation. Further keys are given to the chat template, which must write them."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]

    def plain(self) -> Message:
        """Return the turn as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        further = {key: value for key, value in (self.model_extra or {}).items() if value is not None and key != "name"}
        return {**further, "role": "system" if self.role == "developer" else self.role, "content": content}


class ResponseFormat(Strict):
    """Text is the one form of answer that needs nothing more."""

    type: str


class Asked(DecodingFields):  # type: ignore[valid-type,misc]
    """A request for text, as far as all of them are alike."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    row_seed: Annotated[int, Field(ge=0)] | None = None
    """Which of the rows with the same seed the first answer is (default: 0)."""
    checkpoint_defaults: bool = True
    """Take settings that are not given from the checkpoint; without, from Remask's own defaults alone."""
    canvas: bool = False
    """Add to each choice its whole canvas, and how it was written."""
    user: str | None = None
    metadata: dict[str, Any] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        for text in [stop] if isinstance(stop, str) else stop or []:
            if not text:
                raise ValueError("a text to stop at is empty")
            if len(text) > LONGEST_STOP:
                raise ValueError(f"a text to stop at has more than {LONGEST_STOP} characters")
        if isinstance(stop, list) and len(stop) > MOST_STOPS:
            raise ValueError(f"more than {MOST_STOPS} texts to stop at")
        return stop

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is given without stream")
        return self

    @property
    def stops(self) -> list[str]:
        """Return the texts that an answer ends before."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def settings(self) -> dict[str, Any]:
        """Return the settings of decoding that are given, by `Decoding`'s names."""
        known = (name for name in DecodingFields.model_fields if getattr(self, name) is not None)
        return {name: getattr(self, name) for name in known}


class ChatRequest(Asked):
    """A conversation to answer: the body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Literal[0] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _one_length(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens are both given, and differ")
        return self

    @property
    def length(self) -> int | None:
        """Return the length of the canvas that is asked for."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(Asked):
    """A text to go on from, or one whose end (`suffix`) is given: the body of `POST /v1/completions`."""

    prompt: str | list[int] | list[str] | list[list[int]]
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=1)] | bool | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None

    @property
    def length(self) -> int | None:
        """Return the length of the canvas that is asked for."""
        return self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, each a text or token ids."""
        given: Any = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        if not given:
            raise UserError("prompt is empty", mend="give a text, token ids, or a list of either")
        return list(given)


class InfillRequest(Asked):
    """A text whose mask tokens are written: the body of `POST /v1/infill`."""

    text: str
    prompt: str | list[ChatMessage] | None = None
    logprobs: bool | None = None


def is_text(form: ResponseFormat | None) -> bool:
    """Return whether the answer is asked for as plain text."""
    return form is None or form.type == "text"
