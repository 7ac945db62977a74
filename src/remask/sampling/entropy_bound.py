"""The loop that writes with a model whose noise replaces tokens by others (DiffusionGemma): there are no masks.

A canvas begins as uniform tokens. Each step predicts all of it, keeps a draw of the surest predictions, as many as the
bound on their entropies allows (arXiv 2505.24857), and draws all others anew from the vocabulary. The next step is
conditioned on these predictions. What is written is the likeliest token of the last step at each place: the draft.

Every random number is a function of (seed, row, canvas, step, place): an answer does not depend on its batch.

Shapes: B prompts, P prompt length, C tokens of a canvas, a rows that go on, r of them being refined, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from remask.diffusion.attention import BlockCausal
from remask.errors import UserError
from remask.models.facts import first_eos, stop_token_ids
from remask.models.unchanged import weights_unchanged
from remask.sampling.layout import canvas_after, fitted_to_blocks
from remask.sampling.record import Denoised, Earlier, Step
from remask.sampling.row_noise import RowNoise
from remask.sampling.schedule import ENTROPY_BOUND, Decoding
from remask.sampling.selection import drawn

STEPS = 48
"""The most steps of a canvas where a checkpoint does not say."""
OF_MASKS = (
    "reveal",
    "rule",
    "threshold",
    "at_least",
    "edit_threshold",
    "edit_steps",
    "sub_block_length",
    "schedule",
    "eps",
    "guidance",
    "suppress_eos",
    "stop_last",
    "top_k",
    "top_p",
)
"""The settings of the loop that unmasks, which this one does not have."""


def defaults_of(model: Any) -> dict[str, Any]:
    """Return the settings that a checkpoint was made for: those of its generation config, or the published ones."""
    said = getattr(model, "generation_config", None)
    found = {name: getattr(said, name, None) for name in ("max_new_tokens", *ENTROPY_BOUND)}
    found["entropy_bound"] = getattr(getattr(said, "sampler_config", None), "entropy_bound", None)
    own = dict(getattr(model.config, "default_decoding", None) or {})
    published = {**ENTROPY_BOUND, "max_new_tokens": model.config.canvas_length, "temperature": 1.0}
    return {**published, **{name: value for name, value in found.items() if value is not None}, **own}


def fitted(decoding: Decoding, model: Any) -> Decoding:
    """Return the settings with what is not given filled in. Raises UserError for what this loop does not have."""
    if said := [name for name in OF_MASKS if decoding.says(name)]:
        raise UserError(
            f"{', '.join(said)}: this model has no masks to reveal, and is sampled by the bound on entropies",
            mend=f"its settings are steps, temperature, {', '.join(ENTROPY_BOUND)}",
        )
    if decoding.cache == "none":
        raise UserError("cache = none: this model's encoder keeps what it has read", mend="leave cache out")
    defaults = defaults_of(model)
    decoding = fitted_to_blocks(decoding, model.config.canvas_length)
    steps = decoding.steps or len(decoding.blocks) * (
        getattr(getattr(model, "generation_config", None), "max_denoising_steps", None) or STEPS
    )
    given = {name: getattr(decoding, name) for name in ENTROPY_BOUND}
    settings = {name: defaults[name] if value is None else value for name, value in given.items()}
    return replace(decoding, steps=steps, **settings)


@torch.no_grad()
def run(
    model: nn.Module,
    prompt_ids: Int[Tensor, "B P"],
    attention_mask: Int[Tensor, "B P"] | None,
    decoding: Decoding,
    *,
    row_seeds: Sequence[int] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Denoised:
    """Write the canvases after each prompt, as `denoise.run` does, and tell how it went.

    A token's step is that of its row's own steps at which it came to stand in the draft; its confidence is the
    probability that it had in the last one, before temperature. A row whose text has ended gets no further canvas.
    """
    started = time.perf_counter()
    writing = _Writing(model, prompt_ids, decoding, row_seeds, on_step)
    was_training = model.training
    model.eval()
    try:
        with weights_unchanged(model):
            writing.write(prompt_ids, torch.ones_like(prompt_ids) if attention_mask is None else attention_mask)
    finally:
        model.train(was_training)
    return writing.result(time.perf_counter() - started)


class Draws:
    """The random numbers of the rows' canvases. Number 0 of a canvas is its beginning, and 1, 2, … its steps."""

    def __init__(self, noise: RowNoise, length: int, steps: int, vocabulary: int) -> None:
        self.noise, self.length, self.steps, self.vocabulary = noise, length, steps, vocabulary

    def tokens(self, rows: Int[Tensor, "r"], canvas: int, number: int) -> Int[Tensor, "r C"]:
        """Return tokens drawn uniformly from the vocabulary."""
        u = self.noise.uniform(rows, self._at(canvas, number), self.length, "order")
        return (u * self.vocabulary).long().clamp(max=self.vocabulary - 1)

    def choices(self, rows: Int[Tensor, "r"], canvas: int, number: int) -> Float[Tensor, "r C"]:
        """Return the numbers in [0, 1) that decide which tokens are drawn."""
        return self.noise.uniform(rows, self._at(canvas, number), self.length, "token")

    def _at(self, canvas: int, number: int) -> int:
        return canvas * (self.steps + 1) + number


