"""Pairs of answers to one prompt: from the columns people have to tokens on a canvas, with their noise.

A pair that cannot be used is an error naming file and line, or is counted and listed under `on_bad_row="skip"`.

Shapes: P pairs, 2P rows (the chosen answers, then the rejected ones), L length, K draws.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from remask.chat_template import Message
from remask.choices import OnBadRow, OverLong, Split
from remask.data.canvas import Fill, Row, Rows, fitted, row_of
from remask.data.collate import Visit, lay_out
from remask.data.columns import CHATS, LABELS, PROMPTS, Asked, asked_in, framed, has
from remask.data.sources import Example, Loaded, load_rows
from remask.data.turns import conversation, is_conversation
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import Noise, collate_noise, drawn_shift, row_noise
from remask.errors import UserError
from remask.tasks.generated import generated_examples, is_generated

REFERENCE_SEED = 1 << 21
"""The number added to the seed for the noise of a reference that is not read on the policy's."""
PAIRS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response_j", "response_k"))
"""The columns of the better and the worse answer, first match first: most data sets, Argilla's, Stack
Exchange's pairs."""
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""The text that begins a turn in conversations written as one text (hh-rlhf)."""


@dataclass(frozen=True)
class PairExample:
    """An example of a pair. `messages` end with the turn to be answered; `where` is for error messages."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    where: str
    tools: Any = None


@dataclass(frozen=True)
class Pair:
    """A pair holds two tokenised answers to one prompt."""

    chosen: Row
    rejected: Row
    where: str

    def __len__(self) -> int:
        """The longer row."""
        return max(len(self.chosen), len(self.rejected))

    @property
    def prompt_length(self) -> int:
        """Return the number of the prompt's tokens."""
        return len(self.chosen.prompt)

    @property
    def unread(self) -> tuple[str, ...]:
        """Return the message keys that the chat template did not read in either answer."""
        return tuple(sorted({*self.chosen.unread, *self.rejected.unread}))

    def truncated(self, length: int) -> Pair:
        """Return the pair with rows of at most `length` tokens: the answers are cut, the prompt never."""
        return Pair(self.chosen.truncated(length), self.rejected.truncated(length), self.where)


def load_pairs(source: str, *, split: Split, prompt_style: str, on_bad_row: OnBadRow) -> Loaded[PairExample]:
    """Load the pairs of a file, a data set, or of `generated:<task>[+<task>]:<pairs>[:<seed>]`: a worked answer and a
    plausible wrong one to each problem.

    Raises UserError naming the file and line at fault.
    """
    if not is_generated(source):
        return load_rows(source, pair_example, on_bad_row=on_bad_row, split="train", command="dpo")
    right, wrong = (
        generated_examples(source, split=split, prompt_style=prompt_style, wrong=wrong) for wrong in (False, True)
    )
    return Loaded(
        [
            PairExample(good.messages, good.answer, bad.answer, good.where)
            for good, bad in zip(right, wrong, strict=True)
        ]
    )


def pair_example(row: dict[str, Any], where: str) -> tuple[PairExample, set[str]]:
    """Return the pair in one row, and the columns it was read from.

    The two answers stand in `chosen` and `rejected` or under other published names (`PAIRS`), each as text, as the
    assistant's turn, or as a conversation that ends with it; the prompt in a column of `columns.PROMPTS` or `CHATS`
    where the conversations do not begin with it. What comes before the answers must be the same in both. Raises
    UserError naming what is missing or wrong.
    """
    better, worse, used = _answer_columns(row, where)
    before, chosen = _answered(row[better], better, where)
    before_rejected, rejected = _answered(row[worse], worse, where)
    if before != before_rejected:
        raise UserError(
            "chosen and rejected do not answer the same conversation",
            where=where,
            mend="give both answers to the same turns",
        )
    prompt = next((name for name in (*PROMPTS, *CHATS) if has(row, name)), None)
    asked = Asked([], None, set()) if prompt is None else asked_in(row, prompt, where)
    asked = framed(row, _joined(asked.messages, before, where), asked.columns, where)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer["content"].strip() and set(answer) == {"role", "content"}:
            raise UserError(f"{name} is empty", where=where, mend="give it a text")
    if set(chosen) == set(rejected) == {"role", "content"} and chosen["content"].strip() == rejected["content"].strip():
        raise UserError(
            "chosen and rejected are the same: there is nothing to prefer",
            where=where,
            mend="give two different answers",
        )
    return PairExample(tuple(asked.messages), chosen, rejected, where, asked.tools), asked.columns | used


