"""Make the embedded tiny model: tokenizer, chat template, and pretraining on messy worked answers.

    python scripts/pretrain_tiny.py --output phase1 --stop-after 1500 --countdown 15 60 3000
    python scripts/pretrain_tiny.py --output phase2 --init phase1 --seed 1 --steps 2600 --learning-rate 1.2e-3

A smaller one that answers without working, for studies of many runs; stopped early, so that it has much to learn:

    python scripts/pretrain_tiny.py --output tiny-direct --direct --tasks sudoku --canvas 20 --width 64 --layers 3 \
        --steps 2500 --stop-after 450 --learning-rate 3e-3 --batch-size 64

The same as a block model, whose blocks are counted from the answer's first token:

    python scripts/pretrain_tiny.py --output tiny-block --attention block:4:answer --direct --tasks sudoku --canvas 20 \
        --width 64 --layers 3 --steps 2500 --stop-after 450 --learning-rate 3e-3 --batch-size 64

The embedded `tiny` is phase2 (the first phase shows Countdown with larger numbers, the second the generated task's
own), `tiny-direct` the smaller one, `tiny-block` the block model.

A byte-level masked diffusion model in LLaDA's layout learns generated Sudoku and Countdown, half of whose worked
answers are wrong: as real base models, it then can do right but often samples wrong, which leaves room for SFT and RL.
Problems are of the training split only (tasks/generator.py), so validation, test and published problems stay unseen.
Takes about an hour on one CPU core; the same arguments give the same data in the same order.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from remask.diffusion.attention import Attention, BlockCausal, named
from remask.diffusion.blocks import in_blocks
from remask.diffusion.corruption import Canvas
from remask.diffusion.noise import collate_noise, row_noise
from remask.diffusion.objective import Objective, corrupt, denominator, row_losses, scored_positions
from remask.diffusion.reader import ModelReader
from remask.models.llada import LLaDAConfig, LLaDAModelLM
from remask.tasks import Countdown, GeneratedTask, Sudoku

SPECIAL = ["<|endoftext|>", "<|mask|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CANVAS = 80


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: any text can be written, and a token is a character where text is ASCII."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        mask_token="<|mask|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def build_config(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int, canvas: int, attention: str
) -> LLaDAConfig:
    reads = named(attention)
    block = reads.block if isinstance(reads, BlockCausal) else canvas
    own = {"attention": attention} if isinstance(reads, BlockCausal) else {}
    return LLaDAConfig(
        vocab_size=len(tokenizer),
        d_model=width,
        n_layers=layers,
        n_heads=width // 16,
        mlp_hidden_size=width * 21 // 8,
        max_sequence_length=512,
        rope_theta=100.0,  # rows are short: every frequency should tell neighbouring cells apart
        init_std=0.08,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        stop_token_ids=[tokenizer.convert_tokens_to_ids("<|end|>")],
        fill=f"multiple:{canvas}",
        prompt_style="compact",
        default_decoding={"max_new_tokens": canvas, "steps": 20, "block_length": block},
        **own,
    )


def rows(
    tokenizer: PreTrainedTokenizerFast,
    messy: float,
    seed: int,
    countdown: Sequence[int],
    names: Sequence[str],
    *,
    direct: bool,
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) without end, the tasks in turn, a share `messy` of the answers wrong."""
    rng = random.Random(f"pretraining/{seed}")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    largest, largest_target, distinct = countdown
    known: list[tuple[GeneratedTask, int]] = [(Sudoku(), 5_000), (Countdown(3, largest, largest_target), distinct)]
    tasks = [(task, count) for task, count in known if task.name in names]
    pools = [(task, task.generate(count, split="train", seed=1_000_000 + seed)) for task, count in tasks]
    while True:
        for task, problems in pools:
            problem = rng.choice(problems)
            messages = [{"role": "user", "content": task.prompt(problem, "compact")}]
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            answer = task.solve(problem, rng, wrong=rng.random() < messy)
            answer = task.without_work(answer) if direct else answer
            yield tokenizer.encode(text), [*tokenizer.encode(answer), end]


def batch(
    samples: list[tuple[list[int], list[int]]], step: int, seed: int, eos: int, usual: int, attention: Attention
) -> tuple[Canvas, object]:
    """Rows filled with EOS to one canvas length per batch; mostly the usual one, so that others are known too."""
    lengths = [usual * 9 // 10, usual, usual, usual, usual * 6 // 5]
    length = max(random.Random(step).choice(lengths), max(len(a) for _, a in samples))
    width = max(len(p) for p, _ in samples) + length
    ids = torch.full((len(samples), width), eos)
    attended = torch.zeros(ids.shape, dtype=torch.bool)
    response = attended.clone()
    noise = []
    for b, (prompt, answer) in enumerate(samples):
        ids[b, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        attended[b, : len(prompt) + length] = True
        response[b, len(prompt) : len(prompt) + length] = True
        visit = step * len(samples) + b
        noise.append(row_noise(seed, 0, visit, visit, length))
    canvas = in_blocks(Canvas(ids, attended, response, response), attention)
    return canvas, collate_noise(noise, [len(p) for p, _ in samples], width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--messy", type=float, default=0.5)
    parser.add_argument("--width", type=int, default=128, help="a multiple of 16")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--tasks", nargs="+", default=["sudoku", "countdown"], choices=["sudoku", "countdown"])
    parser.add_argument("--direct", action="store_true", help="answers without working")
    parser.add_argument("--attention", default="full", help="full, block:4, or block:4:answer")
    parser.add_argument("--canvas", type=int, default=CANVAS, help="tokens of an answer with its fill")
    parser.add_argument(
        "--countdown",
        type=int,
        nargs=3,
        default=[9, 99, 1_800],
        metavar=("LARGEST", "TARGET", "DISTINCT"),
        help="largest number and target, and how many distinct problems",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-after", type=int, help="leave the schedule here")
    parser.add_argument("--init", type=Path, help="go on from this folder's weights")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    tokenizer = build_tokenizer()
    config = build_config(tokenizer, arguments.width, arguments.layers, arguments.canvas, arguments.attention)
    model = LLaDAModelLM.from_pretrained(arguments.init) if arguments.init else LLaDAModelLM(config)
    model.train()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")

    def save() -> None:
        model.save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)

    objective = Objective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1.0, (s + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / arguments.steps))) + 1e-3,
    )
    stream = rows(
        tokenizer, arguments.messy, arguments.seed, arguments.countdown, arguments.tasks, direct=arguments.direct
    )
    started, window = time.perf_counter(), []
    for step in range(arguments.stop_after or arguments.steps):
        samples = list(itertools.islice(stream, arguments.batch_size))
        canvas, noise = batch(samples, step, arguments.seed, config.eos_token_id, arguments.canvas, model.attention)
        corrupted = corrupt(objective, canvas, noise, config.mask_token_id)
        where = scored_positions(canvas, corrupted)
        ce = ModelReader(model).losses(corrupted.ids, canvas, where)
        loss = row_losses(objective, canvas, corrupted, ce).sum() / denominator(objective, canvas, corrupted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        window.append(loss.item())
        if (step + 1) % 50 == 0:
            elapsed = time.perf_counter() - started
            left = elapsed / (step + 1) * ((arguments.stop_after or arguments.steps) - step - 1)
            print(
                f"step {step + 1:5d}  loss {sum(window) / len(window):.4f}  {elapsed:6.0f} s, {left:6.0f} s left",
                flush=True,
            )
            window.clear()
        if (step + 1) % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    main()
