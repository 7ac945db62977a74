"""Which curves the page shows of each kind of training: a new one is one entry in a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes

from remask.report import figures, rl_figures
from remask.report.runs import Run

Draw = Callable[[Axes, Sequence[Run], Mapping[str, str], str], None]


@dataclass(frozen=True)
class Curve:
    """A curve is one figure of the runs that logged `key`, over optimiser steps.

    A `*` in the key stands for any name: there is a figure for each key that fits and is not in `besides`, with the
    name in place of the `*`s of the other texts. `slug` prefixes the figure's ids, `label` is read out in its place.
    """

    slug: str
    key: str
    name: str
    caption: str
    draw: Draw
    label: str = ""
    aside: bool = False
    """True for a figure that unfolds on a click; nothing is said where no run logged it."""
    besides: frozenset[str] = frozenset()


GRADIENT_NORM = Curve(
    "gradient-norm",
    "grad_norm_mean",
    "Gradient norm",
    "Mean over each logging window (line), up to the window's maximum (band), before clipping.",
    figures.mean_to_max,
)

SFT = (
    Curve(
        "train-loss",
        "loss",
        "Training loss",
        "Each run's logged loss (faint) and its moving average over a tenth of the run. Methods that mask or "
        "normalise differently do not share a scale here; the held-out nll does.",
        figures.trend,
    ),
    Curve(
        "eval-loss",
        "eval_nll",
        "Held-out nll, nats per token",
        "An upper bound of the negative log-likelihood of a response token, on examples kept out of training and "
        "on the same noise for every run and method: the one to compare.",
        figures.points,
        label="Held-out negative log-likelihood",
    ),
    GRADIENT_NORM,
    Curve(
        "effective-tokens",
        "effective_tokens",
        "Effective tokens of a step",
        "(Σw)²/Σw² of the weights that a step's masked tokens have, as a share of these tokens: 1 where all weigh the "
        "same. A step of few effective tokens is a noisy one.",
        figures.trend,
        label="Effective share of the masked tokens",
    ),
)

RL = (
    Curve(
        "reward",
        "reward_mean",
        "Reward",
        "Mean over a rollout's completions (faint) and its moving average over a tenth of the run. These are training "
        "problems, sampled to explore: held-out accuracy is what to compare.",
        figures.trend,
    ),
    Curve(
        "accuracy",
        "eval_*_accuracy",
        "Held-out accuracy, *",
        "Problems kept out of training, at each evaluation. Thick: the mean of the runs that differ in their seed "
        "alone, where all of them were evaluated; thin: each of them. Dashed, where logged: the mean score, which "
        "gives partial credit.",
        rl_figures.accuracy,
    ),
    Curve(
        "eval-reward",
        "eval_reward",
        "Held-out reward",
        "On problems kept out of training, at each evaluation. Thick: the mean of the runs that differ in their seed "
        "alone, where all of them were evaluated; thin: each of them.",
        rl_figures.by_seed,
        aside=True,
    ),
    Curve(
        "reward-of",
        "reward_*",
        "Reward, *",
        "One of the functions that the reward is made of: its mean over a rollout's completions (faint) and the "
        "moving average over a tenth of the run.",
        figures.trend,
        aside=True,
        besides=frozenset({"reward_mean", "reward_std"}),
    ),
    Curve(
        "kl",
        "kl",
        "KL to the reference, nats per token",
        "How far the policy has moved from the reference model, estimated on its own completions: each value faint, "
        "the moving average drawn out.",
        figures.trend,
    ),
    Curve(
        "kl-old",
        "kl_old",
        "KL to the policy that wrote the answers, nats per token",
        "How far the policy has moved since a rollout, estimated on its completions: each value faint, the moving "
        "average drawn out. It is 0 until the first update after a rollout.",
        figures.trend,
        aside=True,
    ),
    Curve(
        "ratio",
        "ratio_mean",
        "Ratio to the sampling policy",
        "Mean of ρ (line) up to the largest (band). It is 1 (dotted) until the first update after a rollout.",
        rl_figures.ratio,
    ),
    Curve(
        "clipped",
        "clip_high",
        "Clipped ratios",
        "Share of ratios cut from above (ρ > 1 + ε, A > 0; line) and from below (ρ < 1 − ε, A < 0; dashed): they "
        "carry no gradient. Moving averages.",
        rl_figures.clipped,
    ),
    Curve(
        "elbo",
        "elbo_per_token",
        "ELBO, nats per token",
        "How likely the policy finds its own completions. Where it rises while diversity falls, the policy is "
        "narrowing down.",
        figures.trend,
    ),
    Curve(
        "zero-spread",
        "zero_spread",
        "Groups of equal rewards",
        "Share of a rollout's groups in which every completion earned the same: too easy, too hard or all alike. They "
        "carry no gradient of the reward.",
        rl_figures.share,
    ),
    Curve(
        "diversity",
        "diversity",
        "Diversity",
        "Share of a group's completions that differ from one another, mean over a rollout's groups.",
        rl_figures.share,
    ),
    Curve(
        "length",
        "completion_tokens",
        "Completion length, tokens",
        "Mean over a rollout's completions.",
        figures.trend,
        aside=True,
    ),
    Curve(
        "ended",
        "ended",
        "Completions that end",
        "Share of a rollout's completions whose text ends before the canvas does.",
        rl_figures.share,
        aside=True,
    ),
    Curve(
        "policy-loss",
        "loss",
        "Policy loss",
        "What is minimised. Its level says little, since advantages are centred on each group: look at the reward.",
        figures.trend,
        aside=True,
    ),
    replace(GRADIENT_NORM, slug="rl-gradient-norm"),
)

PREFERENCE = (
    Curve(
        "preference-loss",
        "loss",
        "Preference loss",
        "Each logged value (faint), its moving average over a tenth of the run, and held-out pairs (dashed).",
        rl_figures.train_and_held_out,
    ),
    Curve(
        "preference-accuracy",
        "accuracy",
        "Preference accuracy",
        "Share of pairs in which the preferred answer has the larger margin over the reference; held-out pairs dashed.",
        rl_figures.train_and_held_out_share,
    ),
    Curve(
        "preference-margin",
        "margin",
        "Margin",
        "How much more the policy than the reference favours the preferred answer, in mean; held-out pairs dashed.",
        rl_figures.train_and_held_out,
    ),
    replace(GRADIENT_NORM, slug="preference-gradient-norm"),
)


def draw_curves(
    table: Sequence[Curve], runs: Sequence[Run], colours: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the figures there are data for, with captions, and one line for each there are none for."""
    drawn, missing = [], []
    for curve in table:
        expanded = expand(curve, runs)
        for one in expanded:
            having = [run for run in runs if run.series(one.key)[0]]
            drawn.append(
                {
                    "name": one.name,
                    "svg": _svg(one, having, colours),
                    "caption": counted(one.caption, having),
                    "aside": one.aside,
                }
            )
        if not expanded and not curve.aside and runs:
            missing.append(f"{curve.name.removesuffix(', *')}: no run logged {curve.key}.")
    return drawn, missing