class _Writing:
    """A batch of answers being written, canvas after canvas. ids, came, confidence [B, W] are of all canvases. taken
    [B]: the steps that each row has had. active [a]: the rows that go on.
    """

    def __init__(
        self,
        model: Any,
        prompt_ids: Tensor,
        decoding: Decoding,
        row_seeds: Sequence[int] | None,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        config: Any = model.config
        self.model = model
        device, B = prompt_ids.device, len(prompt_ids)
        self.decoding = decoding = fitted(decoding, model)
        C: int = config.canvas_length
        self.length = C
        self.canvases = canvas_after(0, decoding.max_new_tokens, BlockCausal(C, "answer")) // C
        assert decoding.steps is not None
        share, extra = divmod(decoding.steps, self.canvases)
        self.steps = [share + (number < extra) for number in range(self.canvases)]
        noise = RowNoise(decoding.seed, range(B) if row_seeds is None else row_seeds, device)
        self.draws = Draws(noise, C, max(self.steps), config.vocab_size)
        self.fill_id = first_eos(config)
        self.stop_ids = torch.tensor(stop_token_ids(config), device=device)
        self.prefix = self.model.empty_prefix()
        shape = (B, self.canvases * C)
        self.ids = torch.full(shape, self.fill_id, device=device)
        self.came = torch.full(shape, -1, device=device)
        self.confidence = torch.full(shape, torch.nan, device=device)
        self.taken = torch.zeros(B, dtype=torch.long, device=device)
        self.active = torch.arange(B, device=device)
        self.earlier: list[list[Earlier]] = [[] for _ in range(B)]
        self.on_step, self.number, self.forwards, self.row_forwards = on_step, 0, 0, 0

    def write(self, ids: Int[Tensor, "B P"], attended: Int[Tensor, "B P"]) -> None:
        """Read what is new, write a canvas, and go on with the rows whose text has not ended."""
        if not ids.shape[1]:  # prompts of no token: one that nobody looks at stands for them
            ids, attended = ids.new_zeros(len(ids), 1), attended.new_zeros(len(ids), 1)
        for canvas in range(self.canvases):
            self.model(clean=ids, attention_mask=attended, prefix=self.prefix, keep=True)
            self._count(len(self.active))
            self._refine(canvas)
            goes_on = (~self._ended(canvas)).nonzero()[:, 0]
            if not len(goes_on) or canvas == self.canvases - 1:
                return
            if len(goes_on) < len(self.active):
                self.active, self.prefix = self.active[goes_on], self.prefix.of(goes_on)
            ids = self.ids[self.active, self._places(canvas)]
            attended = torch.ones_like(ids)

    def _places(self, canvas: int) -> slice:
        return slice(canvas * self.length, (canvas + 1) * self.length)

    def _count(self, rows: int) -> None:
        self.forwards += 1
        self.row_forwards += rows

    def _refine(self, canvas: int) -> None:
        """The steps of one canvas. A row that is stable and sure is not refined any more."""
        decoding, rows, prefix, signal = self.decoding, self.active, self.prefix, None
        assert decoding.stability_threshold is not None
        assert decoding.confidence_threshold is not None
        tokens, same = self.draws.tokens(rows, canvas, 0), torch.zeros_like(rows)
        draft = torch.full_like(tokens, -1)
        for step in range(self.steps[canvas]):
            number = step + 1
            seen = self._seen(tokens, prefix, signal, self._temperature(canvas, step), (rows, canvas, number))
            token, best, entropy, confidence = (found.unflatten(0, tokens.shape) for found in seen[:4])
            self._count(len(rows))
            if bool(entropy.isnan().any()):
                raise UserError("the model's predictions are not finite", mend="use a checkpoint of whole weights")
            self._note(rows, canvas, draft, best, confidence)
            fresh = self.draws.tokens(rows, canvas, number)
            tokens = torch.where(accepted(entropy, decoding.entropy_bound), token, fresh)
            same = torch.where((best == draft).all(-1), same + 1, 0)
            sure = entropy.mean(-1) < decoding.confidence_threshold
            left = (~((same >= decoding.stability_threshold) & sure)).nonzero()[:, 0]
            if not len(left):
                return
            draft, signal = best, seen[4].unflatten(0, tokens.shape)
            if len(left) < len(rows):
                rows, tokens, same, draft, signal = (each[left] for each in (rows, tokens, same, draft, signal))
                prefix = prefix.of(left)

    def _temperature(self, canvas: int, step: int) -> float:
        """The temperature of a step: n of N steps are left, this one included. It is rounded to float32 after each
        operation, as published: what a step is conditioned on carries the last bit on to all later ones.
        """
        N, decoding = self.steps[canvas], self.decoding
        assert decoding.t_min is not None
        assert decoding.t_max is not None
        share = torch.tensor(N - step, dtype=torch.int32) / N
        return float(decoding.t_min + (decoding.t_max - decoding.t_min) * share)

    def _seen(
        self,
        tokens: Int[Tensor, "r C"],
        prefix: Any,
        signal: Tensor | None,
        temperature: float,
        at: tuple[Tensor, int, int],
    ) -> tuple[Tensor, ...]:
        """Of each place: a draw, the likeliest token, the entropy, the likeliest's probability before temperature, and
        the embedding to condition the next step on.
        """
        uniform = self.draws.choices(*at).flatten() if self.decoding.temperature > 0 else None

        def look(logits: Tensor, part: slice) -> tuple[Tensor, ...]:
            logits = logits.float()
            peak, best = logits.max(-1)
            confidence = (peak - logits.logsumexp(-1)).exp()
            z = logits.div_(temperature)
            log_p = z.log_softmax(-1)
            entropy = -(log_p.exp() * log_p.clamp(min=torch.finfo(torch.float32).min)).sum(-1)
            token = best
            if uniform is not None:
                weight = ((z - z.amax(-1, keepdim=True)) / self.decoding.temperature).exp()
                token = drawn(weight, uniform[part])
            return token, best, entropy, confidence, self.model.embeddings_of(z)

        found: tuple[Tensor, ...] = self.model(input_ids=tokens, prefix=prefix, signal=signal, look=look).seen
        return found

    def _note(self, rows: Tensor, canvas: int, draft: Tensor, best: Tensor, confidence: Tensor) -> None:
        """Write the draft down, with what it replaces, and tell whoever watches."""
        places, changed = self._places(canvas), best != draft
        replaced = changed & (draft >= 0)
        self._keep(rows, canvas, replaced, draft)
        self.ids[rows, places] = best
        self.came[rows, places] = torch.where(changed, self.taken[rows, None], self.came[rows, places])
        self.confidence[rows, places] = confidence
        self.taken[rows] += 1
        if self.on_step is not None:
            shown, C = self.ids[rows, : self.decoding.max_new_tokens], self.decoding.max_new_tokens
            new, instead, now = (torch.zeros_like(self.ids[rows], dtype=torch.bool) for _ in range(3))
            new[:, places], instead[:, places], now[:, places] = changed, replaced, True
            self.on_step(Step(self.number, rows, shown, new[:, :C], None, instead[:, :C], now[:, :C]))
        self.number += 1

    def _keep(self, rows: Tensor, canvas: int, gone: Bool[Tensor, "r C"], tokens: Tensor) -> None:
        """Keep tokens that leave the draft."""
        row, place = gone.nonzero(as_tuple=True)
        came = self.came[rows, self._places(canvas)][gone].tolist()
        until = self.taken[rows[row]].tolist()
        for at, number, token, since, now in zip(
            rows[row].tolist(), (place + canvas * self.length).tolist(), tokens[gone].tolist(), came, until, strict=True
        ):
            if number < self.decoding.max_new_tokens:
                self.earlier[at].append(Earlier(number, token, since, now))

    def _ended(self, canvas: int) -> Bool[Tensor, "a"]:
        """Rows whose text has ended in this canvas. What follows the end is EOS."""
        rows, places = self.active, self._places(canvas)
        tokens = self.ids[rows, places]
        ends = torch.isin(tokens, self.stop_ids)
        if not self.decoding.stop_early:
            return torch.zeros_like(ends[:, 0])
        after = (ends.cumsum(-1) - ends.long()) > 0
        self._keep(rows, canvas, after, tokens)
        self.ids[rows, places] = tokens.masked_fill(after, self.fill_id)
        self.came[rows, places] = self.came[rows, places].masked_fill(after, -1)
        self.confidence[rows, places] = self.confidence[rows, places].masked_fill(after, torch.nan)
        return ends.any(-1)

    def result(self, seconds: float) -> Denoised:
        C = self.decoding.max_new_tokens
        block = (torch.arange(C, device=self.ids.device) // self.length).expand(len(self.ids), -1)
        ids, came, confidence = (found[:, :C] for found in (self.ids, self.came, self.confidence))
        return Denoised(ids, came, confidence, block, self.earlier, self.forwards, self.row_forwards, seconds)


def accepted(entropy: Float[Tensor, "r C"], bound: float | None) -> Bool[Tensor, "r C"]:
    """Return the places of lowest entropy such that the entropies of all of them but the highest do not add up to more
    than the bound: so much do their tokens say of each other at most. The surest place is always among them.
    """
    assert bound is not None
    ordered, order = entropy.sort(-1)
    return torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, ordered.cumsum(-1) - ordered <= bound)
