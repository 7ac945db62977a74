"""How much the estimated margin of a pair varies, by the number of draws and by whose noise the reference has.

    remask dpo --config recipes/tiny/vrpo.yaml --output-dir runs/tiny-vrpo
    python benchmarks/preference_variance.py --policy runs/tiny-vrpo

The reference is the embedded model. Variances are over noise seeds within a pair, averaged over the pairs.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from remask import load
from remask.data.canvas import Fill
from remask.data.collate import Visit
from remask.diffusion.likelihood import elbo_views, token_log_p
from remask.diffusion.noise import Noise
from remask.diffusion.reader import ModelReader
from remask.models.facts import facts
from remask.preference.data import PairBatch, PairCollator, batch_of, build_pairs, load_pairs

PAIRS, SEEDS, DRAWS, BETA = 32, 16, 8, 0.2


def by_draw(model: Any, batch: PairBatch, noise: list[Noise]) -> Tensor:
    """Each draw's log p of each row [K, 2P]."""
    mask_id = model.config.mask_token_id
    views = [elbo_views(batch.canvas, draw, mask_id) for draw in noise]
    return torch.stack([token_log_p(ModelReader(model), batch.canvas, view).sum(-1) for view in views]).double()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    arguments = parser.parse_args()
    policy, tokenizer = load(arguments.policy)
    base, _ = load("tiny")
    known = facts(base, tokenizer)
    source = f"generated:sudoku+countdown:{PAIRS}:9"
    loaded = load_pairs(source, split="validation", prompt_style=known.prompt_style, on_bad_row="error")
    pairs = build_pairs(loaded.examples, tokenizer, max_length=160, over_long="error", on_bad_row="error").rows
    read: dict[str, list[Tensor]] = {"policy": [], "shared": [], "own": []}
    for seed in range(SEEDS):
        collator = PairCollator(Fill.parse(known.fill), known.eos_ids[0], 160, seed, DRAWS, shared_noise=False)
        batch = batch_of(collator([(pair, Visit(i, 0, i)) for i, pair in enumerate(pairs)]), base.device)
        read["policy"].append(by_draw(policy, batch, list(batch.noise)))
        read["shared"].append(by_draw(base, batch, list(batch.noise)))
        read["own"].append(by_draw(base, batch, list(batch.reference_noise)))
    value = {name: torch.stack(draws) for name, draws in read.items()}  # [S, K, 2P]
    print("| K | noise | variance of m | mean of −log σ(m) | its variance |\n|---|---|---:|---:|---:|")
    for draws in (1, 4, 8):
        for noise in ("own", "shared"):
            gain = (value["policy"][:, :draws] - value[noise][:, :draws]).mean(1)
            margin = BETA * (gain[:, :PAIRS] - gain[:, PAIRS:])
            loss = torch.nn.functional.softplus(-margin)
            numbers = (margin.var(0).mean(), loss.mean(), loss.var(0).mean())
            print(f"| {draws} | {noise} | " + " | ".join(f"{number:.3g}" for number in numbers) + " |")


if __name__ == "__main__":
    main()
