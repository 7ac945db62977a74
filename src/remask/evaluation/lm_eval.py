"""Remask's models in EleutherAI's lm-evaluation-harness, as `--model remask`.

The harness (0.4.13) finds only models of its own, so the name is registered when this module is imported:
`remask lm-eval …` is the harness's own command line with that done first; from Python, import this module and call
`lm_eval.simple_evaluate(model="remask", …)`.

A text's likelihood is its ELBO (docs/theory.md §8), a lower bound, from a stated number of draws on noise that depends
on the seed and the context alone: all endings offered for one context are scored on the same draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import lm_eval.models  # noqa: F401  (the harness's own: once another model is registered it looks for them no more)
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from remask.config import DecodingConfig, from_dict
from remask.diffusion.blocks import attention_of, in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo
from remask.diffusion.noise import Noise
from remask.environment import versions
from remask.errors import UserError, first_line
from remask.models.facts import facts
from remask.models.load import load
from remask.progress import progress
from remask.sampling.denoise import run
from remask.sampling.engine import LocalEngine, Request
from remask.sampling.generate import decoding_for
from remask.sampling.layout import canvas_after
from remask.sampling.schedule import Decoding

Tick = Callable[[int], None]
Pair = tuple[list[int], list[int]]
"""The token ids of a context and of what follows it."""


@register_model("remask")
class RemaskLM(TemplateLM):
    """A model of lm-eval. `--model_args pretrained=…,steps=…` takes what `remask.load` takes, any decoding setting, and
    these.

    draws: noise draws per text (Monte-Carlo samples of the ELBO). seed: of draws and of sampling. check_greedy: also
    find out whether greedy decoding would give the ending (one forward a token; tasks such as LAMBADA need it).
    max_length: longest canvas (default: the model's). add_bos_token: begin every text with BOS.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        adapter: str | None = None,
        dtype: str = "float32",
        device: str | None = "auto",
        quantization: Any = None,
        batch_size: int | str = 32,
        max_batch_size: int | None = None,
        draws: int = 128,
        seed: int = 0,
        check_greedy: bool = True,
        max_length: int | None = None,
        add_bos_token: bool = False,
        **decoding: Any,
    ) -> None:
        super().__init__()
        from_dict(DecodingConfig, {**decoding, "seed": seed}, where="--model_args")
        self.draws, self.seed = _whole("draws", draws, least=1), _whole("seed", seed, least=0)
        self.batch_size = 32 if str(batch_size).startswith("auto") else _whole("batch_size", batch_size, least=1)
        longest = None if max_length is None else _whole("max_length", max_length, least=2)
        self._rank, self._world_size, local_rank = _process()
        picked = device or "auto"
        if picked.startswith("cuda") and not torch.cuda.is_available():
            picked = "cpu"  # the harness asks for cuda:0 where nobody has said anything
        elif picked in ("auto", "cuda") and torch.cuda.is_available():
            picked = f"cuda:{local_rank}"
        self.model, self.tokenizer = load(
            pretrained, adapter=adapter, dtype=dtype, device=picked, quantization=quantization
        )
        self.facts = facts(self.model, self.tokenizer)
        self._device = self.model.device
        self.settings = {**decoding, "seed": seed}
        self.check_greedy = check_greedy
        self.max_length = longest or getattr(self.model.config, "max_position_embeddings", None) or 4096
        self.add_bos_token = add_bos_token
        self.name = pretrained

    # ---- what the harness asks of a model ----------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        return self.facts.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        bos = self.add_bos_token if add_special_tokens is None else add_special_tokens
        ids = self.tokenizer.encode(string, add_special_tokens=False)
        first = self.tokenizer.bos_token_id
        return [first, *ids] if bos and first is not None and ids[:1] != [first] else ids

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        except Exception as error:  # a template is a program that comes with the checkpoint
            raise UserError(
                f"the chat template refuses this conversation ({first_line(error)})",
                mend="leave --apply_chat_template out, or use another model",
            ) from error

    def get_model_info(self) -> dict[str, Any]:
        """Return what decides the numbers, which the harness keeps in its results."""
        return {
            "remask": {
                "pretrained": self.name,
                "elbo_draws": self.draws,
                "seed": self.seed,
                "decoding": {k: v for k, v in self.settings.items() if v is not None},
                "versions": versions(),
            }
        }

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer each context on a canvas, and cut the answer at the first of the task's `until` strings.

        The canvas is `max_new_tokens` of the model_args, else the task's `max_gen_toks`, else the checkpoint's; any
        other decoding setting may stand in --gen_kwargs too.
        """
        texts: dict[int, str] = {}
        groups: dict[Decoding, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(number)
        with progress("generating", len(requests), enabled=not disable_tqdm) as tick:
            for decoding, numbers in groups.items():
                contexts = [self.tok_encode(requests[number].args[0]) for number in numbers]
                for context in contexts:
                    canvas = canvas_after(len(context), decoding.max_new_tokens, attention_of(self.model))
                    self._refuse_too_long(len(context) + canvas)
                engine = LocalEngine(
                    self.tokenizer, self.batch_size, model=self.model, on_done=_counted_on(tick, len(texts))
                )
                answers = engine.answer([Request(context, _seed_of(context)) for context in contexts], decoding)
                for number, answer in zip(numbers, answers, strict=True):
                    texts[number] = cut(answer.text, requests[number].args[1].get("until"))
                    self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the ELBO of whole texts, in windows of `max_length` that each begin anew."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0], add_special_tokens=False), self.prefix_token_id, self.max_length - 1, 1
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        values = [0.0] * len(requests)
        for owner, value in zip(owners, self._elbos(pairs, disable_tqdm), strict=True):
            values[owner] += value
        for request, value in zip(requests, values, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return values

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, ending) for _, context, ending in requests]
        values = self._elbos(pairs, disable_tqdm)
        greedy = self._greedy(pairs, disable_tqdm) if self.check_greedy else [False] * len(pairs)
        results = list(zip(values, greedy, strict=True))
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    # ---- how it is computed ------------------------------------------------------------------------------------

    @torch.no_grad()
    def _elbos(self, pairs: Sequence[Pair], quiet: bool) -> list[float]:
        """log p(ending | context) ≥ these, in nats; batches of like lengths, a draw of a text a row."""
        for context, ending in pairs:
            self._refuse_too_long(len(context) + len(ending))
        work = [(number, draw) for number in range(len(pairs)) for draw in range(self.draws) if pairs[number][1]]
        work.sort(key=lambda item: len(pairs[item[0]][0]) + len(pairs[item[0]][1]))
        totals = np.zeros(len(pairs))
        with progress("scoring", len(work), enabled=not quiet) as tick:
            for start in range(0, len(work), self.batch_size):
                part = work[start : start + self.batch_size]
                canvas, noise = self._canvas([(pairs[number], draw) for number, draw in part])
                values = elbo(self.model, canvas, [noise], self.facts.mask_id).sequence.double().tolist()
                for (number, _), value in zip(part, values, strict=True):
                    totals[number] += value
                tick(start + len(part))
        return (totals / self.draws).tolist()

    def _canvas(self, rows: Sequence[tuple[Pair, int]]) -> tuple[Canvas, Noise]:
        """Rows padded on the right with tokens that nobody attends to."""
        length = max(len(context) + len(ending) for (context, ending), _ in rows)
        ids = torch.full((len(rows), length), self.facts.mask_id)
        attended = torch.zeros(len(rows), length, dtype=torch.bool)
        response = torch.zeros(len(rows), length, dtype=torch.bool)
        tau, u = torch.zeros(len(rows), length, dtype=torch.float64), torch.ones(len(rows), length)
        for row, ((context, ending), draw) in enumerate(rows):
            begin, end = len(context), len(context) + len(ending)
            ids[row, :end] = torch.tensor(context + ending)
            attended[row, :end] = True
            response[row, begin:end] = True
            tau[row], u[row, begin:end] = self._noise(_seed_of(context), draw, len(ending))
        canvas = Canvas(*(tensor.to(self.device) for tensor in (ids, attended, response, response)))
        canvas = in_blocks(canvas, attention_of(self.model))
        return canvas, Noise(tau, u).to(self.device)

    def _noise(self, context: int, draw: int, length: int) -> tuple[float, torch.Tensor]:
        """τ, stratified over the draws of a text, and a uniform number a token."""
        offset = np.random.default_rng([self.seed, context, 0]).random()
        u = np.random.default_rng([self.seed, context, 1, draw]).random(length, dtype=np.float32)
        return (offset + draw / self.draws) % 1.0, torch.from_numpy(u)

    def _greedy(self, pairs: Sequence[Pair], quiet: bool) -> list[bool]:
        """Whether decoding one token a step, the surest first, gives each ending."""
        found = [False] * len(pairs)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for number, (context, ending) in enumerate(pairs):
            if ending:
                by_shape.setdefault((len(context), len(ending)), []).append(number)
        done = 0
        tokens = sum(len(ending) for _, ending in pairs)
        with progress("decoding endings (check_greedy)", tokens, enabled=not quiet) as tick:
            for (_, length), numbers in by_shape.items():
                for start in range(0, len(numbers), self.batch_size):
                    part = numbers[start : start + self.batch_size]
                    prompts = torch.tensor([pairs[number][0] for number in part], device=self.device)
                    decoding = Decoding(max_new_tokens=length, stop_early=False)
                    written = run(self.model, prompts, None, decoding).ids.tolist()
                    for number, ids in zip(part, written, strict=True):
                        found[number] = ids == pairs[number][1]
                    done += length * len(part)
                    tick(done)
        return found

    def _decoding(self, asked: dict[str, Any]) -> Decoding:
        """The model_args, then what the task or --gen_kwargs asks for, then what the checkpoint was made for."""
        sampling = () if asked.get("do_sample") is not False else ("temperature", "top_k", "top_p")
        said = {key: asked[key] for key in DecodingConfig.__dataclass_fields__ if key in asked and key not in sampling}
        if asked.get("max_gen_toks"):
            said["max_new_tokens"] = asked["max_gen_toks"]
        settings = {**said, **{key: value for key, value in self.settings.items() if value is not None}}
        return decoding_for(self.model, **from_dict(DecodingConfig, settings, where="--gen_kwargs").given())

    def _refuse_too_long(self, length: int) -> None:
        if length > self.max_length:
            raise UserError(
                f"a text of {length} tokens is longer than max_length = {self.max_length}",
                mend="fewer shots, a shorter canvas, or another max_length in --model_args",
            )

    # ---- several processes, as the harness asks them to meet ---------------------------------------------------

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.world_size == 1:
            return tensor
        from accelerate.utils import gather

        return gather(tensor.to(self.device))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        if self.world_size == 1:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """Return the text before the first of the strings that end it."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.partition(stop)[0]
    return text


def _whole(name: str, value: Any, *, least: int) -> int:
    """A whole number among the model_args. Raises UserError naming it."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = least - 1
    if number < least or number != float(value):
        raise UserError(f"{name} = {value}", where="--model_args", mend=f"give a whole number, {least} or more")
    return number


def _seed_of(ids: Sequence[int]) -> int:
    """A number that ties draws to a context, whatever else is in its batch."""
    return int.from_bytes(hashlib.blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=6).digest(), "big")


def _process() -> tuple[int, int, int]:
    """(rank, world size, local rank) under torchrun or accelerate, which are joined here."""
    from remask.evaluation.run import Shard

    shard = Shard.from_environment()
    if shard.world > 1:
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return state.process_index, state.num_processes, state.local_process_index
    return 0, 1, 0


def _counted_on(tick: Tick, done: int) -> Tick:
    """tick(count), of what comes after `done`."""
    return lambda count: tick(done + count)
