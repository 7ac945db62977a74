"""`remask rl` end to end on a model of random weights: it learns, resumes exactly, and says clearly what is wrong."""

from __future__ import annotations

import json
import math
import signal
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from remask import config as configs
from remask.config import (
    DecodingConfig,
    HeldOutConfig,
    LoraConfig,
    PolicyChoicesConfig,
    PolicyEngineConfig,
    ReferenceConfig,
    RewardsConfig,
    RlConfig,
    RolloutConfig,
)
from remask.errors import UserError
from remask.rl.presets import PRESETS
from remask.rl.run import run_rl
from remask.training.checkpoints import checkpoints, seal
from started import Started, finished, ranks

MakeRl = Callable[..., RlConfig]
Metrics = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]

OWN = """
    import time

    def later(prompts, completions, state=[], **columns):
        state.append(1)
        if len(state) > 2:
            time.sleep(1000)
        return [float(len(set(text))) for text in completions]

    def letters(prompts, completions, **columns):
        return [sum(c.isascii() and c.isalpha() for c in text) / 8 for text in completions]

    def breaks(prompts, completions, **columns):
        raise RuntimeError("out of paper")

    def gaps(prompts, completions, **columns):
        return [None if i % 3 == 0 else float("nan") if i % 3 == 1 else len(set(t)) for i, t in enumerate(completions)]

    def full(prompts, completions, **columns):
        if len(completions) < 16:
            raise ValueError(len(completions))
        return [1.0] * len(completions)

    def nothing(prompts, completions, **columns):
        return [None] * len(completions)

    def gold(completions, gold):
        return [1.0] * len(completions)

    def zero(prompts, completions, **columns):
        return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(textwrap.dedent(OWN))
    return path


@pytest.fixture
def make_rl(checkpoint: Path, own: Path, tmp_path: Path) -> MakeRl:
    """A short run's config: `rollout`, `trainer` and `choices` are dicts over these settings."""

    def make(
        rollout: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        choices: dict[str, Any] | None = None,
        reward: str = "letters",
        **keywords: Any,
    ) -> RlConfig:
        decoding = DecodingConfig(max_new_tokens=8, steps=4, temperature=1.0)
        engine = {"learning_rate": 3e-3, "logging_steps": 1, "report_to": ("none",), "max_grad_norm": 1.0}
        values: dict[str, Any] = {
            "model": str(checkpoint),
            "tasks": "countdown",
            "problems": 6,
            "max_steps": 6,
            "output_dir": str(tmp_path / "run"),
            "choices": PolicyChoicesConfig(**(choices or {})),
            "rewards": RewardsConfig(functions=(f"{own}:{reward}" if reward in OWN else reward,)),
            "rollout": RolloutConfig(**{"prompts": 4, "completions": 4, "decoding": decoding, **(rollout or {})}),
            "held_out": HeldOutConfig(tasks="none"),
            "trainer": PolicyEngineConfig(**{**engine, **(trainer or {})}),
        }
        return RlConfig(**{**values, **keywords})

    return make


