"""A batch of canvases on their way: what a step asks of the model, and what it makes of the answer.

`denoise.run` writes one batch from its beginning to its end. Whoever has several batches on their way at once takes a
step of all of them in one forward (`sampling/together.py`).

Shapes: B rows of a batch, b rows at work, L prompt and canvas, C places of an answer, N masked positions of the
current blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.attention import BlockCausal
from remask.diffusion.blocks import attention_of
from remask.diffusion.head import Look
from remask.errors import UserError
from remask.models.facts import first_eos, mask_token, stop_token_ids
from remask.sampling.cache import AroundBlocks, Everything, FinishedBlocks, Inputs, Reads
from remask.sampling.gaps import Allowed
from remask.sampling.layout import at_turn, fitted, laid_out, turns
from remask.sampling.passes import Pass
from remask.sampling.record import Denoised, Earlier, Step
from remask.sampling.row_noise import RowNoise, Use
from remask.sampling.rules import Proposals, State, rule_of
from remask.sampling.schedule import Decoding
from remask.sampling.selection import Proposal, propose

PROPOSED = (torch.long, torch.float64, torch.float64)
"""Dtypes of a proposal's tensors."""
LONGEST = 16
"""Steps that a rule may take for each token of a block before it is stopped."""


@dataclass(frozen=True)
class Asked:
    """A step asks the model for proposals, for those places of the active rows' canvases."""

    state: State
    here: Bool[Tensor, "b C"]


