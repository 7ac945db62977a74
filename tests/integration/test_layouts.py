"""Fine-tuning checkpoints of LLaDA's and Dream's layout on real and on made rows: LoRA, full, and on 4-bit weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import transformers
from torch import nn

import remask
from remask.cli import main
from remask.config import CanvasConfig, LoraConfig, SftConfig
from remask.errors import UserError
from remask.models.dream import DreamConfig, DreamModel
from remask.sampling import generate
from remask.sft.run import run_sft


def save_dream(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """Dream's layout, grouped-query, with the byte tokenizer."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    config = DreamConfig(
        **{**sizes, **changes},
        num_hidden_layers=2,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        initializer_range=0.1,
        vocab_size=len(tokenizer),
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        DreamModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dream_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_dream(tmp_path_factory.mktemp("dream"), tokenizer)


@pytest.fixture(scope="session")
def gsm8k_rows(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The 48 first real GSM8K training rows that are short, and the 16 after them."""
    lines = (shared / "data" / "gsm8k" / "train.jsonl").read_text().splitlines()
    short = [line for line in lines if len(line) < 300][:64]
    folder = tmp_path_factory.mktemp("gsm8k")
    (folder / "train.jsonl").write_text("\n".join(short[:48]))
    (folder / "held_out.jsonl").write_text("\n".join(short[48:]))
    return folder / "train.jsonl", folder / "held_out.jsonl"


@pytest.mark.shared
@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("rank", [0, 8])
def test_gsm8k_lowers_the_held_out_loss(
    family: str,
    rank: int,
    checkpoint: Path,
    dream_checkpoint: Path,
    gsm8k_rows: tuple[Path, Path],
    make_config: Callable[..., SftConfig],
    metrics: Callable[[Path], list[dict[str, Any]]],
) -> None:
    train, held_out = gsm8k_rows
    config = make_config(
        {
            "num_train_epochs": 4,
            "per_device_train_batch_size": 8,
            "learning_rate": 3e-3 if rank == 0 else 1e-2,
            "eval_steps": 24,
            "extra": {"eval_on_start": True},
        },
        model=str(checkpoint if family == "llada" else dream_checkpoint),
        data=str(train),
        eval_data=str(held_out),
        canvas=CanvasConfig(max_length=512),
        lora=LoraConfig(rank=rank, alpha=2.0 * rank or 1.0, targets=("all-linear",)),
    )
    outcome = run_sft(config, quiet=True)
    losses = [row["eval_nll"] for row in metrics(outcome.folder) if "eval_nll" in row]
    assert outcome.finished
    assert len(losses) == 2
    assert losses[1] < 0.95 * losses[0]
    model, tokenizer = remask.load(outcome.folder)
    assert remask.generate(model, tokenizer, ["1+1?"], max_new_tokens=4).texts
    saved = json.loads((outcome.folder / ("adapter_config.json" if rank else "config.json")).read_text())
    assert rank or saved["model_type"] == {"llada": "llada", "dream": "Dream"}[family]


def test_adapters_on_quantised_weights(
    tokenizer: Any, tmp_path: Path, make_config: Callable[..., SftConfig], weights: Callable[[Path], dict[str, Any]]
) -> None:
    """Trained on 8 bits; loaded on 4, 8 and 32, which say nearly the same."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'remask[quantization]'")
    sizes = {"hidden_size": 128, "num_key_value_heads": 4, "intermediate_size": 128}  # what its CPU kernels can split
    folder = save_dream(tmp_path / "dream", tokenizer, **sizes)
    config = make_config({"num_train_epochs": 1}, model=str(folder), quantization="8bit")
    with pytest.raises(UserError, match=r"cannot be trained.*--lora"):
        run_sft(config, quiet=True)
    with pytest.raises(UserError, match="4-bit weights are trained on CUDA only"):
        run_sft(replace(config, quantization="4bit", lora=LoraConfig(rank=4)), quiet=True)
    assert not Path(config.output_dir).exists()
    outcome = run_sft(replace(config, lora=LoraConfig(rank=4)), quiet=True)
    assert any(tensor.abs().max() > 0 for name, tensor in weights(outcome.folder).items() if "lora_B" in name)
    full, _ = remask.load(outcome.folder)
    ids = torch.tensor([[65, 66, 67, full.config.mask_token_id]])
    for quantization, kind, near in (
        ("8bit", "Linear8bitLt", 0.999),
        ("4bit", "Linear4bit", 0.9),
        ("4bit-double", "Linear4bit", 0.9),
    ):
        model, _ = remask.load(outcome.folder, quantization=quantization)
        assert type(model.get_base_model().model.layers[0].mlp.up_proj).__name__ == kind
        with torch.no_grad():
            logits, expected = model(input_ids=ids).logits, full(input_ids=ids).logits
        assert nn.functional.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) > near
    if model.get_base_model().model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu:
        for size, said in (
            (80, r"outputs in .* 32, and .*gate_proj has 80"),
            (96, r"inputs in .* 64, and .*down_proj has 96"),
        ):
            odd = save_dream(tmp_path / f"{size}", tokenizer, **{**sizes, "intermediate_size": size})
            with pytest.raises(UserError, match=said):
                remask.load(odd, quantization="4bit", device="cpu")


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_weights_are_served(quantization: Any, tokenizer: Any, tmp_path: Path) -> None:
    """One request after the other: in half precision an answer may depend on the others of its batch."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'remask[quantization]'")
    sizes = {"hidden_size": 128, "num_key_value_heads": 4, "intermediate_size": 128}
    folder = save_dream(tmp_path / "dream", tokenizer, **sizes)
    model, tokenizer = remask.load(folder, quantization=quantization, device="cpu")
    with remask.serve(model, tokenizer, background=True, port=0, token_budget=4096) as server:
        for prompt in ("sudoku 2031 0002 0013 3004", "countdown 4 5 9 -> 9"):
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 9}
            found = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
            expected = generate(model, tokenizer, [prompt], max_new_tokens=9, row_seeds=[0]).texts[0]
            assert found["choices"][0]["message"]["content"] == expected


@pytest.mark.parametrize("family", ["converted", "bert", "modernbert"])
def test_other_families_learn(
    family: str,
    tokenizer: Any,
    tmp_path: Path,
    make_config: Callable[..., SftConfig],
    data: Path,
    metrics: Callable[[Path], list[dict[str, Any]]],
) -> None:
    """A causal Qwen2 made a diffusion model by command, and two encoders, on a few made rows."""
    folder = tmp_path / family
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "converted":
            causal = transformers.Qwen2Config(**sizes, **ends, num_key_value_heads=2, max_position_embeddings=256)
            transformers.Qwen2ForCausalLM(causal).save_pretrained(tmp_path / "causal")
            tokenizer.save_pretrained(tmp_path / "causal")
            command = ["convert", "--to-diffusion", str(tmp_path / "causal"), "--output", str(folder)]
            assert main(command) == 0
        else:
            kind = {"bert": transformers.BertConfig, "modernbert": transformers.ModernBertConfig}[family]
            special = {"bos_token_id": 0, "cls_token_id": 0, "sep_token_id": 0} if family == "modernbert" else {}
            transformers.AutoModelForMaskedLM.from_config(kind(**sizes, **ends, **special)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    trainer = {"num_train_epochs": 6, "learning_rate": 3e-3, "eval_steps": 36, "extra": {"eval_on_start": True}}
    outcome = run_sft(make_config(trainer, model=str(folder), eval_data=str(data), objective="gift"), quiet=True)
    losses = [row["eval_nll"] for row in metrics(outcome.folder) if "eval_nll" in row]
    assert len(losses) == 2
    assert losses[1] < 0.9 * losses[0]
    model, loaded = remask.load(outcome.folder)
    assert remask.generate(model, loaded, ["say a"], max_new_tokens=4).texts


def test_a_checkpoints_own_code_goes_along_and_is_never_run(
    checkpoint: Path, tmp_path: Path, make_config: Callable[..., SftConfig]
) -> None:
    """As in a downloaded folder: other tools find the code that the saved config names."""
    folder = tmp_path / "llada"
    shutil.copytree(checkpoint, folder)
    (folder / "modeling_llada.py").write_text("raise SystemExit('this code was run')\n")
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModel": "modeling_llada.LLaDAModelLM"}
    (folder / "config.json").write_text(json.dumps(values))
    outcome = run_sft(make_config({"num_train_epochs": 1}, model=str(folder)), quiet=True)
    saved = json.loads((outcome.folder / "config.json").read_text())
    assert saved["auto_map"] == values["auto_map"]
    assert saved["model_type"] == "llada"
    assert (outcome.folder / "modeling_llada.py").read_text() == (folder / "modeling_llada.py").read_text()
    adapted = run_sft(
        make_config(
            {"num_train_epochs": 1}, model=str(folder), lora=LoraConfig(rank=2), output_dir=str(tmp_path / "a")
        ),
        quiet=True,
    )
    assert main(["convert", "--merge", str(adapted.folder), "--output", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "modeling_llada.py").exists()


RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "gift").glob("*.yaml"))


@pytest.mark.shared
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run_on_a_small_model(recipe: Path, shared: Path, long_checkpoint: Path, tmp_path: Path) -> None:
    """Two steps on real s1K rows, with the recipe's own settings but for the model and a shorter canvas."""
    assert len(RECIPES) == 6
    rows = shared / "data" / "s1k" / "five_rows_with_reasoning.parquet"
    command = ["sft", "--config", str(recipe), "--model", str(long_checkpoint), "--max-steps", "2"]
    command += ["--data", f"s1k={rows}", "--output-dir", str(tmp_path / "run"), "--canvas.max-length", "512"]
    assert main([*command, "--trainer.report_to", "none"]) == 0
    model, _ = remask.load(tmp_path / "run")
    assert hasattr(model, "peft_config") == ("lora" in recipe.stem)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
