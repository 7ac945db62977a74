"""`remask distil`: a causal model's answers to prompts, as rows to train its diffusion model on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remask.commands.options import parse
from remask.config import DistilConfig
from remask.errors import UserError
from remask.files import refuse_unwritable, write_atomically
from remask.imports import uncollected
from remask.progress import progress, working

EXAMPLES = """Examples:
  remask distil --teacher SmolLM2-135M-Instruct.Q4_1.gguf --data topics:1000 --output answers.jsonl
  remask distil --teacher Qwen/Qwen2.5-0.5B-Instruct --data my.jsonl --max-new-tokens 256 --output answers.jsonl

Given again, it goes on where it stopped."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask distil` with these arguments and return the exit code."""
    config = parse(DistilConfig, arguments, command="distil", examples=EXAMPLES)
    _check(config)
    if config.teacher is None:
        raise UserError("no model to answer the prompts", mend="give one: --teacher MODEL")
    prompts = _prompts(config.data)
    target, partial = Path(config.output), Path(f"{config.output}.part")
    settings = json.dumps(asdict(config) | {"prompts": _digest(prompts)}, sort_keys=True)
    begun, done = _done(partial, settings, len(prompts), config.batch_size)
    with uncollected():
        from remask.models.causal import load_causal, written
        from remask.models.load import pick_device, resolve

    with working(f"reading {config.teacher}"):
        model, tokenizer = load_causal(resolve(config.teacher), dtype=config.dtype, device=pick_device(config.device))
    batches = range(len(done) * config.batch_size, len(prompts), config.batch_size)
    with partial.open("a") as file, progress("answering", len(prompts)) as tick:
        if not begun:
            file.write(settings + "\n")
        for start in batches:
            chosen = prompts[start : start + config.batch_size]
            answers = written(
                model,
                tokenizer,
                chosen,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                seed=config.seed + start,
            )
            done.append(answers)
            file.write(json.dumps(answers) + "\n")
            file.flush()
            tick(min(start + config.batch_size, len(prompts)))
    answers = [answer for batch in done for answer in batch]
    kept = [
        {"messages": [*prompt, {"role": "assistant", "content": answer}]}
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer
    ]
    if not kept:
        raise UserError(
            f"no answer ended within {config.max_new_tokens} tokens",
            where=config.teacher,
            mend=f"give a larger --max-new-tokens, and delete {partial}",
        )
    write_atomically(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    partial.unlink()
    print(
        f"{target}: {len(kept)} rows; {len(answers) - len(kept)} of {len(answers)} answers were empty or had not ended "
        f"within {config.max_new_tokens} tokens and were left out"
    )
    return 0


def _check(config: DistilConfig) -> None:
    for name, least in (("max_new_tokens", 1), ("batch_size", 1), ("temperature", 0), ("seed", 0)):
        if getattr(config, name) < least:
            raise UserError(f"{name} = {getattr(config, name)}", mend=f"give {least} or more")
    refuse_unwritable(config.output)
    if Path(config.output).exists():
        raise UserError("is there already", where=config.output, mend="give another --output, or delete it")


def _prompts(data: str) -> list[list[dict[str, Any]]]:
    """The conversations up to the answer."""
    from remask.data.canvas import Rows, tell_faults
    from remask.data.sources import load_examples
    from remask.data.topics import is_topics, topics
    from remask.tasks.generated import generated_examples, is_generated

    if is_topics(data):
        return [[{"role": "user", "content": prompt}] for prompt in topics(data)]
    if is_generated(data):
        examples = generated_examples(data, split="train", prompt_style="full")
    else:
        loaded = load_examples(data)
        tell_faults(data, loaded, Rows([]))
        examples = loaded.examples
    if with_tools := next((example for example in examples if example.tools), None):
        raise UserError("offers tools, which are not passed on", where=with_tools.where, mend="take its tools out")
    return [[dict(message) for message in example.messages] for example in examples]


def _digest(prompts: list[list[dict[str, Any]]]) -> str:
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()


def _done(partial: Path, settings: str, prompts: int, batch_size: int) -> tuple[bool, list[list[str | None]]]:
    """Whether an earlier call has begun, and the answers of its batches. A line that was not finished is taken away."""
    if not partial.exists():
        return False, []
    text = partial.read_text()
    lines = text.split("\n")[:-1]
    if lines and lines[0] != settings:
        raise UserError(
            "holds answers of a call with other settings",
            where=str(partial),
            mend="delete it, or give another --output",
        )
    done = [json.loads(line) for line in lines[1:]]
    sizes = [min(batch_size, prompts - start) for start in range(0, prompts, batch_size)]
    if [len(batch) for batch in done] != sizes[: len(done)]:
        raise UserError("is damaged", where=str(partial), mend="delete it")
    if not text.endswith("\n"):
        write_atomically(partial, "".join(f"{line}\n" for line in lines))
    return bool(lines), done