def logged(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


# ---- learning ------------------------------------------------------------------------------------------------------


CLIMBING: dict[str, dict[str, Any]] = {
    "justgrpo": {"steps_together": 4},  # cheaper
    "ebpo": {"draws": 2},  # cheaper
    "sepo": {"pick": 3},  # cheaper
    "trajectory-balance": {"reward_scale": 30.0, "steps_together": 2},  # from which follows at which reward it settles
    "trafl": {"reward_scale": 3.0},
}


@pytest.mark.parametrize("objective", PRESETS)
def test_a_simple_reward_climbs_under_every_preset(objective: str, make_rl: MakeRl, metrics: Metrics) -> None:
    """The share of letters among 8 bytes: about a quarter at first, which each preset at least doubles in six rollouts.
    In the first of a rollout's two updates nothing has moved: ratios are 1, exactly, and in the very first the KL is 0.
    """
    config = make_rl(
        {"prompts": 6, "completions": 8, "inner_updates": 2},
        {"learning_rate": 1.5e-2, "per_device_train_batch_size": 48},
        CLIMBING.get(objective),
        objective=objective,
        max_steps=12,
    )
    rows = metrics(run_rl(config, quiet=True).folder)
    reward, ratios = logged(rows, "reward_mean"), logged(rows, "ratio_max")
    assert len(reward) == config.max_steps / 2
    assert set(ratios[::2]) <= {1.0}
    assert set(logged(rows, "kl")[:1]) <= {0.0}
    assert sum(reward[-2:]) > 1.8 * sum(reward[:2])


def test_answers_that_are_not_written_as_they_are_scored_are_told_of(
    make_rl: MakeRl, capsys: pytest.CaptureFixture[str]
) -> None:
    """JustGRPO scores from left to right."""
    for reveal, steps in (("confidence", 8), ("left_to_right", 4), ("left_to_right", 8)):
        decoding = DecodingConfig(max_new_tokens=8, steps=steps, temperature=1.0, reveal=reveal)
        config = make_rl({"decoding": decoding}, objective="justgrpo", max_steps=1, overwrite=True)
        run_rl(config, quiet=True)
        told = "set rollout.decoding.reveal to left_to_right" in capsys.readouterr().err
        assert told == ((reveal, steps) != ("left_to_right", 8))


def test_what_is_logged_and_kept(make_rl: MakeRl, metrics: Metrics) -> None:
    """At the first inner update nothing has moved: ratios are 1 and the KL 0, exactly. At the next they are not."""
    config = make_rl({"inner_updates": 2, "keep": 3}, held_out=HeldOutConfig(n=5, decoding=DecodingConfig(steps=2)))
    config = replace(config, trainer=replace(config.trainer, eval_steps=2))
    outcome = run_rl(config, quiet=True)
    rows = metrics(outcome.folder)
    steps = [row for row in rows if "loss" in row]
    assert [row["ratio_mean"] for row in steps[::2]] == [1.0, 1.0, 1.0]
    assert [row["ratio_max"] for row in steps[::2]] == [1.0, 1.0, 1.0]
    assert steps[0]["kl"] == 0.0
    assert all(row["ratio_max"] > 1 for row in steps[1::2])
    assert steps[2]["kl"] > 0
    for name in (
        "reward_mean",
        "reward_std",
        "zero_spread",
        "diversity",
        "advantage_std",
        "completion_tokens",
        "ended",
    ):
        assert len(logged(rows, name)) == 3, name
    for row in steps:
        shares = [row.get(f"share_{part}", 0.0) for part in ("sampling", "grading", "scoring", "update")]
        assert sum(shares) == pytest.approx(1.0)
    assert len(logged(rows, "eval_countdown_accuracy")) == 3
    assert "eval_reward" in outcome.metrics
    kept = [json.loads(line) for line in (outcome.folder / "completions.jsonl").read_text().splitlines()]
    assert [(group["rollout"], group["step"]) for group in kept] == [(0, 1)] * 3 + [(1, 3)] * 3 + [(2, 5)] * 3
    first = kept[0]["completions"]
    assert len(first) == 4
    assert sum(c["advantage"] for c in first) == pytest.approx(0, abs=1e-4)
    assert len({c["text"] for c in first}) > 1
    record = json.loads((outcome.folder / "run.json").read_text())
    assert (record["training"], record["status"], record["objective"]["level"]) == ("rl", "finished", "sequence")


@pytest.mark.parametrize("objective", ["espo", "token-elbo", "coupled-grpo"])
def test_the_gradient_taken_draw_by_draw_is_the_whole_one(objective: str, make_rl: MakeRl, weights: Weights) -> None:
    """Also where the policy has moved since the rollout (three passes), over several micro-batches."""
    ends = []
    for backward in ("draw", "whole"):
        config = make_rl(
            {"inner_updates": 3},
            {"backward": backward, "per_device_train_batch_size": 6, "learning_rate": 1e-3},
            {"draws": 3},
            objective=objective,
            max_steps=3,
            output_dir=f"{make_rl().output_dir}-{backward}",
        )
        ends.append(weights(run_rl(config, quiet=True).folder))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=2e-5), name


