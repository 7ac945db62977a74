"""`remask generate`: answers, with the canvas unmasked before one's eyes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from remask.commands.options import load_named, parse, print_json, split_words
from remask.config import GenerateConfig
from remask.errors import UserError
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask generate "sudoku 2031 0002 0013 3004"
  remask generate --model runs/x --decoding.temperature 0.7 "countdown 4 5 9 -> 9"
  remask generate --infill "sudoku 2031 0002 0013 3004 -> 2<|mask|>31"
  echo "countdown 4 5 9 -> 9" | remask generate --json"""


def run(arguments: Sequence[str]) -> int:
    """Run `remask generate` with these arguments and return the exit code."""
    prompts, flags = split_words(GenerateConfig, arguments)
    config = parse(GenerateConfig, flags, command="generate", examples=EXAMPLES, words="[PROMPT...]")
    if config.infill is not None:
        return _fill_in(config, prompts)
    if not prompts and not sys.stdin.isatty():
        prompts = _prompts(sys.stdin)
    if not prompts:
        raise UserError("no prompt", mend='give one: remask generate "…", or a line each on standard input')
    with uncollected():
        from remask.sampling.generate import generate

    model, tokenizer = load_named(config)
    stream = config.stream if config.stream is not None else sys.stdout.isatty() and not config.json
    texts = []
    records = []
    for number, prompt in enumerate(prompts):
        with _canvas(tokenizer, model.config.mask_token_id, prompt) if stream else nullcontext() as draw:
            generated = generate(
                model, tokenizer, [prompt], row_seeds=[number], on_step=draw, **config.decoding.given()
            )
        texts.append(generated.texts[0])
        records.append(
            {"prompt": prompt, "text": texts[-1], "token_ids": generated.token_ids[0], "stats": generated.stats}
        )
        if not config.json:
            print(texts[-1] or "(empty answer)")
    if config.json:
        print_json(records)
    return 0


def _fill_in(config: GenerateConfig, prompts: Sequence[str]) -> int:
    if len(prompts) > 1:
        raise UserError(f"{len(prompts)} prompts before one text to fill in", mend="give one prompt, or none")
    with uncollected():
        from remask.sampling.infill import infill

    model, tokenizer = load_named(config)
    assert config.infill is not None
    filled = infill(model, tokenizer, config.infill, prompt=next(iter(prompts), None), **config.decoding.given())
    if config.json:
        print_json({"infill": config.infill, "prompt": next(iter(prompts), None), **filled})
    else:
        print(filled["text"])
    return 0


def _prompts(lines: Iterable[str]) -> list[str]:
    """One a line; blank lines at the end are none. Raises UserError for a blank line before: without it, the answers
    would not stand where their prompts did.
    """
    prompts = [line.rstrip("\n") for line in lines]
    while prompts and not prompts[-1].strip():
        prompts.pop()
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise UserError("is blank", where=f"standard input, line {number}", mend="take it out, or give a prompt")
    return prompts


class _canvas:  # noqa: N801
    """Draws the canvas at every step: masks as dots (those of later blocks dim), tokens as they appear (yellow where
    they replace another).
    """

    def __init__(self, tokenizer: Any, mask_id: int | None, prompt: str) -> None:
        self.tokenizer, self.mask_id, self.prompt = tokenizer, mask_id, prompt

    def __enter__(self) -> Callable[[Any], None]:
        from rich.live import Live
        from rich.text import Text

        self.live = Live(Text(""), refresh_per_second=30, transient=True)
        self.live.__enter__()

        def draw(step: Any) -> None:
            text = Text()  # a style given here would be that of all of it
            text.append(f"{self.prompt}\n", style="dim")
            told = (step.canvas, step.revealed, step.replaced, step.at_work)
            for token, new, instead, now in zip(*(of_rows[0].tolist() for of_rows in told), strict=True):
                fresh = "yellow" if instead else "green"
                if token == self.mask_id:
                    text.append("·", style="" if now else "dim")
                elif token in self.tokenizer.all_special_ids:
                    text.append("◦", style=fresh if new else "dim")
                else:
                    text.append(self.tokenizer.decode([token]), style=f"bold {fresh}" if new else "")
            edits = "" if not step.replaced[0].any() else f", {int(step.replaced[0].sum())} replaced"
            text.append(f"\nstep {step.number + 1}{edits}", style="dim")
            self.live.update(text, refresh=True)

        return draw

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)
