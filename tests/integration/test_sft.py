"""Fine-tuning runs: every preset, the engine's settings, and what one run promises another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from remask import load
from remask.config import CanvasConfig, ChoicesConfig, LoraConfig, ProbeConfig, ReportConfig, SftConfig
from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.report.html import write_report
from remask.sft import diagnostics
from remask.sft.diagnostics import Extent, extent_of
from remask.sft.presets import PRESETS, resolve
from remask.sft.run import build, run_sft
from remask.sft.trainer import SftTrainer
from remask.training.checkpoints import find, step_of

MakeConfig = Callable[..., SftConfig]
Metrics = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]


@pytest.mark.parametrize("objective", [name for name, preset in PRESETS.items() if preset.masks])
def test_every_preset_of_masks_trains_and_lowers_the_held_out_nll(
    objective: str, make_config: MakeConfig, data: Path, metrics: Metrics
) -> None:
    config = make_config(
        {"num_train_epochs": 2, "eval_steps": 6, "learning_rate": 3e-3}, objective=objective, eval_data=str(data)
    )
    outcome = run_sft(config, quiet=True)
    assert outcome.finished
    rows = metrics(outcome.folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out = [row["eval_nll"] for row in rows if "eval_nll" in row]
    assert len(losses) == 12
    assert all(math.isfinite(loss) for loss in losses)
    assert len(held_out) == 2
    assert held_out[1] < held_out[0]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    make_config: MakeConfig, tmp_path: Path, weights: Weights
) -> None:
    def train(name: str, seed: int) -> dict[str, torch.Tensor]:
        return weights(run_sft(make_config(output_dir=str(tmp_path / name), seed=seed), quiet=True).folder)

    first, again, other = train("a", 0), train("b", 0), train("c", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("normaliser", ["response", "masked", "sequence"])
def test_accumulated_micro_batches_give_the_loss_of_the_whole_batch(
    normaliser: str, make_config: MakeConfig, tmp_path: Path, metrics: Metrics
) -> None:
    """N counts over accumulation steps: 2 × 2 rows give what 4 rows give (fill fixed, so the canvases are the same)."""

    def train(name: str, size: int, steps: int) -> list[float]:
        config = make_config(
            {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps},
            output_dir=str(tmp_path / name),
            objective="gift",
            choices=ChoicesConfig(normaliser=normaliser),  # type: ignore[arg-type]
            canvas=CanvasConfig(max_length=64, fill="multiple:16"),
        )
        return [row["loss"] for row in metrics(run_sft(config, quiet=True).folder) if "loss" in row]

    whole, parts = train("whole", 4, 1), train("parts", 2, 2)
    assert len(whole) == len(parts) == 12
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("objective", ["gift", "lift3", "rho1", "sft"])
def test_parts_of_a_batch_give_the_loss_of_the_whole(
    objective: str, make_config: MakeConfig, data: Path, tmp_path: Path, metrics: Metrics
) -> None:
    """Of at most 40 tokens, beside all at once: the same losses, gradients and held-out losses, less padding."""

    def train(name: str, tokens: int) -> list[dict[str, Any]]:
        config = make_config(
            {"per_device_train_batch_size": 4, "micro_batch_tokens": tokens, "eval_steps": 6},
            output_dir=str(tmp_path / name),
            objective=objective,
            eval_data=str(data),
            canvas=CanvasConfig(max_length=64, fill="none"),
        )
        return metrics(run_sft(config, quiet=True).folder)

    whole, parts = train("whole", 0), train("parts", 40)
    for key in ("loss", "grad_norm_mean", "eval_nll", "masked_fraction", "rate_mean", "effective_tokens"):
        assert [r[key] for r in parts if key in r] == pytest.approx([r[key] for r in whole if key in r], rel=1e-3)
    assert max(r["padding"] for r in parts if "padding" in r) < max(r["padding"] for r in whole if "padding" in r)


def test_effective_tokens_are_all_where_all_weigh_the_same(
    make_config: MakeConfig, tmp_path: Path, metrics: Metrics
) -> None:
    """A row alone has one t under sft: every masked token weighs 1/t. CART weighs each
    by what stands around it.
    """

    def logged(objective: str) -> list[float]:
        config = make_config(
            {"per_device_train_batch_size": 1}, output_dir=str(tmp_path / objective), objective=objective, max_steps=6
        )
        return [r["effective_tokens"] for r in metrics(run_sft(config, quiet=True).folder) if "effective_tokens" in r]

    plain, rated = logged("sft"), logged("cart")
    assert plain == pytest.approx([1.0] * len(plain))
    assert rated
    assert all(0 < share <= 1 for share in rated)
    assert min(rated) < 0.999


def test_gift_with_constant_beta_is_sft_bit_for_bit(make_config: MakeConfig, tmp_path: Path, weights: Weights) -> None:
    plain = run_sft(make_config(output_dir=str(tmp_path / "sft")), quiet=True)
    constant = run_sft(
        make_config(
            output_dir=str(tmp_path / "gift"),
            objective="gift",
            choices=ChoicesConfig(signal="constant", normaliser="response"),
        ),
        quiet=True,
    )
    a, b = weights(plain.folder), weights(constant.folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_saved_run_loads_by_its_folder(make_config: MakeConfig, checkpoint: Path) -> None:
    outcome = run_sft(make_config(), quiet=True)
    model, tokenizer = load(outcome.folder)
    before, _ = load(checkpoint)
    ids = torch.tensor([tokenizer.encode("say a")])
    assert not torch.equal(model(input_ids=ids).logits, before(input_ids=ids).logits)
    stored, original = load_file(outcome.folder / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert set(stored) == set(original)
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"]["rows"] == 24
    assert sum(d["tokens"] for d in json.loads((outcome.folder / "masking.json").read_text())["deciles"]) > 0


def test_right_tokens_are_counted_by_class_before_and_after(make_config: MakeConfig, data: Path) -> None:
    def table(**keywords: Any) -> dict[str, Any]:
        folder = run_sft(make_config(overwrite=True, **keywords), quiet=True).folder
        return json.loads((folder / "class_accuracy.json").read_text())

    trained = table()
    assert not trained["held_out"]
    assert sum(trained["tokens"]["word"]) == sum(3 + i % 7 for i in range(24))
    assert trained["before"] != trained["after"]
    for part in ("before", "after"):
        for name, tokens in trained["tokens"].items():
            assert len(tokens) == 24
            assert all(right <= n for right, n in zip(trained[part][name], tokens, strict=True))
    # The same rows on the same noise, whatever the method.
    held_out = table(eval_data=str(data), objective="gift", seed=1)
    assert held_out["held_out"]
    assert held_out["before"] == trained["before"]


def test_what_is_read_for_the_report_is_a_share_of_the_training(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """24 rows, four a step: 24·5 passes of a row for masks and 24·4 for classes, against three for a row trained on."""

    def extent(asked: Any, **keywords: Any) -> Extent:
        config = make_config(**keywords)
        trainer, _, _ = build(config, Path(config.output_dir), resolve(config.objective), SftTrainer)
        return extent_of(trainer, asked, quiet=False)

    assert extent("auto") == extent("on") == Extent(24, 24)  # a model so small takes no time
    assert extent("off") == Extent(0, 0)
    monkeypatch.setattr(diagnostics, "FREE", 0.0)
    assert extent("auto", max_steps=361) == Extent(24, 24)  # 0.05 · 3 · 4 · 361 = 216.6
    assert extent("auto", max_steps=181) == Extent(12, 12)  # 108.6 of 216
    assert capsys.readouterr().err == ""
    assert extent("auto", max_steps=100) == Extent(0, 0)  # 60 of 216: 6 rows tell nothing of classes
    assert "left out: they would outlast so short a training (--report.diagnostics on" in capsys.readouterr().err
    monkeypatch.setattr(diagnostics, "LARGE", 1000)
    assert extent("auto", max_steps=361) == Extent(0, 0)
    assert "left out: the model has 0.0 B weights" in capsys.readouterr().err
    assert extent("on", max_steps=1) == Extent(24, 24)


def test_a_run_made_longer_reads_the_rows_it_read_before(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnostics, "FREE", 0.0)
    config = make_config({"save_steps": 181}, max_steps=181)
    path = run_sft(config, quiet=True).folder / "class_accuracy.json"
    short = json.loads(path.read_text())
    assert {len(counts) for counts in short["tokens"].values()} == {12}
    run_sft(replace(config, max_steps=361, resume="auto"), quiet=True)
    longer = json.loads(path.read_text())
    assert (longer["tokens"], longer["before"]) == (short["tokens"], short["before"])
    assert longer["after"] != short["after"]


def test_nothing_is_read_for_the_report_where_it_is_off(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """24 rows, four at a time: an entropy of each, and both halves of each before training and after."""
    calls: list[bool] = []
    call = ModelReader.call
    monkeypatch.setattr(ModelReader, "call", lambda *a, **k: calls.append(torch.is_grad_enabled()) or call(*a, **k))
    passes, pages = {}, {}
    for asked in ("on", "off"):
        config = make_config(report=ReportConfig(diagnostics=asked), output_dir=str(tmp_path / asked), max_steps=2)
        calls.clear()
        folder = run_sft(config, quiet=True).folder
        passes[asked] = len(calls)
        pages[asked] = write_report([folder], tmp_path / f"{asked}.html").read_text()
    assert not [*folder.glob("masking.json"), *folder.glob("class_accuracy.json")]
    assert passes["off"] == 2
    assert passes["on"] == 2 + 6 + 2 * 6 * 2
    why = "Which tokens 1 run masked, and got right before and after: report.diagnostics is off."
    assert (why in pages["off"], why in pages["on"]) == (True, False)


def test_a_tokenizer_that_cannot_be_classed_is_passed_over(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def classes_of(*_: Any, **__: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr("remask.sft.class_accuracy.classes_of", classes_of)
    outcome = run_sft(make_config(max_steps=1), quiet=True)
    assert outcome.finished
    assert not (outcome.folder / "class_accuracy.json").exists()


def test_lora_trains_only_adapters_and_loads_by_the_runs_folder(
    make_config: MakeConfig, checkpoint: Path, weights: Weights
) -> None:
    config = make_config(lora=LoraConfig(rank=4, targets=("q_proj", "up_proj"), dropout=0.1), objective="rho1")
    outcome = run_sft(config, quiet=True)
    assert all("lora_" in name for name in weights(outcome.folder))
    model, tokenizer = load(outcome.folder)
    base, _ = load(checkpoint)
    ids = torch.tensor([tokenizer.encode("say a")])
    assert not torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_runs_card_says_what_it_is(
    rank: int, make_config: MakeConfig, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no hub is asked for anything."""
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *_: pytest.fail("looked up"))
    config = make_config({"save_steps": 2}, model="tiny-direct", eval_data=str(data), lora=LoraConfig(rank=rank))
    config = replace(config, max_steps=2)
    outcome = run_sft(config, quiet=True)
    card = (outcome.folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    tags = ["remask", "diffusion", "sft", *(["peft", "lora"] if rank else [])]
    assert head == {"library_name": "remask", "pipeline_tag": "text-generation", "tags": tags}
    assert ("adapters (LoRA, rank 2) for `tiny-direct`" in card) == bool(rank)
    assert f"| data | {data} |\n| rows | 24 |" in card
    assert f"| eval_nll | {outcome.metrics['eval_nll']:.4g} |" in card
    assert yaml.safe_load(card.partition("```yaml")[2].partition("```")[0])["lora"]["rank"] == rank
    assert "More Information Needed" not in card
    assert not list(outcome.folder.glob("checkpoint-*/README.md"))
    load(outcome.folder)
    (outcome.folder / "README.md").write_text("my own words")
    run_sft(replace(config, max_steps=3, resume="auto"), quiet=True)
    assert (outcome.folder / "README.md").read_text() == "my own words"


def test_a_lora_target_that_matches_nothing_is_an_error(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="wqkv match no layer"):
        run_sft(make_config(lora=LoraConfig(rank=4, targets=("q_proj", "wqkv"))), quiet=True)


def test_bf16_and_gradient_checkpointing_run(make_config: MakeConfig, metrics: Metrics, tmp_path: Path) -> None:
    def losses(**trainer: Any) -> list[float]:
        config = make_config(trainer, output_dir=str(tmp_path / "-".join(["run", *trainer])), objective="gift")
        return [row["loss"] for row in metrics(run_sft(config, quiet=True).folder) if "loss" in row]

    plain = losses()
    assert losses(gradient_checkpointing=True) == pytest.approx(plain, rel=1e-5)
    mixed = losses(bf16=True)
    assert mixed != plain
    assert mixed == pytest.approx(plain, rel=0.1)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"learning_rate": math.inf}, "trainer.learning_rate = inf"),
        ({"learning_rate": math.nan}, "trainer.learning_rate = nan"),
        ({"warmup_steps": math.nan}, "trainer.warmup_steps = nan"),
        ({"num_train_epochs": math.nan}, "trainer.num_train_epochs = nan"),
        ({"extra": {"adam_beta2": 1.5}}, "trainer: Invalid beta"),
        ({"extra": {"adam_beta2": "x"}}, "trainer: "),
        ({"extra": {"label_smoothing_factor": 0.5}}, "label_smoothing_factor: has no effect"),
    ],
)
def test_numbers_that_no_run_can_have_are_found_before_its_folder_is_made(
    engine: dict[str, Any], message: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(engine, output_dir=str(tmp_path / "never"), max_steps=2)
    with pytest.raises(UserError, match=message):
        run_sft(config, quiet=True)
    assert not (tmp_path / "never").exists()


def test_a_tracker_gets_the_metrics(make_config: MakeConfig) -> None:
    outcome = run_sft(make_config({"report_to": ("tensorboard",)}), quiet=True)
    assert list(outcome.folder.rglob("events.out.tfevents*"))


def test_frozen_probe_is_cached_and_a_stale_cache_is_refused(
    make_config: MakeConfig, checkpoint: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "beta.safetensors"
    frozen = make_config(objective="gift", probe=ProbeConfig(policy="frozen", cache=str(cache)))
    run_sft(frozen, quiet=True)
    written = cache.read_bytes()
    run_sft(replace(frozen, output_dir=str(tmp_path / "again"), objective="gift-raw"), quiet=True)
    assert cache.read_bytes() == written  # the signal is the same for every transform

    with pytest.raises(UserError, match="another data"):
        run_sft(replace(frozen, output_dir=str(tmp_path / "c"), canvas=CanvasConfig(max_length=60)), quiet=True)
    with pytest.raises(UserError, match="another signal"):
        run_sft(replace(frozen, output_dir=str(tmp_path / "d"), objective="gift-nll"), quiet=True)
    other = tmp_path / "other"
    model, tokenizer = load(checkpoint)
    with torch.no_grad():
        model.lm_head.weight += 0.1
    model.save_pretrained(other)
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="another model"):
        run_sft(replace(frozen, output_dir=str(tmp_path / "e"), model=str(other)), quiet=True)
    cache.write_bytes(written[:100])
    with pytest.raises(UserError, match="not a probe cache"):
        run_sft(replace(frozen, output_dir=str(tmp_path / "f")), quiet=True)
    assert not [file for name in "cdef" for file in (tmp_path / name).glob("*")]
    with pytest.raises(UserError, match="not a probe cache"):
        run_sft(replace(frozen, overwrite=True), quiet=True)
    assert (Path(frozen.output_dir) / "model.safetensors").exists()  # what it would have replaced


def test_overwriting_a_run_reads_its_own_probe_anew(make_config: MakeConfig, tmp_path: Path) -> None:
    """What the run wrote goes with it, named or not: with other data it would not fit."""
    cache = Path(make_config().output_dir) / "probe" / "start.safetensors"
    first = make_config(objective="gift", probe=ProbeConfig(policy="frozen", cache=str(cache)), max_steps=1)
    run_sft(first, quiet=True)
    before = cache.read_bytes()
    run_sft(replace(first, overwrite=True, canvas=CanvasConfig(max_length=60)), quiet=True)
    assert cache.read_bytes() != before


def test_a_refreshed_probe_follows_the_model(make_config: MakeConfig) -> None:
    config = make_config({"learning_rate": 1e-2}, objective="gift", probe=ProbeConfig(policy="frozen", every=1))
    folder = run_sft(config, quiet=True).folder / "probe"
    start, refreshed = load_file(folder / "start.safetensors"), load_file(folder / "epoch-0001.safetensors")
    assert start["signal"].shape == refreshed["signal"].shape
    assert not torch.equal(start["signal"], refreshed["signal"])


def test_a_nan_loss_stops_names_the_rows_and_keeps_the_checkpoint(
    make_config: MakeConfig, checkpoint: Path, tmp_path: Path
) -> None:
    """The embedding of one letter is NaN: only the row that holds it is to blame."""
    sick = tmp_path / "sick"
    model, tokenizer = load(checkpoint)
    model.save_pretrained(sick)
    tokenizer.save_pretrained(sick)
    tensors = load_file(sick / "model.safetensors")
    (letter,) = tokenizer.encode("x")
    tensors["model.transformer.wte.weight"][letter] = torch.nan
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    config = make_config({"save_steps": 1, "save_total_limit": None}, model=str(sick))
    with pytest.raises(UserError, match=r"not finite at step \d+, on .*rows\.jsonl, line 24") as error:
        run_sft(config, quiet=True)
    assert "line 1;" not in str(error.value)
    step = int(str(error.value).partition("at step ")[2].partition(",")[0])
    assert step > 1
    good = find(Path(config.output_dir), "auto")
    assert good is not None
    assert step_of(good) == step - 1
    assert json.loads((Path(config.output_dir) / "run.json").read_text())["status"] == "failed"


def test_a_run_that_diverges_in_its_last_step_fails(make_config: MakeConfig, data: Path) -> None:
    """No gradient comes after that step, but the evaluation does. What is logged stays JSON: null is no number."""
    config = make_config({"learning_rate": 1e19}, max_steps=1, eval_data=str(data))
    with pytest.raises(UserError, match=r"no finite eval_loss, eval_nll after the last step.*lower"):
        run_sft(config, quiet=True)
    folder = Path(config.output_dir)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").open()]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line] == [None]


def test_a_diverging_run_stops_before_nan_reaches_the_weights(make_config: MakeConfig) -> None:
    config = make_config({"learning_rate": 1e30, "max_grad_norm": 0.0, "save_steps": 1, "save_total_limit": None})
    with pytest.raises(UserError, match="not finite"):
        run_sft(config, quiet=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "gitf"}, "unknown objective 'gitf'"),
        ({"model": "no/such/folder"}, "no such model folder"),
        ({"data": "missing.jsonl"}, "missing.jsonl: no such file"),
        ({"canvas": CanvasConfig(max_length=8)}, "line 1: the prompt takes"),
        ({"canvas": CanvasConfig(max_length=24, fill="sometimes")}, "unknown fill"),
        ({"choices": ChoicesConfig(alpha=2.0)}, "alpha = 2.0"),
        ({"trainer": {"extra": {"learning_rat": 1}}}, "learning_rat: no such argument"),
        ({"trainer": {"lr_scheduler_type": "wavy"}}, "wavy"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(
    change: dict[str, Any], said: str, make_config: MakeConfig
) -> None:
    config = make_config(**change)
    with pytest.raises(UserError, match=said):
        run_sft(config, quiet=True)
    assert not Path(config.output_dir).exists()


def test_a_finished_run_is_not_overwritten_unasked(make_config: MakeConfig) -> None:
    config = make_config()
    run_sft(config, quiet=True)
    with pytest.raises(UserError, match="holds a run already"):
        run_sft(config, quiet=True)
    assert run_sft(replace(config, resume="auto"), quiet=True).metrics == {}
    assert run_sft(replace(config, overwrite=True), quiet=True).finished


def test_rows_beyond_the_models_positions_are_told_of(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(model="tiny-direct", canvas=CanvasConfig(max_length=700, fill="max"), max_steps=1)
    run_sft(config, quiet=True)
    assert "rows of up to 700 tokens go beyond the" in capsys.readouterr().err
