"""DiffusionGemma through the commands: writing, training, adapters, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import gemma
from peft import PeftModel
from safetensors.torch import load_file
from transformers import DiffusionGemmaForBlockDiffusion as Published

import remask
from remask import config as configs
from remask.cli import main
from remask.config import CanvasConfig, LoraConfig, SftConfig, TrainerConfig
from remask.errors import UserError
from remask.models.load import load
from remask.models.lora import add_adapter, load_adapter, merge
from remask.sft.presets import resolve
from remask.sft.run import build, run_sft
from remask.sft.trainer import SftTrainer
from remask.sft.uniform import UniformTrainer
from started import finished, ranks

pytestmark = pytest.mark.slow  # each of them trains, or walks a model

TRAINER: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "report_to": (),
    "eval_draws": 1,
}
DATA = "generated:sudoku:16"


@pytest.fixture(scope="session")
def gemma_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    gemma(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def config_of(folder: Path, output: Path, trainer: dict[str, Any] | None = None, **changes: Any) -> SftConfig:
    settings: dict[str, Any] = {
        "model": str(folder),
        "data": DATA,
        "objective": "diffusion-gemma",
        "output_dir": str(output),
        "device": "cpu",
        "max_steps": 4,
        "trainer": TrainerConfig(**{**TRAINER, **(trainer or {})}),
    }
    return SftConfig(**{**settings, **changes})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in metrics(folder) if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


# ---- writing -----------------------------------------------------------------------------------------------------


def test_generate(gemma_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoding = ["--decoding.max-new-tokens", "20", "--decoding.steps", "9", "--decoding.entropy-bound", "0.5"]
    assert main(["generate", "--model", str(gemma_folder), "--json", *decoding, "countdown 4 5 9 -> 9", "a"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [len(record["token_ids"]) for record in said] == [20, 20]
    assert said[0]["stats"]["decoding"]["entropy_bound"] == 0.5
    assert said[0]["stats"]["decoding"]["confidence_threshold"] == 0.005
    assert main(["generate", "--model", str(gemma_folder), "--stream", "--json", *decoding, "a"]) == 0
    model, tokenizer = load(gemma_folder)
    again = remask.generate(model, tokenizer, ["a"], row_seeds=[1], max_new_tokens=20, steps=9, entropy_bound=0.5)
    assert again.token_ids[0] == said[1]["token_ids"]
    row = again.history[0]
    assert row.block == [place // 8 for place in range(20)]
    assert all(earlier.written_at < earlier.until for earlier in row.earlier)


def test_eval(gemma_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    decoding = ["--decoding.max-new-tokens", "16", "--decoding.steps", "4"]
    arguments = ["--tasks", "sudoku", "--n", "3", "--json", str(path), *decoding]
    assert main(["eval", "--model", str(gemma_folder), *arguments]) == 0
    said = json.loads(path.read_text())
    assert said["decoding"]["t_max"] == 0.8


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--likelihood", "--data", "ROWS"],
        ["rl", "--output-dir", "OUT"],
        ["dpo", "--output-dir", "OUT", "--data", "PAIRS"],
        ["estimators"],
        ["inspect"],
        ["generate", "--infill", "a<|mask|>b"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_masks_is_refused(
    arguments: list[str], gemma_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    named = {"ROWS": "rows.jsonl", "PAIRS": "pairs.jsonl", "OUT": "out"}
    arguments = [str(tmp_path / named[a]) if a in named else a for a in arguments]
    assert main([*arguments, "--model", str(gemma_folder)]) == 2
    said = capsys.readouterr().err
    assert "this model has no mask token: noise replaces its tokens by others" in said
    assert "use remask generate, remask eval on tasks, and remask sft --objective diffusion-gemma" in said
    assert not (tmp_path / "out").exists()


def test_serving_is_refused(gemma_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(gemma_folder), "--port", "0"]) == 2
    assert "requests share steps that unmask, and this model has no masks" in capsys.readouterr().err


def test_objectives_and_models_of_other_noise_are_refused(gemma_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="objective gift masks tokens, and this model has no mask token"):
        run_sft(config_of(gemma_folder, tmp_path / "a", objective="gift"), quiet=True)
    with pytest.raises(UserError, match="objective diffusion-gemma replaces tokens by others, and this model predicts"):
        run_sft(config_of(Path("tiny-direct"), tmp_path / "a"), quiet=True)
    with pytest.raises(UserError, match="a diffusion_gemma is not quantised"):
        load(gemma_folder, quantization="8bit")
    assert main(["profile", "--model", str(gemma_folder), "--objective", "diffusion-gemma"]) == 2
    assert not (tmp_path / "a").exists()


# ---- training ----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_is_saved_in_the_official_layout(gemma_folder: Path, tmp_path: Path) -> None:
    config = config_of(gemma_folder, tmp_path / "run", {"learning_rate": 1e-2}, max_steps=16, eval_data=DATA)
    assert run_sft(config, quiet=True).finished
    rows = metrics(tmp_path / "run")
    first, last = (row for row in (rows[0], rows[15]))
    assert last["loss"] < 0.8 * first["loss"]
    assert first["loss"] == pytest.approx(first["diffusion_loss"] + first["encoder_loss"], rel=1e-5)
    (held_out,) = (row for row in rows if "eval_loss" in row)
    assert held_out["eval_loss"] == pytest.approx(held_out["eval_diffusion"] + held_out["eval_encoder"], rel=1e-5)
    assert "eval_nll" not in held_out
    before, after = weights(gemma_folder), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("router" in name or "vision" in name for name in changed)
    assert any("experts" in name for name in changed)
    assert any("self_conditioning" in name for name in changed)
    assert Published.from_pretrained(tmp_path / "run").config.canvas_length == 8
    assert json.loads((tmp_path / "run" / "run.json").read_text())["objective"]["encoder"] == 1.0


def test_its_choices_are_options(gemma_folder: Path, tmp_path: Path) -> None:
    options = ["--choices.own", "encoder", "0", "self_conditioning", "0", "--choices.rate-low", "0.2", "--data", DATA]
    options += ["--output-dir", str(tmp_path / "run"), "--max-steps", "1", "--trainer.logging-steps", "1"]
    assert main(["sft", "--model", str(gemma_folder), "--objective", "diffusion-gemma", *options]) == 0
    row = metrics(tmp_path / "run")[0]
    assert row["loss"] == pytest.approx(row["diffusion_loss"], rel=1e-5)
    assert row["encoder_loss"] > 1


def test_accumulated_micro_batches_give_the_loss_of_the_whole_batch(gemma_folder: Path, tmp_path: Path) -> None:
    """Both N are of the whole step. Rows are of unlike length, and some parts are cut by their length."""
    data = tmp_path / "rows.jsonl"
    texts = ["b", "bc" * 9, "d" * 30, "e" * 3, "f" * 21, "g" * 12, "h" * 5, "i" * 40]
    data.write_text("".join(json.dumps({"prompt": "a" * (n + 1), "response": t}) + "\n" for n, t in enumerate(texts)))

    def train(name: str, size: int, steps: int, tokens: int) -> list[float]:
        trainer = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": steps,
            "micro_batch_tokens": tokens,
        }
        run_sft(config_of(gemma_folder, tmp_path / name, trainer, data=str(data), max_steps=3), quiet=True)
        return losses(tmp_path / name)

    whole = train("whole", 8, 1, 0)
    assert train("two", 2, 4, 0) == pytest.approx(whole, rel=2e-4)
    assert train("parts", 8, 1, 70) == pytest.approx(whole, rel=2e-4)


def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(gemma_folder: Path, tmp_path: Path) -> None:
    trainer = {"save_steps": 2, "lr_scheduler_type": "constant"}
    for name, lora in (("full", LoraConfig()), ("lora", LoraConfig(rank=2))):
        run_sft(config_of(gemma_folder, tmp_path / name, trainer, lora=lora), quiet=True)
        other = tmp_path / f"{name}-resumed"
        run_sft(config_of(gemma_folder, other, trainer, lora=lora, max_steps=2), quiet=True)
        run_sft(config_of(gemma_folder, other, trainer, lora=lora, resume="auto"), quiet=True)
        file = "model.safetensors" if name == "full" else "adapter_model.safetensors"
        one, two = load_file(tmp_path / name / file), load_file(other / file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_checkpointing_changes_no_loss(gemma_folder: Path, tmp_path: Path) -> None:
    for name, again in (("plain", False), ("again", True)):
        run_sft(config_of(gemma_folder, tmp_path / name, {"gradient_checkpointing": again}), quiet=True)
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_the_last_canvas_may_be_cut_by_the_longest_row(gemma_folder: Path, tmp_path: Path) -> None:
    """`canvas.max_length` ends the fill inside a canvas: what there is of it is learned."""
    config = config_of(gemma_folder, tmp_path / "run", canvas=CanvasConfig(max_length=343), max_steps=1)
    trainer, _, _ = build(config, tmp_path / "run", resolve("diffusion-gemma"), SftTrainer)
    assert isinstance(trainer, UniformTrainer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["ids"].shape[1] == 343
    (part,) = trainer.corrupted({**batch, "s": torch.full((4,), 0.999)}, torch.device("cpu"))  # the last canvases
    assert part.canvas.supervised.sum(-1).tolist() == [7] * 4
    assert torch.isfinite(trainer.terms(trainer.model, part).rows).all()


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "again"), [(0, True), (2, False)])
def test_two_ranks_give_one_ranks_losses(rank: int, again: bool, gemma_folder: Path, tmp_path: Path) -> None:
    """Both N are counted over the ranks. Ten rows do not divide by four: the last step has rows for one rank only."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": "ab", "response": "c" * (n + 2)}) + "\n" for n in range(10)))
    # Adam's first steps have one size whatever the gradient's: of weights whose gradient is rounding, they are noise.
    trainer = {"gradient_checkpointing": again, "num_train_epochs": 1, "learning_rate": 1e-4}
    lora = LoraConfig(rank=rank)
    one = config_of(
        gemma_folder, tmp_path / "one", trainer, data=str(data), eval_data=str(data), lora=lora, max_steps=None
    )
    two = replace(one, output_dir=str(tmp_path / "two"), trainer=replace(one.trainer, per_device_train_batch_size=2))
    path = tmp_path / "two.yaml"
    path.write_text(configs.dump(two))
    finished(ranks("sft", "--config", str(path)))
    run_sft(one, quiet=True)
    for key in ("loss", "grad_norm_mean", "eval_loss", "eval_encoder"):
        alone, together = ([row[key] for row in metrics(tmp_path / name) if key in row] for name in ("one", "two"))
        assert len(alone) == len(together) > 0
        assert together == pytest.approx(alone, rel=1e-4)


