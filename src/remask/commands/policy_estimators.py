"""`remask estimators --policy`: which policy objective has the gradient of the sampler, and with how much noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from remask.choices import Split
from remask.config import EstimatorsConfig
from remask.errors import UserError

SAMPLERS_OWN = "sampler's own"
OBJECTIVES = ("espo", "token-elbo", "diffu-grpo", "coupled-grpo", "spg", "justgrpo", "tracerl", "d2", "cj-grpo")
"""What is compared where no objective is named."""
TASKS, PROMPTS = "sudoku", 8
LEAST_ROLLOUTS = 4
PLAIN: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "guidance": 0.0,
    "threshold": None,
    "at_least": 1,
    "edit_threshold": None,
    "edit_steps": 16,
    "suppress_eos": False,
    "stop_last": False,
}
"""Decoding under which a token is drawn with the probability that the model gives it, whatever a checkpoint says."""


def check(config: EstimatorsConfig) -> None:
    """Raises UserError for a setting of `--policy` that nothing can be measured with. Loads no weights."""
    from remask.rl.presets import resolve

    if config.rollouts < LEAST_ROLLOUTS:
        raise UserError(f"rollouts = {config.rollouts}", mend=f"give {LEAST_ROLLOUTS} or more")
    if config.temperature != 1:
        raise UserError(
            f"temperature = {config.temperature}: objectives score answers at temperature 1, and the sampler's own "
            "gradient is of the probabilities that tokens were drawn with",
            mend="leave temperature out with --policy",
        )
    for name, least in (("moved", 0.0), ("step", 0.0)):
        if not least <= getattr(config, name) < float("inf"):
            raise UserError(f"{name} = {getattr(config, name)}", mend="give a length above 0, or 0 to leave it out")
    if config.moved and config.step:
        raise UserError("both moved and step are given", mend="a step is from the weights that wrote: leave one out")
    for name in named(config):
        resolve(name)


def named(config: EstimatorsConfig) -> list[str]:
    """Return the names of the objectives, each once."""
    given = [name.strip() for text in config.policy or () for name in text.split(",")]
    return list(dict.fromkeys(name for name in given if name)) or list(OBJECTIVES)


def measure(config: EstimatorsConfig, model: Any, tokenizer: Any, known: Any, tasks: Sequence[Any]) -> dict[str, Any]:
    """Return the record of what was measured of every objective."""
    from remask.analysis.policy_gradients import SAMPLER, held_against
    from remask.diffusion.blocks import attention_of
    from remask.rl.presets import resolve
    from remask.rl.settings import in_blocks_of, tell_what_the_gradient_lacks
    from remask.sampling.generate import decoding_for

    mask_id = known.mask_id
    _refuse_scores_of_another_sampler(model)
    decoding = replace(decoding_for(model), reveal=config.reveal, **PLAIN)
    tell_what_the_gradient_lacks(SAMPLER, decoding)
    maker = _maker(config, model, tokenizer, known, tasks, decoding, "train")
    objectives = {name: in_blocks_of(resolve(name), decoding, attention_of(model)) for name in named(config)}
    rollouts, forwards = _sampled(config, model, maker, "rollouts")
    rewards = _of_rewards(rollouts)
    if rewards["without_spread"] == 1:
        raise UserError(
            "no group of answers had rewards that differ: no objective has a gradient",
            mend="name easier tasks, or give more answers to each problem (--completions)",
        )
    with TemporaryDirectory() as folder:
        setting = {"maker": maker, "mask_id": mask_id, "batch_size": config.batch_size, "folder": folder}
        gathered = _gathered(config, model, objectives, rollouts, setting)
    own, answers = gathered[SAMPLERS_OWN], maker.order.per_rollout * config.completions
    found = [
        held_against(name, each, own, answers, paired=each is own or not config.moved)
        for name, each in gathered.items()
    ]
    record = {
        "decoding": decoding.described(),
        "answers": answers,
        "sampling_forwards": forwards / config.rollouts / answers,
        **rewards,
        "objectives": [asdict(each) for each in found],
    }
    if config.step:
        fresh = _maker(config, model, tokenizer, known, tasks, decoding, "validation")
        means = {name: each.mean for name, each in gathered.items()}
        along = {each.name: each.along for each in found}
        record["gains"] = _gains(config, model, fresh, means, along)
    return record


def _refuse_scores_of_another_sampler(model: Any) -> None:
    """Raises UserError for a model whose answers are scored with other probabilities than they are drawn with."""
    from remask.diffusion.attention import BlockCausal
    from remask.diffusion.blocks import attention_of

    attention = attention_of(model)
    if isinstance(attention, BlockCausal) and not attention.causal and getattr(model.config, "shift", False):
        raise UserError(
            "in this shifted block model a block's first token is drawn after the finished block and scored after the "
            "noised one (docs/theory.md, 8), so that no objective has the sampler's gradient",
            mend="measure a model without a shift, or one converted with --attention block:N:causal",
        )


def _sampled(config: EstimatorsConfig, model: Any, maker: Any, label: str, first: int = 0) -> tuple[list[Any], int]:
    """Rollouts from the weights as they are, and the forward passes of a row that they took."""
    from remask.analysis.policy_gradients import Meter, Sampled
    from remask.progress import progress

    meter, rollouts = Meter(), []
    with progress(label, config.rollouts) as tick, meter.of(model):
        for number in range(config.rollouts):
            rollouts.append(Sampled(first + number, *maker.answered(first + number)))
            tick(number + 1)
    return rollouts, meter.rows


def _gathered(
    config: EstimatorsConfig, model: Any, objectives: dict[str, Any], rollouts: Sequence[Any], setting: dict[str, Any]
) -> dict[str, Any]:
    """All gradients: of the same answers; or where the policy is to have moved, the sampler's own of answers that were
    written after the move, and the others' of answers from before it.
    """
    from remask.analysis.policy_gradients import SAMPLER, FirstUpdate, LaterUpdate
    from remask.analysis.policy_step import downhill, moved

    own = {SAMPLERS_OWN: FirstUpdate(model, SAMPLER, **setting)}
    if not config.moved:
        others = {name: FirstUpdate(model, objective, **setting) for name, objective in objectives.items()}
        return _all_of(model, own | others, rollouts)
    maker, count = setting["maker"], config.rollouts
    between, _ = _sampled(config, model, maker, "rollouts to move by", count)
    move = downhill(_all_of(model, own, between)[SAMPLERS_OWN].mean, config.moved)
    with moved(model, move):
        after, _ = _sampled(config, model, maker, "rollouts after the move", 2 * count)
        gathered = _all_of(model, own, after)
    later = {name: LaterUpdate(model, each, move=move, **setting) for name, each in objectives.items()}
    return gathered | _all_of(model, later, rollouts)


def _all_of(model: Any, updates: Any, rollouts: Sequence[Any]) -> dict[str, Any]:
    """Gradients of all rollouts. How far they are is told in forward passes, once the first rollout has told what each
    takes.
    """
    from remask.analysis.policy_gradients import one_by_one
    from remask.progress import progress

    steps: Iterator[tuple[str, Any, int]] = one_by_one(model, updates, rollouts)
    gathered, each = {}, 0
    with progress("first gradients", len(updates)) as tick:
        for number in range(len(updates)):
            name, own, forwards = next(steps)
            gathered[name] = own
            each += forwards
            tick(number + 1, name)
    done = each
    with progress("gradients: forward passes", each * len(rollouts)) as tick:
        for name, _, forwards in steps:
            done += forwards
            tick(done, name)
    return gathered


def _gains(
    config: EstimatorsConfig, model: Any, maker: Any, means: dict[str, Any], along: dict[str, float]
) -> list[dict[str, Any]]:
    """The reward gained by a step along each mean, on as many fresh problems as gradients were taken of."""
    from remask.analysis.policy_step import gains
    from remask.progress import progress

    total, done = config.rollouts * (1 + len(means)), 0
    with progress("steps: rollouts", total) as tick:

        def answered() -> list[Any]:
            nonlocal done
            groups = []
            for number in range(config.rollouts):
                groups += maker.answered(number)[0]
                done += 1
                tick(done)
            return groups

        return [asdict(gain) for gain in gains(model, means, along, config.step, answered)]


def _maker(
    config: EstimatorsConfig, model: Any, tokenizer: Any, known: Any, tasks: Sequence[Any], decoding: Any, split: Split
) -> Any:
    """Rollouts as RL makes them: each problem is asked in one rollout, and its answers have the task's dense score."""
    from remask.config import RlConfig
    from remask.rl.grading import Grader
    from remask.rl.prompts import PromptOrder, columns_of, task_prompts
    from remask.rl.rewards import parse_rewards
    from remask.rl.rollout import RolloutMaker
    from remask.rl.rollout_rows import Layout
    from remask.sampling.engine import LocalEngine
    from remask.tasks.benchmark import Asking, Benchmark

    each = config.prompts or 0
    count = -(-each * config.rollouts * (3 if config.moved else 1) // len(tasks))
    benchmarks = [Benchmark(task, task.generate(count, split=split, seed=config.seed), task.name) for task in tasks]
    prompts = [p for b in benchmarks for p in task_prompts(b, tokenizer, Asking(known.prompt_style))]
    rewards = parse_rewards(RlConfig().rewards.functions, None, canvas=decoding.max_new_tokens)
    return RolloutMaker(
        LocalEngine(tokenizer, config.batch_size, model=model),
        Grader(rewards, "error", columns_of(prompts)),
        Layout(known.mask_id, known.stop_ids, "canvas"),
        prompts,
        PromptOrder(len(prompts), per_rollout=each, seed=config.seed),
        config.completions,
        decoding,
        "leave_one_out",
        config.seed,
        config.batch_size,
    )


def _of_rewards(rollouts: Sequence[Any]) -> dict[str, float]:
    """The answers' mean reward, and the share of groups whose rewards are all the same."""
    groups = [group for rollout in rollouts for group in rollout.groups]
    return {
        "reward": mean(total for group in groups for total in group.total),
        "without_spread": mean(len(set(group.total)) == 1 for group in groups),
    }
