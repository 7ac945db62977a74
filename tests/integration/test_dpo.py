"""`remask dpo` end to end on a model of random weights: it learns, resumes exactly, and says clearly what is wrong."""

from __future__ import annotations

import json
import math
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import wait_for_step

from remask import config as configs
from remask import load
from remask.cli import main
from remask.config import CanvasConfig, DpoConfig, LoraConfig, PreferenceChoicesConfig, PreferenceEngineConfig
from remask.errors import UserError
from remask.preference.presets import PRESETS
from remask.preference.run import run_dpo
from started import Started, finished, ranks

MakeDpo = Callable[..., DpoConfig]
Metrics = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]


def write_pairs(path: Path, count: int, seed: int) -> Path:
    """Words of eight letters are to be said in lower case, not in upper case; lengths differ."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(count)]
    rows = [
        {"prompt": f"say {word}", "chosen": word, "rejected": word.upper() + "!" * (i % 3)}
        for i, word in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """18 pairs to train on, and 16 of other words."""
    folder = tmp_path_factory.mktemp("pairs")
    return write_pairs(folder / "train.jsonl", 18, 0), write_pairs(folder / "held_out.jsonl", 16, 1)


@pytest.fixture
def make_dpo(checkpoint: Path, pair_data: tuple[Path, Path], tmp_path: Path) -> MakeDpo:
    """A short run's config: `trainer` and `choices` are dicts over these settings."""

    def make(
        trainer: dict[str, Any] | None = None, choices: dict[str, Any] | None = None, **keywords: Any
    ) -> DpoConfig:
        engine = {
            "learning_rate": 1e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 6,
            "logging_steps": 1,
            "report_to": ("none",),
        }
        values: dict[str, Any] = {
            "model": str(checkpoint),
            "data": str(pair_data[0]),
            "output_dir": str(tmp_path / "run"),
            "canvas": CanvasConfig(max_length=64),
            "choices": PreferenceChoicesConfig(**(choices or {})),
            "trainer": PreferenceEngineConfig(**{**engine, **(trainer or {})}),
        }
        return DpoConfig(**{**values, **keywords})

    return make