def test_sharded_weights_are_refused(gemma_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = SftTrainer.__init__

    def sharded(self: SftTrainer, *given: Any, **keywords: Any) -> None:
        begin(self, *given, **keywords)
        self.is_fsdp_enabled = True

    monkeypatch.setattr(SftTrainer, "__init__", sharded)
    with pytest.raises(UserError, match="the encoder and the decoder share their weights, which FSDP and DeepSpeed"):
        run_sft(config_of(gemma_folder, tmp_path / "run"), quiet=True)


def test_instruments_of_masks_refuse_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--model", "tiny-direct", "--objective", "diffusion-gemma"]) == 2
    assert "this objective replaces tokens by others" in capsys.readouterr().err


# ---- adapters ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def adapter(gemma_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    lora = LoraConfig(rank=4, targets=("all-linear",))
    config = config_of(gemma_folder, folder, {"learning_rate": 1e-2, "gradient_checkpointing": True}, lora=lora)
    assert run_sft(config, quiet=True).finished
    return folder


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        prefix = model.empty_prefix()
        model(clean=torch.arange(30, 42)[None], prefix=prefix, keep=True)
        found: torch.Tensor = model(input_ids=torch.arange(50, 58)[None], prefix=prefix).logits
        return found


def test_encoder_and_decoder_share_their_adapters(adapter: Path, gemma_folder: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    of_encoder = {name for name in tensors if ".encoder." in name}
    assert len(of_encoder) == 2 * 3 * 7 - 2  # the full layer has no v_proj
    assert all(torch.equal(tensors[n], tensors[n.replace("encoder.language_model", "decoder")]) for n in of_encoder)
    assert not any("router" in name or "vision" in name for name in tensors)
    fresh = add_adapter(load(gemma_folder)[0], LoraConfig(rank=2), base_name="x")
    trained = [name for name, p in fresh.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * (3 * 3 - 1)
    inner = fresh.get_base_model().model
    assert inner.encoder.language_model.layers[1].self_attn.q_proj is inner.decoder.layers[1].self_attn.q_proj


def test_an_adapter_computes_as_in_plain_peft(adapter: Path, gemma_folder: Path) -> None:
    model, _ = load(adapter, device="cpu")
    bare, _ = load(gemma_folder, device="cpu")
    found = logits_of(model)
    assert (found - logits_of(bare)).abs().max() > 1e-3
    plain = PeftModel.from_pretrained(Published.from_pretrained(gemma_folder), str(adapter)).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.arange(30, 42)[None], decoder_input_ids=torch.arange(50, 58)[None]).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_merging_adds_the_change_once(adapter: Path, tmp_path: Path) -> None:
    model, _ = load(adapter, device="cpu")
    expected = logits_of(model)
    merged = merge(model, where="x")
    assert torch.allclose(logits_of(merged), expected, atol=1e-5)
    merged.save_pretrained(tmp_path)
    assert main(["convert", "--merge", str(adapter), "--output", str(tmp_path / "merged")]) == 0
    assert torch.allclose(logits_of(load(tmp_path / "merged", device="cpu")[0]), expected, atol=1e-5)
    assert weights(tmp_path / "merged").keys() == weights(tmp_path).keys()


def test_an_adapter_that_differs_between_them_is_not_merged(adapter: Path, gemma_folder: Path, tmp_path: Path) -> None:
    """Plain peft trains them apart: such an adapter is computed as it is."""
    from safetensors.torch import save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in tensors if ".encoder." in n and "lora_B" in n)
    tensors[name] = tensors[name] * 2
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = load_adapter(load(gemma_folder, device="cpu")[0], str(tmp_path)).eval()
    plain = PeftModel.from_pretrained(Published.from_pretrained(gemma_folder), str(tmp_path)).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.arange(30, 42)[None], decoder_input_ids=torch.arange(50, 58)[None]).logits
    assert torch.allclose(logits_of(model), expected, atol=1e-5)
    with pytest.raises(UserError, match="the adapter changes the encoder otherwise than the decoder"):
        merge(model, where="x")
