"""How an answer is written: canvas, blocks, steps, and the rule that reveals (docs/theory.md §7)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from remask.choices import CacheName, RevealName, ScheduleName, refuse_unknown
from remask.errors import UserError
from remask.own_code import is_own, stamp

ENTROPY_BOUND: dict[str, float] = {
    "entropy_bound": 0.1,
    "t_min": 0.4,
    "t_max": 0.8,
    "stability_threshold": 1,
    "confidence_threshold": 0.005,
}
"""The settings of models that replace tokens by others, with the published values (DiffusionGemma)."""
UNSAID = ("rule", "at_least", "edit_threshold", "edit_steps", "sub_block_length", *ENTROPY_BOUND)
"""Settings that are left out of records where they have their defaults, as records of earlier versions lack them."""


@dataclass(frozen=True)
class Decoding:
    """The settings that an answer is written with. Every score is reported with these beside it.

    max_new_tokens: canvas length C. steps: forwards for the whole canvas (default C, one token a step), shared out over
    blocks. block_length: blocks are finished left to right (default C: fully any-order). sub_block_length: and so are
    parts of a block (Fast-dLLM v2). reveal: which proposals are
    kept first. rule: `file.py:Class`, a rule of one's own in place of `reveal` (`sampling/rules.py`). threshold: reveal
    every proposal whose score reaches it, or the `at_least` best where those are fewer, instead of a fixed number.
    edit_threshold: under a threshold, replace written tokens of the block at work where another one's probability
    reaches this; a block without masks has `edit_steps` more steps at most (LLaDA2.1).
    schedule: how many a step reveals without a threshold: `even`, a block's masks split over its steps, or `t`, Dream's
    int(n·(1−s/t)) of the n masks left, t falling evenly from 1 to eps over the steps and all that is left in the last.
    temperature 0 takes the likeliest token; top_k and top_p restrict sampling. guidance w > 0 is classifier-free:
    logits u + (w+1)(c − u), with u those of the prompt masked (a second forward). suppress_eos: the EOS that fills is
    never written. stop_last: tokens that end a text are written after all others. stop_early: a row whose text can no
    longer change stops (the rest is EOS). cache: `none` computes every token at every step (the default under full
    attention); `prefix` and `dual` are approximate: what stands before the block at work, or on both sides of it, is
    computed once a block; `exact` is for block models, and their default: a finished block is computed once.

    entropy_bound, t_min, t_max, stability_threshold, confidence_threshold: of models that replace tokens by others
    (`sampling/entropy_bound.py`), and of no others. A canvas takes its share of `steps` at most; logits are divided by
    a temperature that falls from t_max to just above t_min over them. A step keeps a draw of the surest predictions,
    whose entropies but the highest add up to entropy_bound at most. A canvas is done when its likeliest tokens have
    stayed the same for stability_threshold steps and their mean entropy is below confidence_threshold. `temperature` is
    that of the draws, on top of the other one: 1 draws as published, 0 takes the likeliest token.

    A block model's block_length is its own block, and its default. Its last block is written whole, and what is beyond
    max_new_tokens is cut off. Of an answer's first block the prompt's last tokens may be a part: they count as written,
    so that a step reveals as many tokens as in any other block.
    """

    max_new_tokens: int = 128
    steps: int | None = None
    block_length: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    reveal: RevealName = "confidence"
    rule: str | None = None
    threshold: float | None = None
    at_least: int = 1
    edit_threshold: float | None = None
    edit_steps: int = 16
    sub_block_length: int | None = None
    schedule: ScheduleName = "even"
    eps: float = 1e-3
    guidance: float = 0.0
    suppress_eos: bool = False
    stop_last: bool = False
    stop_early: bool = True
    cache: CacheName | None = None
    seed: int = 0
    entropy_bound: float | None = None
    t_min: float | None = None
    t_max: float | None = None
    stability_threshold: int | None = None
    confidence_threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "steps", "block_length", "sub_block_length", "top_k", "at_least"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}", mend="give 1 or more")
        for name in ("seed", "edit_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}", mend="give 0 or more")
        if self.rule is not None and not is_own(self.rule):
            raise UserError(f"rule = {self.rule!r}", mend="write file.py:Class; the named rules are those of reveal")
        refuse_unknown("reveal", self.reveal, RevealName)
        refuse_unknown("schedule", self.schedule, ScheduleName)
        if self.cache is not None:
            refuse_unknown("cache", self.cache, CacheName)
        if not np.isfinite(self.temperature) or self.temperature < 0:
            raise UserError(f"temperature = {self.temperature}", mend="give 0 or more")
        if not np.isfinite(self.guidance) or self.guidance < 0:
            raise UserError(f"guidance = {self.guidance}", mend="give 0 or more")
        for name in ("threshold", "edit_threshold"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise UserError(f"{name} = {value}", mend="give a number")
        if self.cache not in (None, "none") and self.guidance:
            raise UserError("guidance and a cache do not go together", mend="leave one out")
        if not 0 < self.eps < 1:
            raise UserError(f"eps = {self.eps}", mend="give a number in (0, 1)")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}", mend="give a number in (0, 1]")
        if self.threshold is None and self.steps is not None and self.steps < len(self.blocks):
            raise UserError(
                f"{self.steps} steps cannot finish {len(self.blocks)} blocks", mend="raise steps or block_length"
            )
        if self.threshold is not None and self.reveal in ("random", "left_to_right"):
            raise UserError(f"a threshold has no meaning for reveal = {self.reveal!r}", mend="use a model's score")
        for name in ("at_least", "edit_threshold"):
            if self.threshold is None and self.says(name):
                raise UserError(f"{name} = {getattr(self, name)} without a threshold", mend="give a threshold")
        if self.edit_threshold is None and self.says("edit_steps"):
            raise UserError(f"edit_steps = {self.edit_steps} without edit_threshold", mend="give edit_threshold")
        if self.edit_threshold is not None and self.rule is not None:
            raise UserError("edit_threshold and a rule of one's own do not go together", mend="leave one out")

        self._check_entropy_bound()

    def _check_entropy_bound(self) -> None:
        for name in ENTROPY_BOUND:
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise UserError(f"{name} = {value}", mend="give 0 or more")
        low, high = (getattr(self, n) if self.says(n) else ENTROPY_BOUND[n] for n in ("t_min", "t_max"))
        if not (low <= high and high > 0):
            raise UserError(f"t_min = {low}, t_max = {high}", mend="give t_min ≤ t_max, and t_max above 0")

    def says(self, name: str) -> bool:
        """Return whether a setting is another than its default."""
        return bool(getattr(self, name) != Decoding.__dataclass_fields__[name].default)

    @property
    def blocks(self) -> list[range]:
        """The canvas places of each block; the last one may be shorter."""
        length = self.block_length or self.max_new_tokens
        return [range(s, min(s + length, self.max_new_tokens)) for s in range(0, self.max_new_tokens, length)]

    @property
    def steps_per_block(self) -> list[int]:
        """Steps shared out by the blocks' lengths, what is left over going to the first blocks."""
        steps = self.steps or self.max_new_tokens
        shares = [max(1, steps * len(block) // self.max_new_tokens) for block in self.blocks]
        extra = steps - sum(shares)
        return [share + (i < extra) for i, share in enumerate(shares)]

    def share(self, step: int, steps: int) -> float:
        """The share 1 − s/t of the masks left that step `step` of a block's `steps` reveals under schedule `t`."""
        if step >= steps - 1:
            return 1.0
        t, s = (1 - (1 - self.eps) * i / steps for i in (step, step + 1))
        return 1 - s / t

    def described(self) -> dict[str, Any]:
        """Every setting with its defaults filled in, as reported beside a score."""
        steps = None if self.threshold is not None else self.steps or self.max_new_tokens
        said = asdict(replace(self, block_length=self.block_length or self.max_new_tokens, cache=self.cache or "none"))
        said["steps"] = steps
        for name in UNSAID:
            if not self.says(name):
                del said[name]
        if self.rule is not None:
            said["rule"] = f"{self.rule}@{stamp(self.rule)}"
        return said