def logged(rows: list[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


# ---- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", PRESETS)
def test_every_preset_learns_what_is_preferred(
    objective: str, make_dpo: MakeDpo, pair_data: tuple[Path, Path], metrics: Metrics
) -> None:
    """On held-out pairs, of which half are right by chance."""
    config = make_dpo({"num_train_epochs": 10, "eval_steps": 10}, objective=objective, eval_data=str(pair_data[1]))
    outcome = run_dpo(config, quiet=True)
    assert outcome.finished
    assert outcome.metrics["eval_accuracy"] == 1.0
    rows = metrics(outcome.folder)
    assert all(math.isfinite(loss) for loss in logged(rows, "loss"))
    margins = logged(rows, "eval_margin")
    assert len(margins) == 3
    assert margins[0] < margins[1] < margins[2]


@pytest.mark.parametrize("rank", [0, 4])
def test_nothing_is_preferred_before_the_first_step(rank: int, make_dpo: MakeDpo, metrics: Metrics) -> None:
    """Policy and reference are the same: on shared noise exactly, for a copy of the weights and for adapters off."""

    def first(objective: str, bf16: bool = False, **choices: Any) -> dict[str, Any]:
        config = make_dpo(
            {"bf16": bf16}, {"sft_weight": 0.0, **choices}, objective=objective, lora=LoraConfig(rank=rank)
        )
        config = replace(config, max_steps=2, overwrite=True)
        rows = [row for row in metrics(run_dpo(config, quiet=True).folder) if "loss" in row]
        assert rows[1]["margin"] != 0.0
        return rows[0]

    cases: list[dict[str, Any]] = [{}, {"likelihood": "elbo_coupled"}, {"likelihood": "mean_field", "draws": 1}]
    for choices in [*cases, {"bf16": True}]:
        row = first("vrpo", **choices)
        assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert (row["margin"], row["reward_chosen"], row["reward_rejected"], row["accuracy"]) == (0, 0, 0, 0.5)
    assert abs(first("dpo")["margin"]) > 0.01


def test_what_is_logged_and_recorded(make_dpo: MakeDpo, pair_data: tuple[Path, Path], metrics: Metrics) -> None:
    config = make_dpo(
        {"eval_steps": 3, "logging_steps": 3}, {"beta": 0.1, "sft_weight": 0.5}, eval_data=str(pair_data[1])
    )
    outcome = run_dpo(config, quiet=True)
    rows = metrics(outcome.folder)
    of_pairs = {"loss", "accuracy", "margin", "reward_chosen", "reward_rejected"}
    of_pairs |= {"elbo_per_token_chosen", "elbo_per_token_rejected"}
    engine = {
        "grad_norm_mean",
        "grad_norm_std",
        "grad_norm_max",
        "seconds",
        "tokens_per_second",
        "share_reference",
        "learning_rate",
    }
    steps = [row for row in rows if "loss" in row]
    held_out = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in steps] == [row["step"] for row in held_out] == [3, 6]
    assert all(set(row) == of_pairs | engine | {"step", "epoch"} for row in steps)
    assert all(set(row) == {f"eval_{name}" for name in of_pairs} | {"step", "epoch"} for row in held_out)
    for row in [*steps, *({k.removeprefix("eval_"): v for k, v in row.items()} for row in held_out)]:
        assert row["margin"] == pytest.approx(row["reward_chosen"] - row["reward_rejected"], abs=1e-5)
        assert -10 < row["elbo_per_token_rejected"] < 0
    assert all(0 < row["share_reference"] < 1 for row in steps)
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["training"] == "dpo"
    assert record["objective"] | {"name": "vrpo", "draws": 8, "beta": 0.1, "sft_weight": 0.5} == record["objective"]
    assert record["data"]["rows"] == 18
    assert record["status"] == "finished"
    assert record["metrics"]["eval_accuracy"] == held_out[-1]["eval_accuracy"]


def test_evaluation_is_on_the_same_noise_for_every_objective(
    make_dpo: MakeDpo, pair_data: tuple[Path, Path], tmp_path: Path
) -> None:
    """With nothing learnt (no learning rate), the held-out ELBOs are the same, and the margin is 0."""

    def measured(objective: str, seed: int) -> dict[str, float]:
        config = make_dpo({"learning_rate": 0.0}, objective=objective, seed=seed, eval_data=str(pair_data[1]))
        return run_dpo(replace(config, max_steps=1, output_dir=str(tmp_path / objective)), quiet=True).metrics

    vrpo, naive = measured("vrpo", 0), measured("dpo", 5)
    for name in ("eval_loss", "eval_margin", "eval_elbo_per_token_chosen", "eval_elbo_per_token_rejected"):
        assert vrpo[name] == naive[name]
    assert vrpo["eval_margin"] == 0.0


# ---- what one run promises another ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer",
    [
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2},
        {"backward": "whole"},
        {"dataloader_num_workers": 1},
        {"gradient_checkpointing": True},
    ],
)
def test_how_a_step_is_computed_changes_nothing(
    trainer: dict[str, Any], make_dpo: MakeDpo, tmp_path: Path, metrics: Metrics
) -> None:
    """Micro-batches, draws at once, workers: the same losses, gradients and margins. 18 pairs are 4 steps of 5."""

    def run(name: str, **settings: Any) -> list[dict[str, Any]]:
        config = make_dpo(settings, {"draws": 3}, output_dir=str(tmp_path / name))
        return [row for row in metrics(run_dpo(config, quiet=True).folder) if "loss" in row]

    usual, other = run("usual"), run("other", **trainer)
    for key in ("loss", "grad_norm_mean", "margin", "reward_chosen", "accuracy"):
        assert logged(other, key) == pytest.approx(logged(usual, key), rel=1e-3, abs=1e-5)