class Writing:
    """A batch of canvases being written. Rows stand in `active` until their text is done.

    A step is `ask`, a forward for each of `passes`, and `take`; `retire` then lets go of rows that are done.

    ids, attended [B, L] and masked, revealed_at, confidence [B, W]: as laid out. block, steps_in_block, steps_unmasked
    [B]: the block at work, the steps that it has had, and those of them without a mask. goes_on [B]: whether its rule
    wants another one though none may be left.
    """

    def __init__(
        self,
        model: nn.Module,
        prompt_ids: Tensor,
        attention_mask: Tensor | None,
        decoding: Decoding,
        row_seeds: Sequence[int] | None,
        canvas: Tensor | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        config: Any = model.config
        attention = attention_of(model)
        decoding = fitted(decoding, attention)
        device, B = prompt_ids.device, len(prompt_ids)
        self.model, self.decoding = model, decoding
        self.mask_id, self.fill_id = mask_token(config), first_eos(config)
        self.stop_ids = torch.tensor(stop_token_ids(config), device=device)
        fills = [self.fill_id] if decoding.suppress_eos else []
        self.never = fills if canvas is None else stop_token_ids(config)  # a text that goes on is not ended inside
        self.noise = RowNoise(decoding.seed, range(B) if row_seeds is None else row_seeds, device)
        prompt_mask = torch.ones_like(prompt_ids) if attention_mask is None else attention_mask
        self.layout = laid_out(prompt_ids, prompt_mask, canvas, decoding, attention, self.mask_id)
        self.ids, self.attended = self.layout.ids, self.layout.attended
        self.prompt_length, self.block_of = self.layout.start, self.layout.block_of
        self.masked = self.layout.masked.clone()
        self.open = self.layout.masked  # what was given stays
        self.allowed = allowed
        if allowed is not None:
            self.kind = torch.full(self.masked.shape, -1, device=device)
            self.kind.scatter_(1, self.layout.answer, allowed.kind.to(device).expand(B, -1))
            self.only = allowed.tokens.to(device)
        self.rule = rule_of(decoding)
        self.revealed_at = torch.full(self.masked.shape, -1, device=device)
        self.confidence = torch.full(self.masked.shape, torch.nan, dtype=torch.float64, device=device)
        self.steps_in_block, self.steps_unmasked = (torch.zeros(B, dtype=torch.long, device=device) for _ in range(2))
        self.goes_on = torch.zeros(B, dtype=torch.bool, device=device)
        self.active = torch.arange(B, device=device)
        self.block = self._first_unfinished()
        self.forwards = self.row_forwards = 0
        self.earlier: list[list[Earlier]] = [[] for _ in range(B)]
        self.in_blocks = isinstance(attention, BlockCausal)
        self.shift = bool(getattr(config, "shift", False))
        first_alone = self.in_blocks and self.shift
        self.turn_of = turns(self.block_of, self.layout.width, decoding.sub_block_length, first_alone=first_alone)
        self.reads = self._reads()

    def _reads(self) -> Reads:
        (B, L), width, name = self.ids.shape, self.layout.width, self.decoding.cache or "none"
        if name == "none":
            return Everything(width if self.in_blocks else None)
        if not getattr(self.model, "keeps_keys_and_values", False):
            raise UserError(
                f"cache = {name}: {type(self.model).__name__} has no keys and values to keep",
                mend="sample with cache none",
            )
        if name == "exact":
            return FinishedBlocks(B, L, width, self.ids.device)
        return AroundBlocks(name, B, L, width, self.ids.device, shift=self.shift)

    def _first_unfinished(self) -> Int[Tensor, "b"]:
        """The first block of each active row that has a mask left; the number of blocks where none has."""
        return torch.where(self.masked[self.active], self.block_of, len(self.layout.steps)).amin(-1)

    def state(self) -> State:
        """Return what the rule may look at, of the active rows."""
        rows = self.active
        in_block = self.block_of == self.block[rows, None]
        masked = self.masked[rows] & in_block
        count = self._count(masked.sum(-1), (self.layout.prompt[rows] & in_block).sum(-1))
        window = self.open[rows] & in_block & at_turn(masked, self.turn_of)
        return State(
            tokens=self.ids[rows, self.prompt_length :],
            masked=self.masked[rows],
            window=window,
            written_at=self.revealed_at[rows],
            confidence=self.confidence[rows],
            step=self.steps_in_block[rows],
            steps=self.layout.steps[self.block[rows]],
            steps_unmasked=self.steps_unmasked[rows],
            count=count,
            stops=self.stop_ids,
            uniform=partial(self._uniform, rows, self.forwards + 1, "order"),
        )

    def _uniform(self, rows: Tensor, number: int, use: Use) -> Float[Tensor, "b C"]:
        return self.noise.uniform(rows, number, self.masked.shape[1], use)

    def step(self) -> Step:
        """One step by itself: its forwards are made here."""
        asked = self.ask()
        proposal = self.no_proposals(asked)
        for planned in self.passes(asked):
            self.put(proposal, asked, planned, planned.made_by(self.model, self.mask_id))
        return self.take(asked, proposal)

    def ask(self) -> Asked:
        """Return what the rule wants to know before it chooses."""
        state = self.state()
        return Asked(state, self.rule.asked(state) & state.window)

    def take(self, asked: Asked, proposal: Proposal) -> Step:
        """Write what the rule chooses of the proposals, or mask it again, and return the step as it was."""
        rows, number, state, here = self.active, self.forwards, asked.state, asked.here
        self.forwards += 1
        if proposal.confidence.isnan().any():
            raise UserError("the model's predictions are not finite", mend="use a checkpoint whose weights are whole")
        proposals = Proposals(
            state.tokens.masked_scatter(here, proposal.token),
            torch.zeros_like(state.confidence).masked_scatter(here, proposal.confidence),
            torch.full_like(state.confidence, -torch.inf).masked_scatter(here, proposal.score),
        )
        write, again, goes_on = self.rule.choose(state, proposals)
        write = write & here
        self.steps_unmasked[rows] += (~(state.masked & state.window).any(-1)).long()
        canvas = torch.where(write, proposals.token, state.tokens)
        masked = state.masked & ~write
        written_at = torch.where(write, number, state.written_at)
        confidence = torch.where(write, proposals.confidence, state.confidence)
        if again is not None:
            again = again & state.window & ~write
            canvas, masked = canvas.masked_fill(again, self.mask_id), masked | again
            written_at, confidence = written_at.masked_fill(again, -1), confidence.masked_fill(again, torch.nan)
        of_answer = partial(self.layout.of_answer, rows=rows)
        replaced = write & ~state.masked
        gone = replaced if again is None else replaced | (again & ~state.masked)
        if bool(gone.any()):
            self._note(rows, number, *(of_answer(x) for x in (gone, state.tokens, state.written_at)))
        self.goes_on[rows] = False if goes_on is None else goes_on & self._may_change(masked)
        self.ids[rows, self.prompt_length :] = canvas
        self.masked[rows] = masked
        self.revealed_at[rows] = written_at
        self.confidence[rows] = confidence
        return Step(
            number,
            rows,
            of_answer(canvas),
            of_answer(write),
            None if again is None else of_answer(again),
            of_answer(replaced),
            of_answer(self.block_of == self.block[rows, None]),
        )

    def _note(self, rows: Tensor, number: int, gone: Tensor, tokens: Tensor, written_at: Tensor) -> None:
        """Keep what is replaced, or masked again, in this step."""
        row, place = gone.nonzero(as_tuple=True)
        found = zip(rows[row].tolist(), place.tolist(), tokens[gone].tolist(), written_at[gone].tolist(), strict=True)
        for of_row, at, token, written in found:
            self.earlier[of_row].append(Earlier(at, token, written, number))

    def _may_change(self, masked: Bool[Tensor, "b C"]) -> Bool[Tensor, "b"]:
        """Active rows of whose block at work something is masked, or may be replaced."""
        rows = self.active
        in_block = self.block_of == self.block[rows, None]
        replaceable = self.open[rows] & at_turn(torch.zeros_like(masked), self.turn_of)
        return (in_block & (masked | replaceable)).any(-1)

    def no_proposals(self, asked: Asked) -> Proposal:
        """Return room for a proposal for each place that is asked for, in row-major order."""
        here = asked.here
        return Proposal(*(torch.empty(int(here.sum()), dtype=kind, device=here.device) for kind in PROPOSED))

    def put(self, proposal: Proposal, asked: Asked, planned: Pass, found: Proposal) -> None:
        """Put what a pass found where it belongs."""
        places = planned.among[asked.here.nonzero()[:, 0]]
        for of_all, part in zip(proposal, found, strict=True):
            of_all[places] = part

    def passes(self, asked: Asked) -> Iterator[Pass]:
        """Yield the forwards of this step. Each is to be made before the next one is asked for."""
        rows = self.active
        starts = self.prompt_length + self.block[rows] * self.layout.width
        for among, read in self.reads.parts(rows, starts):
            yield self._pass(rows[among], asked.here[among], among, read)

    def _pass(self, rows: Tensor, here: Tensor, among: Tensor, read: Callable[[Inputs], dict[str, Any]]) -> Pass:
        """A forward of these rows, or of what is to be read of them."""
        before = here.new_zeros(len(rows), self.prompt_length)
        inputs = {
            "input_ids": self.ids[rows],
            "attention_mask": self.attended[rows],
            "positions": torch.cat([before, here], dim=1),
        }
        if self.in_blocks:
            inputs["answer"] = torch.cat([before, torch.ones_like(here)], dim=1)
        inputs = read(inputs)
        guidance = self.decoding.guidance
        self.row_forwards += len(rows) * (1 if guidance == 0 else 2)
        unprompted = None
        if guidance:
            unprompted = torch.cat([~before, self.layout.prompt[rows]], dim=1)[:, : inputs["input_ids"].shape[1]]
        return Pass(inputs, self._look(rows, here), among, guidance, unprompted)

    def _look(self, rows: Tensor, here: Tensor) -> Look:
        """What is wanted of the logits at these places: proposals, none of them a mask."""
        decoding = self.decoding
        uniform = self._uniform(rows, self.forwards, "token")[here] if decoding.temperature > 0 else None
        kind = None if self.allowed is None else self.kind[rows][here]

        def look(logits: Tensor, part: slice) -> Proposal:
            logits[:, self.mask_id] = -torch.inf  # a mask is never an answer
            logits[:, self.never] = -torch.inf
            if kind is not None:
                of_kind = kind[part]
                logits.masked_fill_((of_kind >= 0)[:, None] & ~self.only[of_kind.clamp(min=0)], -torch.inf)
            return propose(
                logits,
                decoding.reveal,
                temperature=decoding.temperature,
                top_k=decoding.top_k,
                top_p=decoding.top_p,
                uniform=None if uniform is None else uniform[part],
            )

        return look

    def _count(self, left: Int[Tensor, "b"], given: Int[Tensor, "b"]) -> Int[Tensor, "b"] | None:
        """How many of so many masks each row reveals now; None where a threshold decides. What a block has been given
        of the prompt counts as written: a step reveals no more of what is left of it than of a block of masks.

        Under schedule `t` a step may reveal nothing. Nothing changes then, so it is passed over without a forward.
        """
        if self.decoding.threshold is not None:
            return None
        rows = self.active
        if self.decoding.schedule == "even":
            steps_left = (self.layout.steps[self.block[rows]] - self.steps_in_block[rows]).clamp(min=1)
            return torch.minimum(-(-(left + given) // steps_left), left)
        counts = []
        for row, masks in zip(rows.tolist(), left.tolist(), strict=True):
            steps = int(self.layout.steps[self.block[row]])
            while (count := int(masks * self.decoding.share(int(self.steps_in_block[row]), steps))) == 0:
                self.steps_in_block[row] += 1
            counts.append(count)
        return torch.tensor(counts, device=left.device)

    def retire(self) -> None:
        """Move rows to their next block, and let go of those that are done."""
        rows = self.active
        goes_on = self.goes_on[rows]
        blocks = torch.where(goes_on, self.block[rows], self._first_unfinished())
        same = blocks == self.block[rows]
        self.steps_in_block[rows] = torch.where(same, self.steps_in_block[rows] + 1, 0)
        self.steps_unmasked[rows] = torch.where(same, self.steps_unmasked[rows], 0)
        self.block[rows] = blocks
        self._refuse_endless(rows)
        done = blocks >= len(self.layout.steps)
        if self.decoding.stop_early:
            canvas, masked = (
                self.layout.of_answer(found[rows], rows) for found in (self.ids[:, self.prompt_length :], self.masked)
            )
            done = done | (text_is_final(canvas, masked, self.stop_ids) & ~goes_on)
        self.active = rows[~done]

    def _refuse_endless(self, rows: Tensor) -> None:
        """A rule of the user's own that masks as much as it writes would go on for ever."""
        width = self.layout.width
        longest = LONGEST * width
        if self.decoding.rule is not None and bool((self.steps_in_block[rows] > longest).any()):
            raise UserError(
                f"a block of {width} tokens is not finished after {longest} steps",
                where=self.decoding.rule,
                mend="let the rule write more than it masks again",
            )

    def result(self, seconds: float) -> Denoised:
        """Return the canvases as they are, what is still masked filled with EOS."""
        ids = torch.where(self.masked, self.fill_id, self.ids[:, self.prompt_length :])
        rows = torch.arange(len(ids), device=ids.device)
        ids, revealed_at, confidence = (
            self.layout.of_answer(found, rows) for found in (ids, self.revealed_at, self.confidence.float())
        )
        block = self.layout.of_answer(self.block_of.expand(len(rows), -1), rows)
        return Denoised(ids, revealed_at, confidence, block, self.earlier, self.forwards, self.row_forwards, seconds)


def text_is_final(
    canvas: Int[Tensor, "b C"], masked: Bool[Tensor, "b C"], stop_ids: Int[Tensor, "s"]
) -> Bool[Tensor, "b"]:
    """Rows with a stop token before which everything is revealed, or of which all is: nothing written later can change
    their text.
    """
    stops = torch.isin(canvas, stop_ids) & ~masked
    revealed_before = masked.cumsum(-1) == 0
    return (stops & revealed_before).any(-1) | ~masked.any(-1)
