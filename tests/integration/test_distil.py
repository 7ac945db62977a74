"""`remask distil`, the prompts it asks, and the way from a causal model to a tuned diffusion model."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import remask
from remask import cli
from remask.data.topics import FORMS, HELD_OUT, THINGS, topics
from remask.errors import UserError
from remask.models.causal import load_causal, written

SCRIPT = Path(__file__).parents[2] / "scripts" / "smol.py"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal Llama of random weights. With 262 tokens, one answer in six ends within 48 of them."""
    folder = tmp_path_factory.mktemp("teacher")
    _, tokenizer = remask.load("tiny-direct")
    config = LlamaConfig(
        vocab_size=262,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"}))
    return folder


def distil(teacher: Path, output: Path, *more: str) -> int:
    asked = ["--data", "topics:40", "--temperature", "1", "--batch-size", "16", "--output", str(output)]
    return cli.main(["distil", "--teacher", str(teacher), *asked, *more])


# ---- prompts -----------------------------------------------------------------------------------------------------


def test_every_pair_comes_once_and_held_out_things_are_apart() -> None:
    count = len(FORMS) * (len(THINGS) - HELD_OUT)
    assert len(set(THINGS)) == len(THINGS)
    found, held_out = topics(f"topics:{count}"), topics(f"topics-held-out:{len(FORMS) * HELD_OUT}")
    assert len(set(found)) == count
    assert len(set(held_out)) == len(held_out)
    assert not set(found) & set(held_out)
    assert topics("topics:50") == found[:50] == topics("topics:50:0")
    assert topics("topics:50:1") != found[:50]
    assert set(topics(f"topics-held-out:{len(held_out)}:5")) == set(held_out)  # the same things for every seed
    assert sorted(topics(f"topics:{2 * count}")[count:]) == sorted(found)


@pytest.mark.parametrize("source", ["topics", "topics:", "topics:0", "topics:ten", "topics:5:x"])
def test_a_number_of_prompts_is_needed(source: str) -> None:
    with pytest.raises(UserError, match="topics:1000"):
        topics(source)


# ---- answers -----------------------------------------------------------------------------------------------------


def test_rows_answered_together_are_those_answered_alone(teacher: Path) -> None:
    model, tokenizer = load_causal(str(teacher))
    conversations = [[{"role": "user", "content": "x" * length}] for length in (1, 9, 30)]
    settings: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    ends = {7, 90, 200}  # any tokens that are written at times
    model.generation_config.eos_token_id = sorted(ends)
    together = written(model, tokenizer, conversations, **settings)
    assert together == [written(model, tokenizer, [one], **settings)[0] for one in conversations]
    ids = tokenizer.apply_chat_template(conversations[1], add_generation_prompt=True, return_dict=False)
    prompt = len(ids)
    with torch.no_grad():
        for _ in range(12):  # the likeliest token each time, without a cache
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    answer = ids[prompt:]
    end = next((place for place, token in enumerate(answer) if token in ends), None)
    expected = None if end is None else tokenizer.decode(answer[:end], skip_special_tokens=True).strip()
    assert together[1] == expected
    assert any(one is not None for one in together)


def test_settings_of_the_checkpoint_change_no_answer(teacher: Path, tmp_path: Path) -> None:
    """But for its end tokens: what else a generation config says (Qwen's: top_p, repetition_penalty) is not used."""
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    said = {"repetition_penalty": 5.0, "do_sample": True, "top_k": 2, "max_length": 3, "eos_token_id": [0, 5]}
    (folder / "generation_config.json").write_text(json.dumps(said))
    settings: dict[str, Any] = {"max_new_tokens": 20, "temperature": 0.0, "seed": 0}
    ids = []
    for place in (teacher, folder):
        model, tokenizer = load_causal(str(place))
        assert 0 in model.generation_config.eos_token_id
        model.generation_config.eos_token_id = list(range(40))
        ids.append(written(model, tokenizer, [[{"role": "user", "content": "rain"}]], **settings))
    assert ids[0] == ids[1]
    assert 5 in load_causal(str(folder))[0].generation_config.eos_token_id


def test_a_call_that_was_stopped_goes_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(teacher, tmp_path / "whole.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert 2 <= len(rows) < 40
    assert f"{len(rows)} rows; {40 - len(rows)} of 40 answers" in capsys.readouterr().out
    prompts = [row["messages"][0]["content"] for row in rows]
    assert prompts == [prompt for prompt in topics("topics:40") if prompt in set(prompts)]
    assert all(row["messages"][1]["content"] for row in rows)

    calls: list[int] = []
    batches = [0]

    def stopped(*arguments: Any, **settings: Any) -> list[str | None]:
        if len(calls) == batches[0]:
            raise KeyboardInterrupt
        calls.append(1)
        return written(*arguments, **settings)

    monkeypatch.setattr("remask.models.causal.written", stopped)
    target, partial = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    for batches[0], lines in ((0, 1), (0, 1), (1, 2), (1, 3)):  # in its first batch, there again, after one more each
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            _run(teacher, target)
        assert not target.exists()
        assert len(partial.read_text().splitlines()) == lines
    partial.write_text(partial.read_text()[:-5])  # the second batch's line was not finished
    calls.clear()
    monkeypatch.setattr("remask.models.causal.written", lambda *a, **k: calls.append(1) or written(*a, **k))
    assert distil(teacher, target, "--seed", "1") == 2
    assert "other settings" in capsys.readouterr().err
    assert distil(teacher, target) == 0
    assert len(calls) == 2  # of three batches two were done, and the line of one of these was not finished
    assert target.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert not partial.exists()


def _run(teacher: Path, target: Path) -> None:
    """Without the command line's own handling of Ctrl-C."""
    from remask.commands import distil as command

    asked = ["--data", "topics:40", "--temperature", "1", "--batch-size", "16", "--output", str(target)]
    command.run(["--teacher", str(teacher), *asked])


def test_what_cannot_be_is_said(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("")
    for arguments, said in (
        (["--output", str(there), "--teacher", str(teacher)], "is there already"),
        ([], "give one: --teacher MODEL"),
        (["--teacher", "tiny-direct"], "not a causal one"),
        (["--teacher", str(teacher), "--max-new-tokens", "0"], "max_new_tokens = 0"),
        (["--teacher", str(teacher), "--data", "topics:0"], "topics:1000"),
        (["--teacher", str(teacher), "--data", "topics:2", "--max-new-tokens", "1"], "no answer ended within 1 tokens"),
    ):
        output = [] if "--output" in arguments else ["--output", str(tmp_path / "none.jsonl")]
        assert cli.main(["distil", *arguments, *output]) == 2, arguments
        assert said in capsys.readouterr().err
    assert there.read_text() == ""
    assert not (tmp_path / "none.jsonl").exists()


def test_columns_that_are_not_read_are_named(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{n}", "completion": "not used", "mood": "good"} for n in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert distil(teacher, tmp_path / "rows.jsonl", "--data", str(tmp_path / "mine.jsonl")) == 0
    assert "not used: column mood (40 of 40 rows)" in capsys.readouterr().err
    prompts = [json.loads(line)["messages"][0]["content"] for line in (tmp_path / "rows.jsonl").open()]
    assert prompts
    assert set(prompts) <= {row["prompt"] for row in rows}


# ---- the whole way -----------------------------------------------------------------------------------------------


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smol", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_whole_way_is_walked_once(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command in this process, on a small causal model; given again, nothing is done again."""
    smol, ran = script(), []

    def remask_here(*arguments: object) -> None:
        words = [str(argument) for argument in arguments]
        ran.append(words[0])
        if words[0] == "distil":
            words += ["--temperature", "1"]  # so that some answers of random weights end
        assert cli.main(words) == 0, words

    monkeypatch.setattr(smol, "remask", remask_here)
    monkeypatch.setattr(smol, "answers", lambda model: [f"from {model.name}"] * len(smol.PROMPTS))
    folder = tmp_path / "smol"
    words = ["smol.py", "quick", "--source", str(teacher), "--folder", str(folder), "--max-steps", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--prompts", "48", "--held-out", "24"])
    monkeypatch.chdir(tmp_path)
    assert smol.main() == 0
    assert ran == ["convert", "distil", "distil", "eval", "sft", "eval", "compare", "report"]
    assert "from start" in capsys.readouterr().out
    records = [json.loads((folder / "quick" / f"{name}.json").read_text()) for name in ("before", "after")]
    before, after = (record["tasks"]["likelihood"]["nats_per_token"] for record in records)
    assert after < before
    assert (folder / "quick" / "report.html").exists()
    ran.clear()
    assert smol.main() == 0
    assert ran == ["compare"]
    (folder / "quick" / "after.json").unlink()
    ran.clear()
    assert smol.main() == 0
    assert ran == ["eval", "compare"]