def command(config: DpoConfig, path: Path) -> list[str]:
    path.write_text(configs.dump(config))
    return ["dpo", "--config", str(path)]


def test_killed_and_resumed_equals_never_stopped(
    make_dpo: MakeDpo, tmp_path: Path, weights: Weights, metrics: Metrics
) -> None:
    """The reference stays the model that was started from, and the noise goes on where it was."""
    engine = {
        "save_steps": 2,
        "save_total_limit": None,
        "num_train_epochs": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
    }
    config = make_dpo(engine, {"draws": 2}, output_dir=str(tmp_path / "killed"))
    process = Started(*command(config, tmp_path / "dpo.yaml"))
    wait_for_step(process, tmp_path / "killed", 7)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    resumed = run_dpo(replace(config, resume="auto"), quiet=True)
    whole = run_dpo(replace(config, output_dir=str(tmp_path / "whole")), quiet=True)
    a, b = weights(resumed.folder), weights(whole.folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [[row for row in metrics(run.folder) if "loss" in row] for run in (resumed, whole)]
    assert len(rows[0]) == 40
    for key in ("step", "loss", "margin", "elbo_per_token_rejected"):
        assert logged(rows[0], key) == logged(rows[1], key)


@pytest.mark.parametrize(
    ("objective", "likelihood", "attention"),
    [("vrpo", "elbo", None), ("dpo", "elbo_coupled", None), ("vrpo", "elbo", "block:4")],
)
def test_two_ranks_give_one_ranks_losses(
    objective: str,
    likelihood: Any,
    attention: str | None,
    make_dpo: MakeDpo,
    metrics: Metrics,
    pair_data: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    """Pairs are counted over the ranks, and noise does not know of ranks.

    17 pairs do not divide by the 4 or 2 of a step: in the last one of an epoch one rank has none that count. With one
    pair a rank, and answers of two tokens, a view often scores nothing on one rank and is passed over there alone.
    """
    short = likelihood == "elbo_coupled"
    rows = [json.loads(line) for line in pair_data[0].read_text().splitlines()[:17]]
    data = tmp_path / "odd.jsonl"
    data.write_text(
        "\n".join(
            json.dumps({k: v[:5] if k == "prompt" or not short else v[:1] for k, v in row.items()}) for row in rows
        )
    )
    engine = {"per_device_train_batch_size": 2 if short else 4, "eval_steps": 5}
    one = make_dpo(
        engine,
        {"likelihood": likelihood, "draws": 3},
        objective=objective,
        data=str(data),
        eval_data=str(pair_data[1]),
        model_attention=attention,
        output_dir=str(tmp_path / "one"),
    )
    size = one.trainer.per_device_train_batch_size // 2
    two = replace(one, output_dir=str(tmp_path / "two"), trainer=replace(one.trainer, per_device_train_batch_size=size))
    finished(ranks(*command(two, tmp_path / "two.yaml")))
    run_dpo(one, quiet=True)
    for key in ("loss", "grad_norm_mean", "margin", "accuracy", "reward_rejected", "eval_loss", "eval_margin"):
        alone, together = (logged(metrics(tmp_path / name), key) for name in ("one", "two"))
        assert len(alone) == len(together) > 0
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)


def test_lora_trains_only_adapters_against_the_base(make_dpo: MakeDpo, checkpoint: Path, weights: Weights) -> None:
    config = make_dpo(lora=LoraConfig(rank=4, targets=("q_proj", "up_proj")))
    outcome = run_dpo(config, quiet=True)
    assert all("lora_" in name for name in weights(outcome.folder))
    model, tokenizer = load(outcome.folder)
    base, _ = load(checkpoint)
    ids = torch.tensor([tokenizer.encode("say a")])
    assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


# ---- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "vrdo"}, "unknown objective 'vrdo'"),
        ({"data": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"data": "generated:gsm8k:10"}, "gsm8k makes no problems of its own"),
        ({"canvas": CanvasConfig(max_length=8)}, "line 1: the prompt takes 15 tokens of a canvas of 8"),
        ({"canvas": CanvasConfig(max_length=24, fill="sometimes")}, "unknown fill"),
        ({"choices": {"beta": -1.0}}, "choices.beta = -1.0"),
        ({"lora": LoraConfig(rank=4, dropout=0.1)}, "lora.dropout = 0.1"),
        ({"trainer": {"eval_draws": 0}}, "trainer.eval_draws = 0"),
        ({"trainer": {"extra": {"learning_rat": 1}}}, "learning_rat: no such argument"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(change: dict[str, Any], said: str, make_dpo: MakeDpo) -> None:
    config = make_dpo(**change)
    with pytest.raises(UserError, match=said):
        run_dpo(config, quiet=True)
    assert not Path(config.output_dir).exists()


def test_bad_pairs_stop_the_run_or_are_counted(
    make_dpo: MakeDpo, pair_data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    same, lacking = {"prompt": "p", "chosen": "x", "rejected": "x"}, {"prompt": "p", "chosen": "x"}
    bad.write_text(pair_data[0].read_text() + json.dumps(same) + "\n" + json.dumps(lacking) + "\n")
    config = make_dpo(data=str(bad))
    with pytest.raises(UserError, match=r"bad\.jsonl, line 19: chosen and rejected are the same"):
        run_dpo(config, quiet=True)
    outcome = run_dpo(replace(config, on_bad_row="skip", max_steps=1), quiet=True)
    assert "2 of 20 rows skipped" in capsys.readouterr().err
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["data"]["rows"] == 18
    assert [line.partition(": ")[0] for line in record["data"]["skipped"]] == [f"{bad}, line 19", f"{bad}, line 20"]


def test_a_nan_loss_names_its_pairs(
    make_dpo: MakeDpo, pair_data: tuple[Path, Path], checkpoint: Path, tmp_path: Path
) -> None:
    """The embedding of one letter is NaN: only the pair that holds it is to blame."""
    lines = pair_data[0].read_text().splitlines()
    lines[5] = json.dumps({"prompt": "say z", "chosen": "a", "rejected": "A"})
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(lines))
    sick = tmp_path / "sick"
    model, tokenizer = load(checkpoint)
    model.save_pretrained(sick)
    tokenizer.save_pretrained(sick)
    tensors = load_file(sick / "model.safetensors")
    (letter,) = tokenizer.encode("z")
    tensors["model.transformer.wte.weight"][letter] = torch.nan
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not finite at step \d+, on .*train\.jsonl, line 6;"):
        run_dpo(make_dpo(model=str(sick), data=str(data)), quiet=True)


def test_a_resumed_run_may_not_change_its_objective(make_dpo: MakeDpo) -> None:
    config = make_dpo({"save_steps": 2})
    run_dpo(config, quiet=True)
    changed = replace(config, resume="auto", choices=PreferenceChoicesConfig(beta=0.3))
    with pytest.raises(UserError, match=r"choices\.beta was None, is 0\.3"):
        run_dpo(changed, quiet=True)


def test_the_command(make_dpo: MakeDpo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On generated pairs of the embedded tasks; then it is finished, and a mistake is one line."""
    config = make_dpo({"per_device_train_batch_size": 2}, {"draws": 1}, data="generated:countdown:4", max_steps=1)
    config = replace(config, canvas=CanvasConfig(max_length=128), eval_data="generated:countdown:2")
    path = tmp_path / "dpo.yaml"
    path.write_text(configs.dump(config))
    assert main(["dpo", "--config", str(path)]) == 0
    said = capsys.readouterr().out
    assert "vrpo finished in" in said
    assert "eval_accuracy" in said
    assert main(["dpo", "--config", str(path), "--resume", "auto"]) == 0
    assert "already finished" in capsys.readouterr().err
    assert main(["dpo", "--config", str(path), "--choices.draws", "0"]) == 2
    assert capsys.readouterr().err == "remask dpo: choices.draws = 0; give 1 or more\n"