def _answer_columns(row: dict[str, Any], where: str) -> tuple[str, str, set[str]]:
    """The columns of the better and of the worse answer, and all columns that say so."""
    for better, worse in PAIRS:
        if has(row, better) and has(row, worse):
            return better, worse, {better, worse}
    numbered = ("response_0", "response_1", "better_response_id")
    if all(has(row, name) for name in numbered):
        if row["better_response_id"] not in (0, 1):
            raise UserError(
                f"better_response_id is {row['better_response_id']!r}, neither 0 nor 1",
                where=where,
                mend="write 0 or 1",
            )
        best = int(row["better_response_id"])
        return numbered[best], numbered[1 - best], set(numbered)
    if any(name in row for name in LABELS):
        raise UserError(
            "the row holds one answer and a label (KTO's form), and remask dpo learns from pairs",
            where=where,
            mend="bring a wanted and an unwanted answer to the same prompt together as chosen and rejected",
        )
    absent = [name for name in PAIRS[0] if not has(row, name)]
    null = [name for name in absent if name in row]
    raise UserError(
        f"{null[0]} is null"
        if null
        else f"no {' and no '.join(absent)} among the columns {', '.join(map(str, row)) or '(none)'}",
        where=where,
        mend="give prompt + chosen + rejected, or chosen + rejected as conversations that begin with the prompt",
    )


def _answered(value: Any, name: str, where: str) -> tuple[list[Message], Message]:
    """(the conversation before the answer, the answer). Text is the answer itself, or a conversation in one text."""
    if isinstance(value, str) and not SPEAKER.match(value) and not is_conversation(value):
        return [], {"role": "assistant", "content": value}
    spoken = isinstance(value, str) and SPEAKER.match(value)
    turns = _spoken(value) if spoken else conversation(value, name, where)
    if not turns or turns[-1]["role"] != "assistant":
        raise UserError(
            f"{name} does not end with an assistant's turn: there is no answer",
            where=where,
            mend="let the answer be the last turn",
        )
    return turns[:-1], turns[-1]


def _spoken(text: str) -> list[Message]:
    """The turns of a conversation in one text: `\\n\\nHuman: …\\n\\nAssistant: …`."""
    _, *parts = SPEAKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _joined(prompt: list[Message], before: list[Message], where: str) -> list[Message]:
    """The whole conversation up to the answer. Data sets often give `prompt` and repeat it in the conversation."""
    if not before or (prompt and before[0]["role"] == "assistant"):
        return prompt + before
    said = [turn["content"].strip() for turn in before]
    if all(turn["content"].strip() in said for turn in prompt):
        return before
    raise UserError(
        "prompt is not part of the conversation that chosen and rejected begin with",
        where=where,
        mend="let both begin with the prompt, or leave it out of them",
    )


