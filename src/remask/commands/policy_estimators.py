"""`remask estimators --policy`: which policy objective has the gradient of the sampler, and with how much noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from tempfile import TemporaryDirectory
from typing import Any

from remask.config import EstimatorsConfig
from remask.errors import UserError

SAMPLERS_OWN = "sampler's own"
OBJECTIVES = ("espo", "token-elbo", "diffu-grpo", "coupled-grpo", "spg", "justgrpo", "tracerl", "d2", "cj-grpo")
"""What is compared where no objective is named."""
TASKS, PROMPTS = "sudoku", 8
LEAST_ROLLOUTS = 4


def check(config: EstimatorsConfig) -> None:
    """Raises UserError for a setting of `--policy` that nothing can be measured with. Loads no weights."""
    from remask.rl.presets import resolve

    if config.rollouts < LEAST_ROLLOUTS:
        raise UserError(f"rollouts = {config.rollouts}", mend=f"give {LEAST_ROLLOUTS} or more")
    if config.temperature != 1:
        raise UserError(
            f"temperature = {config.temperature}: objectives score answers at temperature 1, and the sampler's own "
            "gradient is that of the probabilities that tokens were drawn with",
            mend="leave temperature out with --policy",
        )
    for name in named(config):
        resolve(name)


def named(config: EstimatorsConfig) -> list[str]:
    """Return the names of the objectives, each once."""
    given = [name.strip() for text in config.policy or () for name in text.split(",")]
    return list(dict.fromkeys(name for name in given if name)) or list(OBJECTIVES)


def measure(config: EstimatorsConfig, model: Any, tokenizer: Any, known: Any, tasks: Sequence[Any]) -> dict[str, Any]:
    """Return the record of what was measured of every objective."""
    from remask.analysis.policy_gradients import SAMPLER, FirstUpdate, Meter, Sampled, held_against, one_by_one
    from remask.diffusion.blocks import attention_of
    from remask.progress import progress
    from remask.rl.presets import resolve
    from remask.rl.settings import in_blocks_of, tell_what_the_gradient_lacks
    from remask.sampling.generate import decoding_for

    decoding = decoding_for(model, temperature=1.0, reveal=config.reveal, top_k=None, top_p=None, guidance=0.0)
    maker = _maker(config, model, tokenizer, known, tasks, decoding)
    tell_what_the_gradient_lacks(SAMPLER, decoding)
    objectives = {SAMPLERS_OWN: SAMPLER} | {name: resolve(name) for name in named(config)}
    meter, rollouts = Meter(), []
    with progress("rollouts", config.rollouts) as tick, meter.of(model):
        for number in range(config.rollouts):
            rollouts.append(Sampled(number, *maker.answered(number)))
            tick(number + 1)
    answers = maker.order.per_rollout * config.completions
    with TemporaryDirectory() as folder:
        updates = {
            name: FirstUpdate(
                model,
                in_blocks_of(objective, decoding, attention_of(model)),
                maker,
                mask_id=known.mask_id,
                batch_size=config.batch_size,
                folder=folder,
            )
            for name, objective in objectives.items()
        }
        gathered = _gathered(model, updates, rollouts, one_by_one)
    found = [held_against(name, own, gathered[SAMPLERS_OWN], answers) for name, own in gathered.items()]
    return {
        "decoding": decoding.described(),
        "answers": answers,
        "sampling_forwards": meter.rows / config.rollouts / answers,
        **_of_rewards(rollouts),
        "objectives": [asdict(each) for each in found],
    }


def _gathered(model: Any, updates: Any, rollouts: Sequence[Any], one_by_one: Any) -> dict[str, Any]:
    """All gradients. How far they are is told in forward passes, once the first rollout has told what each takes."""
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
        tick(done)
        for name, _, forwards in steps:
            done += forwards
            tick(done, name)
    return gathered


def _maker(
    config: EstimatorsConfig, model: Any, tokenizer: Any, known: Any, tasks: Sequence[Any], decoding: Any
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
    count = -(-each * config.rollouts // len(tasks))
    benchmarks = [Benchmark(task, task.generate(count, split="train", seed=config.seed), task.name) for task in tasks]
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
    from statistics import mean

    totals = [total for rollout in rollouts for group in rollout.groups for total in group.total]
    same = [len(set(group.total)) == 1 for rollout in rollouts for group in rollout.groups]
    return {"reward": mean(totals), "without_spread": mean(same)}


def tables(record: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield (title, table, note) of what was measured."""
    from remask.commands.estimator_tables import as_table

    settings, found = record["settings"], record["policy"]
    rows = []
    for m in found["objectives"]:
        figures = (_figure(m["cosine"]), _figure(m["relative"], spread=False), _figure(m["compute"]))
        shown = ("1", figures[1], "1") if m["name"] == SAMPLERS_OWN else figures
        rows.append([m["name"], f"{m['forwards']:.0f}", f"{m['seconds']:.2f}", *shown, _figure(m["one_rollout"])])
    yield (
        f"Policy gradients: {settings['rollouts']} rollouts of {found['answers']} answers, reveal "
        f"{settings['reveal']}, mean reward {found['reward']:.3f}",
        as_table(["objective", "forwards", "s", "cosine", "noise", "compute", "one rollout"], rows),
        "forwards: of a row, for one answer's gradient (with its backward pass one counts as 3). s: for a rollout's. "
        "cosine: of the objective's mean with the sampler's own mean, both without their noise. noise: variance over "
        "norm² of a rollout's gradient. compute: forwards for a gradient as exact as one of the sampler's own, of its. "
        "one rollout: the cosine of one rollout's gradient with the sampler's own mean. Brackets: 95 %, over rollouts. "
        f"–: lost in noise. {_target(settings['reveal'])}",
    )


def _target(reveal: str) -> str:
    if reveal in ("random", "left_to_right"):
        return (
            f"Under reveal {reveal} the sampler's own is an unbiased estimate of the gradient of the expected reward."
        )
    return f"Under reveal {reveal} the sampler's own lacks the part through the choice of places (docs/theory.md, 12)."


def _figure(figure: dict[str, Any], *, spread: bool = True) -> str:
    from remask.commands.estimator_tables import interval, number

    digits = 2 if figure["value"] is None or abs(figure["value"]) < 10 else 1
    return number(figure["value"], digits) + (interval(figure["low"], figure["high"], digits) if spread else "")
