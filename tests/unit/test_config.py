"""Strict configs: every mistake is one error naming the key, and dump then load is the identity."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remask.config import (
    CanvasConfig,
    ChoicesConfig,
    GenerateConfig,
    LoraConfig,
    ProbeConfig,
    ReportConfig,
    RlConfig,
    SftConfig,
    StudyConfig,
    TourConfig,
    TrainerConfig,
    dump,
    from_dict,
    load,
)
from remask.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "sft.yaml"
    path.write_text(text)
    return path


def test_what_is_not_given_stays_default(tmp_path: Path) -> None:
    config = load(SftConfig, write(tmp_path, "objective: gift\ntrainer: {learning_rate: 1.0e-4}\n"))
    assert config == replace(SftConfig(), objective="gift", trainer=TrainerConfig(learning_rate=1e-4))


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load(SftConfig, write(tmp_path, "# nothing\n")) == SftConfig()


def test_dump_then_load_is_the_identity(tmp_path: Path) -> None:
    config = SftConfig(
        model="models/Größe",
        model_attention="full",
        data="data.jsonl",
        eval_data="held_out.jsonl",
        apart_from="test.jsonl",
        objective="gift-elbo",
        output_dir="runs/ü: [x]",
        resume="auto",
        overwrite=True,
        seed=7,
        max_steps=11,
        dtype="bfloat16",
        quantization="8bit",
        device="cpu",
        on_bad_row="skip",
        choices=ChoicesConfig(transform="log1p", alpha=0.5, normaliser="sequence"),
        probe=ProbeConfig(policy="frozen", every=2, cache="no"),
        canvas=CanvasConfig(max_length=77, fill="multiple:8", over_long="truncate"),
        lora=LoraConfig(rank=8, alpha=1e-5, targets=("q_proj", "on")),
        trainer=TrainerConfig(
            learning_rate=1e-5, save_total_limit=None, report_to=(), extra={"optim": "sgd", "n": [1, None]}
        ),
        report=ReportConfig(diagnostics="off"),
    )
    assert all(getattr(config, name) != getattr(SftConfig(), name) for name in vars(config))
    again = load(SftConfig, write(tmp_path, dump(config)))
    assert again == config
    assert dump(again) == dump(config)


def test_given_choices_are_the_ones_that_were_set() -> None:
    assert ChoicesConfig(alpha=0.0, weight="dft").given() == {"alpha": 0.0, "weight": "dft"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: true\ntrainer: {learning_rate: yes}",
            r"seed: expected a whole number, got true; trainer\.learning_rate: expected a number, got true",
        ),
        ("objectve: gift", r"unknown key 'objectve' \(did you mean 'objective'\?\)"),
        ("trainer: {learning_rat: 1}", r"unknown key 'trainer.learning_rat' \(did you mean 'learning_rate'\?\)"),
        ("probe: {zzz: 1}", r"unknown key 'probe.zzz' \(the keys are policy, every, cache\)"),
        ("seed: many", "seed: expected a whole number, got 'many'"),
        ("trainer: {bf16: [1]}", r"trainer\.bf16: expected true or false, got \[1\]"),
        ("choices: {transform: square}", r"choices\.transform: expected sqrt, identity, log1p or cbrt, got 'square'"),
        ("canvas: 3", "canvas: expected a mapping of keys to values, got 3"),
        ("lora: {rank: 1.5}", r"lora\.rank: expected a whole number, got 1\.5"),
        ("lora: {targets: q_proj}", r"lora\.targets: expected a list, such as \[a, b\], got 'q_proj'"),
        ("trainer: {report_to: none}", r"trainer\.report_to: expected a list"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load(SftConfig, path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        from_dict(SftConfig, {"sed": 1, "max_steps": "x", "seed": True}, where="flags")
    said = str(caught.value)
    assert "'sed'" in said
    assert "max_steps" in said
    assert said.count("seed: expected a whole number, got true") == said.count("got true") == 1


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        (TourConfig, {"seeds": [1, True]}, "seeds.1: expected a whole number, got true"),
        (StudyConfig, {"seeds": [False]}, "seeds.0: expected a whole number, got false"),
        (RlConfig, {"rewards": {"weights": [True]}}, "rewards.weights.0: expected a number, got true"),
        (SftConfig, {"model": True}, "model: expected text, got true"),
        (
            SftConfig,
            {"choices": {"rate": True}},
            "choices.rate: expected uniform, importance, lift2 or",
        ),
    ],
)
def test_true_is_no_number(kind: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        from_dict(kind, values, where="x")


def test_what_is_wanting_is_named() -> None:
    with pytest.raises(UserError, match="question: expected text, got nothing"):
        from_dict(StudyConfig, {"base": {}, "arms": {}, "baseline": "x"}, where="x")


def test_true_is_true_where_that_is_meant() -> None:
    values = {"overwrite": True, "trainer": {"bf16": False, "extra": {"tf32": True, "n": [True]}}}
    config = from_dict(SftConfig, values, where="x")
    assert config.overwrite is True
    assert config.trainer.extra == {"tf32": True, "n": [True]}
    assert from_dict(GenerateConfig, {"decoding": {"stop_early": False}}, where="x").decoding.stop_early is False


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such config file"):
        load(SftConfig, tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [b"a: [1, 2", b"\xff\xfe\x00", b"a: b: c", b"\tx: 1", b"x: \x01"])
def test_what_is_no_yaml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"sft\.yaml: not readable as YAML"):
        load(SftConfig, path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ntrainer: [1,\n  2", r"\(line 3, column 4: expected ',' or '\]'"),
        (
            "seed: 1\nlora: {rank: 1}\nseed: 2\n",
            r"\(line 3, column 1: the key 'seed' is given twice, first in line 1\)",
        ),
        ("lora:\n  rank: 1\n  'rank': 2\n", r"\(line 3, column 3: the key 'rank' is given twice, first in line 2\)"),
    ],
)
def test_what_is_wrong_in_yaml_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(SftConfig, write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_what_is_merged_may_be_overridden(tmp_path: Path) -> None:
    text = "lora: &a {rank: 1, alpha: 2}\nchoices: &b {}\ntrainer: {extra: {<<: *a, rank: 3}, logging_steps: 1}\n"
    assert load(SftConfig, write(tmp_path, text)).trainer.extra == {"rank": 3, "alpha": 2}


@pytest.mark.parametrize("text", ["- a\n- b\n", "gift", "3"])
def test_yaml_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mapping"):
        load(SftConfig, write(tmp_path, text))


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not readable"):
        load(SftConfig, tmp_path)