@pytest.mark.parametrize("objective", ["stabledrl", "trajectory-balance"])
def test_groups_are_compared_whole_however_they_are_taken(objective: str, make_rl: MakeRl, metrics: Metrics) -> None:
    """Groups of four answers in micro-batches of 3 and of 16, after the policy has moved."""
    found = []
    for size in (3, 16):
        config = make_rl(
            {"inner_updates": 3},
            {"per_device_train_batch_size": size},
            objective=objective,
            max_steps=3,
            output_dir=f"{make_rl().output_dir}-{size}",
        )
        rows = metrics(run_rl(config, quiet=True).folder)
        found.append([value for key in ("loss", "grad_norm_mean") for value in logged(rows, key)])
    assert len(set(found[0])) == 6
    assert found[0] == pytest.approx(found[1], rel=2e-4, abs=1e-6)


def test_minibatches_use_every_answer_once(make_rl: MakeRl, metrics: Metrics) -> None:
    config = make_rl({"inner_updates": 2, "minibatches": 4}, max_steps=16)
    steps = [row for row in metrics(run_rl(config, quiet=True).folder) if "loss" in row]
    assert len(steps) == 16
    assert len(logged(steps, "reward_mean")) == 2
    assert steps[0]["ratio_max"] == 1.0
    assert steps[1]["ratio_max"] != 1.0  # of the same pass, but the policy has moved
    assert steps[8]["ratio_max"] == 1.0


@pytest.mark.parametrize("fresh", [True, False])
def test_inner_updates_on_fresh_or_kept_noise(fresh: bool, make_rl: MakeRl, metrics: Metrics) -> None:
    config = make_rl({"inner_updates": 3}, {"learning_rate": 0.0}, {"fresh_noise": fresh}, max_steps=3)
    value = logged(metrics(run_rl(config, quiet=True).folder), "elbo_per_token")
    assert (len(set(value)) == 1) != fresh


# ---- the reference -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [0, 4])
def test_the_reference_stays_or_follows(lora: int, make_rl: MakeRl, metrics: Metrics) -> None:
    """With a sync after every step the KL of each rollout's first update is 0 again; else it grows."""
    kl = {}
    for every in (0, 1):
        config = make_rl(
            trainer={"learning_rate": 1e-2},
            lora=LoraConfig(rank=lora, alpha=8),
            reference=ReferenceConfig(sync_every=every),
            output_dir=f"{make_rl().output_dir}-{every}",
        )
        kl[every] = logged(metrics(run_rl(config, quiet=True).folder), "kl")
    assert kl[0][0] == kl[1][0] == 0
    assert all(value > 0 for value in kl[0][1:])
    assert kl[1] == [0.0] * 6


def test_without_kl_no_reference_is_kept(make_rl: MakeRl, metrics: Metrics) -> None:
    rows = metrics(run_rl(make_rl(objective="wd1"), quiet=True).folder)
    assert not logged(rows, "kl")
    assert not logged(rows, "ratio_mean")


# ---- stopping and several processes --------------------------------------------------------------------------------


def command(config: RlConfig, folder: Path) -> list[str]:
    path = folder / "config.yaml"
    path.write_text(configs.dump(config))
    return ["rl", "--config", str(path)]