def expand(curve: Curve, runs: Sequence[Run]) -> list[Curve]:
    """Return the curve for every key that fits the curve's key and of which some run logged a value."""
    if "*" not in curve.key:
        return [curve] if any(run.series(curve.key)[0] for run in runs) else []
    # The slug gets a number and not the name, which may hold what an id must not.
    return [
        replace(curve, slug=f"{curve.slug}-{i}", key=key, name=curve.name.replace("*", name))
        for i, (key, name) in enumerate(fitting(curve.key, runs, curve.besides).items())
    ]


def fitting(pattern: str, runs: Sequence[Run], besides: frozenset[str] = frozenset()) -> dict[str, str]:
    """Return, for every logged quantity that fits the pattern, its key and what the `*` stands for, in the order they
    came up.
    """
    before, after = pattern.split("*")
    shape = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.DOTALL)
    matches = {key: shape.fullmatch(key) for run in runs for key in run.logged if key not in besides}
    return {key: m.group(1) for key, m in matches.items() if m and any(run.series(key)[0] for run in runs)}


def _svg(curve: Curve, runs: Sequence[Run], colours: Mapping[str, str]) -> str:
    label = figures.label_of(f"{curve.label or curve.name} by optimiser step", runs)
    return figures.panel(curve.slug, label, "optimiser step", lambda axes: curve.draw(axes, runs, colours, curve.key))


def draw_masking(runs: Sequence[Run], colours: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the one figure that is not over steps, in the form of `draw_curves`."""
    masked = [run for run in runs if run.deciles and sum(d.tokens for d in run.deciles)]
    if not masked:
        return [], ["Masked share by token entropy: no run holds a masking.json."] if runs else []
    tokens = sum(d.tokens for run in masked for d in run.deciles)
    caption = (
        f"How often a response token was masked in training, by its entropy when the whole response is masked. "
        f"Uniform masking is flat; rated masking visits uncertain tokens more often. Thick lines pool a method's "
        f"runs. {tokens:,} tokens."
    )
    svg = figures.masked_by_entropy(masked, colours)
    return [
        {"name": "Masked share by token entropy", "svg": svg, "caption": counted(caption, masked), "aside": False}
    ], []


def counted(caption: str, runs: Sequence[Run]) -> str:
    """Return the caption with how many runs of each method the figure shows as its last sentence."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.method] = counts.get(run.method, 0) + 1
    return f"{caption} Runs: {', '.join(f'{count} of {method}' for method, count in counts.items())}."