def build_pairs(
    examples: Sequence[PairExample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    on_bad_row: OnBadRow,
    mask_id: int | None = None,
) -> Rows[Pair]:
    """Tokenise pairs, each row of at most `max_length` tokens. Raises UserError naming the row."""

    def tokenised(example: PairExample) -> Pair:
        def row(answer: Message, name: str) -> Row:
            content = answer["content"]
            further = {key: value for key, value in answer.items() if key not in ("role", "content")}
            one = Example(example.messages, content, f"{example.where}, {name}", further, example.tools)
            return row_of(one, tokenizer, mask_id=mask_id)

        return Pair(row(example.chosen, "chosen"), row(example.rejected, "rejected"), example.where)

    def check(pair: Pair, cut: bool) -> None:
        if pair.chosen.response == pair.rejected.response:
            raise UserError(
                f"chosen and rejected are the same tokens{f' in a canvas of {max_length}' if cut else ''}",
                where=pair.where,
                mend="look at the row, or skip such rows with --on-bad-row skip",
            )

    return fitted(examples, tokenised, max_length=max_length, over_long=over_long, on_bad_row=on_bad_row, check=check)


def _rows(pair: Pair) -> tuple[Row, Row]:
    return pair.chosen, pair.rejected


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs is a micro-batch: 2P rows on a canvas, the noise the policy is read on and that of the reference
    (one each draw), which pairs count, and their indices.
    """

    canvas: Canvas
    noise: list[Noise]
    reference_noise: list[Noise]
    counted: Bool[Tensor, "P"]
    index: Int[Tensor, "P"]


@dataclass(frozen=True)
class PairCollator:
    """A collator turns pairs and visits into tensors. A pair's canvases and noise depend on nothing but the pair, its
    visit and the seed.

    Both answers are filled by the same rule; for it `batch` means the pair: up to its longer row. With `shared_noise`
    the policy and the reference are read on the same `draws`.
    """

    fill: Fill
    eos_id: int
    max_length: int
    seed: int
    draws: int
    shared_noise: bool

    def __call__(self, items: Sequence[tuple[Pair, Visit]]) -> dict[str, Tensor]:
        rows = [_rows(pair)[answer] for answer in (0, 1) for pair, _ in items]
        canvases = [self._canvas(_rows(pair)[answer], pair) for answer in (0, 1) for pair, _ in items]
        ids, attended, response = lay_out(rows, canvases, self.eos_id)
        batch = {
            "ids": ids,
            "attended": attended,
            "response": response,
            "counted": torch.tensor([visit.counted for _, visit in items]),
            "index": torch.tensor([visit.index for _, visit in items]),
        }
        visits = [
            Visit(2 * visit.index + answer, visit.epoch, 2 * visit.visit + answer)
            for answer in (0, 1)
            for _, visit in items
        ]
        starts = [len(row.prompt) for row in rows]
        batch["tau"], batch["u"] = self._noise(self.seed, visits, starts, canvases, ids.shape[1])
        if not self.shared_noise:
            seed = self.seed + REFERENCE_SEED
            shifts = [drawn_shift(seed, visit.epoch, visit.index) for visit in visits]
            other = self._noise(seed, visits, starts, canvases, ids.shape[1], shifts)
            batch["reference_tau"], batch["reference_u"] = other
        return batch

    def _canvas(self, row: Row, pair: Pair) -> int:
        return self.fill.length(len(row.prompt), len(row.response), longest_row=len(pair), max_length=self.max_length)

    def _noise(
        self,
        seed: int,
        visits: Sequence[Visit],
        starts: list[int],
        canvases: list[int],
        width: int,
        shifts: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """τ and u [K, 2P, L]. The draws of an answer follow each other in the sequence of times, so that they
        are stratified among themselves; `shifts` make an answer's times independent of the policy's.
        """
        shifts = [0.0] * len(visits) if shifts is None else shifts
        draws = [
            collate_noise(
                [
                    row_noise(
                        seed, visit.epoch * self.draws + k, visit.index, visit.visit * self.draws + k, canvas, shift
                    )
                    for visit, canvas, shift in zip(visits, canvases, shifts, strict=True)
                ],
                starts,
                width,
            )
            for k in range(self.draws)
        ]
        return torch.stack([draw.tau for draw in draws]), torch.stack([draw.u for draw in draws])


def batch_of(tensors: dict[str, Tensor], device: torch.device) -> PairBatch:
    """Return what the collator made as a batch, on a device."""
    on = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    noise = _unstacked(on["tau"], on["u"])
    return PairBatch(
        Canvas(on["ids"], on["attended"], on["response"], on["response"]),
        noise,
        _unstacked(on["reference_tau"], on["reference_u"]) if "reference_tau" in on else noise,
        on["counted"],
        on["index"],
    )


def _unstacked(tau: Tensor, u: Tensor) -> list[Noise]:
    return [Noise(*draw) for draw in zip(tau, u, strict=True)]