CASES: dict[str, dict[str, Any]] = {
    "in the middle of a rollout": {"rollout": {"inner_updates": 4, "minibatches": 2}},
    "reference synchronised": {"reference": ReferenceConfig(sync_every=3), "rollout": {"inner_updates": 2}},
    "groups compared": {"objective": "stabledrl", "rollout": {"inner_updates": 4}},
    "kept noise": {"choices": {"fresh_noise": False}, "rollout": {"inner_updates": 4}},
    "adapters": {"lora": LoraConfig(rank=4), "objective": "diffu-grpo", "rollout": {"inner_updates": 2}},
    "blocks": {"model_attention": "block:4", "rollout": {"inner_updates": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_equals_never_stopped(
    case: str, make_rl: MakeRl, tmp_path: Path, weights: Weights, metrics: Metrics
) -> None:
    """Same weights, and every rollout used exactly once: none lost, none done twice."""
    config = make_rl(
        trainer={"save_steps": 3, "save_total_limit": None},
        max_steps=12,
        output_dir=str(tmp_path / "killed"),
        **CASES[case],
    )
    process = Started(*command(config, tmp_path))
    while process.poll() is None and len(checkpoints(tmp_path / "killed")) < 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("*model.safetensors"))

    resumed = run_rl(replace(config, resume="auto"), quiet=True)
    whole = run_rl(replace(config, output_dir=str(tmp_path / "whole")), quiet=True)
    a, b = weights(resumed.folder), weights(whole.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("metrics.jsonl", "completions.jsonl"):
        lines = [
            [json.loads(line) for line in (run.folder / name).read_text().splitlines()] for run in (resumed, whole)
        ]
        found = [
            [(row["step"], row.get("loss"), row.get("rollout"), row.get("completions")) for row in r] for r in lines
        ]
        assert [row for row in found[0] if row[1] or row[3]] == [row for row in found[1] if row[1] or row[3]]


def test_a_run_that_stopped_after_its_last_step_takes_none_more(
    make_rl: MakeRl, weights: Weights, untimed: Metrics
) -> None:
    config = make_rl(trainer={"save_steps": 2}, max_steps=4)
    folder = run_rl(config, quiet=True).folder
    end, rows, kept = weights(folder), untimed(folder), (folder / "completions.jsonl").read_text()
    (folder / "model.safetensors").unlink()
    again = run_rl(replace(config, resume="auto"), quiet=True)
    assert again.finished
    assert all(torch.equal(value, end[name]) for name, value in weights(folder).items())
    assert untimed(folder) == rows
    assert (folder / "completions.jsonl").read_text() == kept


def test_a_missing_rollout_is_refused_before_the_run_is_touched(make_rl: MakeRl) -> None:
    config = make_rl(trainer={"save_steps": 2}, max_steps=4)
    folder = run_rl(config, quiet=True).folder
    record = (folder / "run.json").read_text()
    newest = checkpoints(folder)[-1]
    (newest / "rollout-0-of-1.safetensors").rename(newest / "rollout-0-of-2.safetensors")
    seal(newest)
    with pytest.raises(UserError, match="the rollouts of 1 processes; 2 wrote it"):
        run_rl(replace(config, resume="auto", max_steps=6), quiet=True)
    assert (folder / "run.json").read_text() == record


@pytest.mark.parametrize("attention", [None, "block:4"])
def test_two_processes_give_one_processes_losses(
    attention: str | None, make_rl: MakeRl, tmp_path: Path, metrics: Metrics
) -> None:
    """And what two began one can go on with, in the middle of a rollout. The draws of a block model share what is read
    of the clean rows.
    """
    one = make_rl(
        {"inner_updates": 2},
        {"per_device_train_batch_size": 16, "eval_steps": 2, "save_steps": 3, "save_total_limit": None},
        held_out=HeldOutConfig(n=5, decoding=DecodingConfig(max_new_tokens=8, steps=2)),
        model_attention=attention,
        output_dir=str(tmp_path / "one"),
    )
    two = replace(one, output_dir=str(tmp_path / "two"), trainer=replace(one.trainer, per_device_train_batch_size=8))
    finished(ranks(*command(two, tmp_path)))
    run_rl(one, quiet=True)
    keys = ("loss", "reward_mean", "grad_norm_mean", "ratio_mean", "ratio_max", "kl", "elbo_per_token", "eval_reward")
    for resume in (None, str(tmp_path / "two" / "checkpoint-3")):
        if resume:
            run_rl(replace(one, output_dir=str(tmp_path / "two"), resume=resume), quiet=True)
        for key in keys:
            alone, together = (logged(metrics(tmp_path / name), key) for name in ("one", "two"))
            assert len(alone) == len(together) > 0, (resume, key)
            assert together == pytest.approx(alone, rel=2e-4, abs=1e-7), (resume, key)


@pytest.mark.parametrize("objective", ["stabledrl", "trajectory-balance"])
def test_groups_that_two_processes_share_are_compared_whole(
    objective: str, make_rl: MakeRl, tmp_path: Path, metrics: Metrics
) -> None:
    """Three groups of four answers, six of them on each process."""
    one = make_rl(
        {"prompts": 3, "inner_updates": 3},
        {"per_device_train_batch_size": 12},
        objective=objective,
        max_steps=3,
        output_dir=str(tmp_path / "one"),
    )
    two = replace(one, output_dir=str(tmp_path / "two"), trainer=replace(one.trainer, per_device_train_batch_size=3))
    finished(ranks(*command(two, tmp_path)))
    run_rl(one, quiet=True)
    for key in ("loss", "grad_norm_mean", "elbo_per_token"):
        alone, together = (logged(metrics(tmp_path / name), key) for name in ("one", "two"))
        assert len(alone) == len(together) == 3, key
        assert together == pytest.approx(alone, rel=2e-4, abs=1e-6), key


# ---- rewards that misbehave ----------------------------------------------------------------------------------------


def test_a_reward_that_is_always_the_same_moves_nothing(make_rl: MakeRl, weights: Weights, metrics: Metrics) -> None:
    """Every group has zero spread: with the policy at its reference, the KL has no gradient either."""
    outcome = run_rl(make_rl(reward="zero"), quiet=True)
    rows = metrics(outcome.folder)
    assert logged(rows, "zero_spread") == [1.0] * 6
    assert logged(rows, "loss") == [0.0] * 6
    start, end = weights(Path(make_rl().model)), weights(outcome.folder)
    assert all(torch.equal(start[name], end[name]) for name in start)


def test_a_reward_that_can_be_hacked_is_hacked_and_shows_it(make_rl: MakeRl, metrics: Metrics, own: Path) -> None:
    """A reward for form alone climbs while the task's own score, logged beside it, does not."""
    trainer = {"learning_rate": 1e-2, "per_device_train_batch_size": 48}
    config = make_rl({"prompts": 6, "completions": 8}, trainer, max_steps=20)
    config = replace(config, rewards=RewardsConfig(functions=(f"{own}:letters", "task"), weights=(1.0, 0.0)))
    rows = metrics(run_rl(config, quiet=True).folder)
    form, score = logged(rows, f"reward_{own}:letters"), logged(rows, "reward_task")
    assert sum(form[-5:]) / 5 > 1.5 * sum(form[:3]) / 3
    assert max(score) < 0.05
    assert logged(rows, "reward_mean") == pytest.approx(form)


def test_a_reward_that_raises_stops_the_run_and_says_so(make_rl: MakeRl, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"in rollout 0.*raised RuntimeError: out of paper"):
        run_rl(make_rl(reward="breaks"), quiet=True)
    record = json.loads((Path(make_rl().output_dir) / "run.json").read_text())
    assert record["status"] == "failed"


@pytest.mark.parametrize("steps", [5, 2])
def test_a_run_without_any_signal_says_so(steps: int, make_rl: MakeRl, capsys: pytest.CaptureFixture[str]) -> None:
    """Once after five rollouts, or at the end of a shorter run."""
    run_rl(make_rl(reward="zero", max_steps=steps), quiet=True)
    said = [line for line in capsys.readouterr().err.splitlines() if "nothing is learned" in line]
    assert len(said) == 1
    assert f"no group of the last {steps} rollouts had rewards that differ" in said[0]
    run_rl(make_rl(max_steps=steps, overwrite=True), quiet=True)
    assert "nothing is learned" not in capsys.readouterr().err


def test_a_reward_that_hangs_stops_the_run_and_keeps_its_checkpoint(make_rl: MakeRl) -> None:
    config = make_rl(reward="later", trainer={"save_steps": 1})
    config = replace(config, rewards=replace(config.rewards, timeout=1.0))
    with pytest.raises(UserError, match=r"in rollout 2, the reward function did not return within 1 s"):
        run_rl(config, quiet=True)
    assert [path.name for path in checkpoints(Path(config.output_dir))] == ["checkpoint-1", "checkpoint-2"]


def test_grading_is_shown_and_ctrl_c_works_meanwhile(make_rl: MakeRl, tmp_path: Path) -> None:
    """The first one says what it waits for; the second one does not wait, names the checkpoint, and leaves nothing."""
    config = make_rl(reward="later", trainer={"save_steps": 1})
    process = Started(*command(config, tmp_path))
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "grading" in line:
            break
    process.send_signal(signal.SIGINT)
    while "press Ctrl-C once more" not in said[-1]:
        said.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert f"the newest checkpoint is {config.output_dir}/checkpoint-2. Go on with: remask rl --config" in rest
    assert "Traceback" not in rest
    assert not (Path(config.output_dir) / ".remask.lock").exists()
    assert json.loads((Path(config.output_dir) / "run.json").read_text())["status"] == "stopped"


def test_a_reward_that_raises_in_an_evaluation_says_where(make_rl: MakeRl) -> None:
    """Sixteen answers come in a rollout, three in an evaluation."""
    held_out = HeldOutConfig(n=3, decoding=DecodingConfig(steps=2))
    config = make_rl(trainer={"eval_steps": 1}, reward="full", held_out=held_out)
    with pytest.raises(UserError, match=r"in the evaluation, the reward function raised ValueError"):
        run_rl(config, quiet=True)


def test_rollouts_without_any_reward_are_told(make_rl: MakeRl, capsys: pytest.CaptureFixture[str]) -> None:
    run_rl(make_rl(reward="nothing", max_steps=1), quiet=True)
    assert "rollout 0: no answer has a reward" in capsys.readouterr().err


def test_none_and_nan_are_left_out_and_counted(
    make_rl: MakeRl, metrics: Metrics, capsys: pytest.CaptureFixture[str], own: Path
) -> None:
    with pytest.raises(UserError, match="gave nan"):
        run_rl(make_rl(reward="gaps"), quiet=True)
    rewards = RewardsConfig(functions=(f"{own}:gaps",), on_bad="skip")
    outcome = run_rl(make_rl(rewards=rewards, overwrite=True), quiet=True)
    rows = metrics(outcome.folder)
    assert all(value == pytest.approx(11 / 16) for value in logged(rows, "missing"))
    assert all(math.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert "rollout 0: " in capsys.readouterr().err


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"completions": 1}}, r"rollout.completions = 1.*2 or more"),
        ({"rollout": {"prompts": 3, "completions": 3, "minibatches": 2}}, "9 answers does not divide into 2"),
        ({"rollout": {"decoding": DecodingConfig(temperature=0.0)}}, "all answers of a group would be the same"),
        ({"rollout": {"decoding": DecodingConfig(top_k=1)}}, "top_k = 1: all answers of a group would be the same"),
        ({"rollout": {"max_prompt_tokens": 5}}, r"6 of 6 prompts are longer than 5 tokens.*over_long"),
        ({"rollout": {"max_prompt_tokens": 5, "over_long": "drop"}}, "all 6 prompts are longer than 5 tokens"),
        ({"rollout": {"decoding": DecodingConfig(max_new_tokens=250, steps=10)}}, "longer than 6 tokens"),
        ({"rollout": {"decoding": DecodingConfig(max_new_tokens=256)}}, "canvas of 256 leaves no room for a prompt"),
        ({"held_out": HeldOutConfig(decoding=DecodingConfig(max_new_tokens=250))}, "shorten held_out.decoding"),
        ({"reward": "gold"}, "takes gold, which no row has"),
        ({"data": "prompts.jsonl", "reward": "task"}, "rows of data belong to no task"),
        ({"data": "prompts.jsonl", "prompt_template": "{question}"}, "prompt_template is for the problems of tasks"),
        ({"lora": LoraConfig(rank=4, dropout=0.1)}, "dropout"),
        ({"objective": "grpoo"}, "unknown objective 'grpoo'"),
        ({"choices": {"kl_weight": -1.0}}, "kl_weight = -1.0"),
        ({"tasks": "humaneval"}, "allow-code-execution"),
        ({"tasks": "chess"}, "unknown task 'chess'"),
        ({"reward": "lenght"}, "did you mean 'length'"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"quantization": "4bit"}, "train adapters"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, make_rl: MakeRl
) -> None:
    with pytest.raises(UserError, match=message):
        run_rl(make_rl(**changes), quiet=True)
    assert not Path(make_rl().output_dir).exists()


def test_a_missing_sandbox_is_said_at_once(make_rl: MakeRl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="bubblewrap"):
        run_rl(make_rl(tasks="humaneval", allow_code_execution=True), quiet=True)


def test_prompts_of_ones_own(make_rl: MakeRl, tmp_path: Path, own: Path, metrics: Metrics) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {i}", "gold": i} for i in range(5)]
    rows += [{"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}], "gold": 9}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own_file = tmp_path / "gold.py"
    own_file.write_text("def gold(prompts, completions, gold):\n    return [float(g is not None) for g in gold]\n")
    config = make_rl(data=str(path), rewards=RewardsConfig(functions=(f"{own_file}:gold", "length")), max_steps=2)
    rows_logged = metrics(run_rl(config, quiet=True).folder)
    assert logged(rows_logged, f"reward_{own_file}:gold") == [1.0, 1.0]
    first = replace(config, problems=1, output_dir=f"{config.output_dir}-first", max_steps=1)
    assert json.loads((run_rl(first, quiet=True).folder / "run.json").read_text())["data"]["prompts"] == 1
    held_out = HeldOutConfig(tasks="countdown", n=2)
    with pytest.raises(UserError, match="takes gold, which no held-out problem has"):
        run_rl(replace(config, held_out=held_out, overwrite=True), quiet=True)
    path.write_text(json.dumps({"gold": "hi"}) + "\n")
    with pytest.raises(UserError, match=r"prompts.jsonl, line 1: the row has no prompt"):
        run_rl(replace(config, overwrite=True), quiet=True)


def test_a_file_that_names_other_settings_of_decoding_leaves_the_temperature(
    make_rl: MakeRl, tmp_path: Path, metrics: Metrics
) -> None:
    """Rollouts are sampled and held-out problems answered greedily, whatever else a config's file says of decoding."""
    path = tmp_path / "config.yaml"
    config = make_rl(held_out=HeldOutConfig(n=2), max_steps=1)
    values = yaml.safe_load(configs.dump(config))
    values["rollout"]["decoding"] = {"max_new_tokens": 8, "steps": 4}
    values["held_out"]["decoding"] = {"max_new_tokens": 8, "steps": 2}
    path.write_text(yaml.safe_dump(values))
    outcome = run_rl(configs.load(RlConfig, path), quiet=True)
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["rollout"]["decoding"]["temperature"] == 1
    assert logged(metrics(outcome.folder), "diversity") > [0.25]


def test_settings_without_effect_are_told(make_rl: MakeRl, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_rl(
        trainer={"eval_steps": 2, "extra": {"eval_on_start": True}},
        objective="wd1",
        reference=ReferenceConfig(sync_every=2),
        max_steps=1,
    )
    run_rl(config, quiet=True)
    said = capsys.readouterr().err
    assert "trainer.eval_steps has no effect" in said
    assert "reference.sync_every has no effect" in said


@pytest.mark.parametrize(("anchor", "name", "other"), [("old", "kl_old", "kl"), ("reference", "kl", "kl_old")])
def test_the_kl_is_logged_under_the_name_of_what_it_is_to(
    anchor: str, name: str, other: str, make_rl: MakeRl, metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three rollouts with two updates each. The KL to the policy that wrote the answers is 0, exactly, in each
    rollout's first update and above it in the second; that to the reference is 0 in the run's first update only.
    """
    config = make_rl({"inner_updates": 2}, choices={"kl_anchor": anchor}, objective="tracerl-blocks")
    rows = [row for row in metrics(run_rl(config, quiet=True).folder) if "loss" in row]
    found = logged(rows, name)
    assert len(found) == config.max_steps
    assert found[0] == 0
    assert all(value > 0 for value in found[1::2])
    assert {value == 0 for value in found[2::2]} == {anchor == "old"}
    assert not logged(rows, other)
    assert capsys.readouterr().err.count("leaves what this choice adds out of the gradient") == 1


def test_a_loss_without_a_kl_logs_none(make_rl: MakeRl, metrics: Metrics) -> None:
    config = make_rl(choices={"kl_weight": 0.0}, objective="tracerl-blocks", max_steps=1)
    rows = metrics(run_rl(config, quiet=True).folder)
    assert logged(rows, "ratio_mean")
    assert not logged(rows, "kl_old")


def test_a_resumed_run_keeps_its_settings(make_rl: MakeRl) -> None:
    config = make_rl(trainer={"save_steps": 2}, max_steps=4)
    run_rl(config, quiet=True)
    (Path(config.output_dir) / "run.json").unlink()
    with pytest.raises(UserError, match="cannot resume with other settings: objective"):
        run_rl(replace(config, objective="wd1", resume="auto"), quiet=True)
    assert run_rl(replace(config, max_steps=6, resume="auto"), quiet=True).finished
