"""`remask eval`: nothing answered is lost, processes share the work, and what was asked stands beside the score."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import remask
from remask.cli import main
from remask.commands import evaluate
from remask.config import LoraConfig, SftConfig
from remask.errors import UserError
from remask.evaluation.evaluate import device_of
from remask.evaluation.journal import Journal, Written
from remask.sampling import engine
from remask.sft.run import run_sft
from started import Started

FLAGS = ["--tasks", "sudoku,countdown", "--n", "6", "--batch-size", "2", "--decoding.max-new-tokens", "16"]


def command(checkpoint: Path, record: Path, *more: str) -> list[str]:
    return ["eval", "--model", str(checkpoint), "--json", str(record), *FLAGS, *more]


def read(record: Path) -> dict[str, Any]:
    return json.loads(record.read_text())


def answers(record: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: task["problems"] for name, task in read(record)["tasks"].items()}


@pytest.fixture
def undisturbed(checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    record = tmp_path / "undisturbed.json"
    assert main(command(checkpoint, record)) == 0
    assert not list(tmp_path.glob("*.jsonl"))
    return answers(record)


def break_off(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Interrupt the evaluation when `after` batches are done; the list counts the prompts asked."""
    asked: list[int] = []
    real = engine.generate_from_ids

    def generate(model: Any, tokenizer: Any, prompts: Any, *further: Any, **keywords: Any) -> Any:
        if len(asked) == after:
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return real(model, tokenizer, prompts, *further, **keywords)

    monkeypatch.setattr(engine, "generate_from_ids", generate)
    return asked


@pytest.mark.parametrize("torn", [b"", b'{"task": "countd'])
def test_an_interrupted_evaluation_goes_on(
    torn: bytes, checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "x.json"
    with pytest.MonkeyPatch.context() as patch:
        asked = break_off(patch, after=4)
        assert main(command(checkpoint, record)) == 130
        assert sum(asked) == 8
    assert "the same command goes on" in capsys.readouterr().err
    assert not record.exists()
    journal = tmp_path / "x.json.answers-0.jsonl"
    assert len(journal.read_text().splitlines()) == 9  # a header, eight answers
    with journal.open("ab") as file:
        file.write(torn)
    with pytest.MonkeyPatch.context() as patch:
        asked = break_off(patch, after=10)
        assert main(command(checkpoint, record)) == 0
        assert sum(asked) == 4
    assert "8 answers of an unfinished run" in capsys.readouterr().err
    assert answers(record) == undisturbed
    assert not journal.exists()


def test_unfinished_answers_of_another_evaluation_are_not_mixed_in(
    checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "x.json"
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, after=2)
        assert main(command(checkpoint, record, "--decoding.steps", "4")) == 130
    capsys.readouterr()
    assert main(command(checkpoint, record)) == 2
    error = capsys.readouterr().err
    assert "another evaluation" in error
    assert "answers-0.jsonl" in error
    assert main(command(checkpoint, record, "--overwrite")) == 0
    assert answers(record) == undisturbed


def test_a_retrained_checkpoint_is_another_model(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    record = tmp_path / "x.json"
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, after=2)
        assert main(command(folder, record)) == 130
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(1, weights.stat().st_mtime_ns + 1))
    assert main(command(folder, record)) == 2


def test_records_in_the_models_folder_do_not_make_it_another(checkpoint: Path, tmp_path: Path) -> None:
    """Reports look for them there. Another chat template does: it is what the model is asked with."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    with pytest.MonkeyPatch.context() as patch:
        break_off(patch, after=2)
        assert main(command(folder, folder / "x.json")) == 130
    (folder / "other.json").write_text("{}")
    (template,) = folder.glob("*.jinja")
    was, when = template.read_text(), template.stat()
    template.write_text(was + " ")
    assert main(command(folder, folder / "x.json")) == 2
    template.write_text(was)
    os.utime(template, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert main(command(folder, folder / "x.json")) == 0


ANSWER = Written("sudoku", "a", "né", 1, True, 1.0, 1.0)


def test_answers_torn_inside_a_character(tmp_path: Path) -> None:
    """As another process may find them, and as a crash leaves them."""
    Journal(tmp_path / "x.json", "f").add([ANSWER, replace(ANSWER, id="b")])
    path = tmp_path / "x.json.answers-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rfind("é".encode()) + 1])
    Journal(tmp_path / "x.json", "f", rank=1)
    journal = Journal(tmp_path / "x.json", "f")
    assert list(journal.answers) == [ANSWER.key]
    journal.add([replace(ANSWER, id="b")])
    assert path.read_bytes() == whole


def test_damaged_answers_are_asked_again(tmp_path: Path) -> None:
    Journal(tmp_path / "x.json", "f").add([ANSWER, replace(ANSWER, id="b")])
    path = tmp_path / "x.json.answers-0.jsonl"
    header, first, second = path.read_text().splitlines()
    path.write_text(f"{header}\n{first[:20]}\n[1]\n{second}\n")
    assert list(Journal(tmp_path / "x.json", "f").answers) == [("sudoku", "b")]


@pytest.mark.parametrize("header", [b'{"broken', b"[1]", b"\xff\xfe"])
def test_a_file_that_is_no_journal(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json.answers-0.jsonl").write_bytes(header + b"\n")
    with pytest.raises(UserError, match="another evaluation"):
        Journal(tmp_path / "x.json", "f")
    assert Journal(tmp_path / "x.json", "f", overwrite=True).answers == {}


def test_a_full_disk(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert main(command(checkpoint, tmp_path / "x.json")) == 2
    assert "answers cannot be written (No space left on device)" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        assert main(command(checkpoint, tmp_path / "x.json")) == 2
    assert "x.json: cannot be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["x.json.answers-0.jsonl"]
    with pytest.MonkeyPatch.context() as patch:
        assert break_off(patch, after=0) == []
        assert main(command(checkpoint, tmp_path / "x.json")) == 0


def test_other_launchers_need_a_record_too(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process would wait for answers that nobody writes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "--model", str(checkpoint), *FLAGS]) == 2
    assert "--json" in capsys.readouterr().err


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of("auto", 1) == "cuda:1"
    assert device_of("cpu", 2) == "cpu"
    with pytest.raises(UserError, match="process 3 has no GPU: there are 2"):
        device_of("auto", 2)


def launcher(arguments: Sequence[str]) -> int:
    """`remask eval`, whose processes are forks as it is itself; the file `pids` beside the record has their numbers."""
    record = Path(arguments[arguments.index("--json") + 1])

    def begin(command: Sequence[str], env: dict[str, str]) -> Started:
        assert command[1:3] == ["-m", "remask.cli"]
        process = Started(*command[3:], **env)
        with record.with_name("pids").open("a") as file:
            file.write(f"{process.pid}\n")
        return process

    evaluate.subprocess = SimpleNamespace(Popen=begin)  # type: ignore[assignment]
    return main(arguments)


@pytest.mark.parametrize("end", ["worker killed", "launcher stopped"])
def test_no_process_outlives_the_others(end: str, tmp_path: Path) -> None:
    """And the answers so far are kept."""
    record = tmp_path / "x.json"
    flags = ["--n", "200", "--tasks", "sudoku", "--batch-size", "1", "--decoding.max-new-tokens", "24"]
    process = Started("eval", "--json", str(record), "--processes", "2", *flags, program=launcher)
    until = time.monotonic() + 120
    while sum(len(f.read_text().splitlines()) > 1 for f in tmp_path.glob("x.json.answers-*")) < 2:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    if end == "worker killed":
        os.kill(workers[1], signal.SIGKILL)
    else:
        process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + (9 if end == "worker killed" else 15)
    assert ("signal 9 killed a process" in error) == (end == "worker killed")
    assert len(workers) == 2
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(list(tmp_path.glob("x.json.answers-*.jsonl"))) == 2
    assert not record.exists()


def test_two_processes_answer_as_one(checkpoint: Path, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    record = tmp_path / "x.json"
    done = subprocess.run(
        [sys.executable, "-m", "remask.cli", *command(checkpoint, record, "--processes", "2")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert answers(record) == undisturbed
    assert read(record)["hardware"]["processes"] == 2
    assert done.stdout.count("written to") == 1
    assert not list(tmp_path.glob("x.json.answers*"))


def test_every_answer_keeps_its_confidence(undisturbed: dict[str, Any]) -> None:
    for problems in undisturbed.values():
        for problem in problems:
            text = problem["confidence"]["text"]
            assert 0 < text["tokens"] <= problem["tokens"]
            assert 0 < text["least"] <= text["mean"] <= 1


def test_several_processes_need_a_record(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", str(checkpoint), "--processes", "2"]) == 2
    assert "--json" in capsys.readouterr().err


def test_what_was_asked_stands_beside_the_score(checkpoint: Path, tmp_path: Path) -> None:
    record = tmp_path / "x.json"
    template = tmp_path / "template.txt"
    template.write_text(r"Solve {puzzle}, please: \frac{1}{2}")
    more = ["--prompt-template", f"@{template}", "--system", "Be brief.", "--prefill", "<answer>"]
    assert main([*command(checkpoint, record), "--tasks", "sudoku", *more]) == 0
    decoding = read(record)["decoding"]
    assert decoding["prefill"] == "<answer>"
    assert decoding["system"] == "Be brief."
    assert decoding["prompt_template"].startswith("Solve {puzzle}")
    (first, *_) = answers(record)["sudoku"]
    puzzle = json.loads(first["reference"])["puzzle"]
    assert first["prompt"] == rf"Solve {puzzle}, please: \frac{{1}}{{2}}"
    assert first["completion"].startswith("<answer>")
    assert read(record)["tasks"]["sudoku"]["published_metric"] == "cells"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt-template", "no fields", "--tasks", "sudoku"], "names none of the problem's fields"),
        (["--prompt-template", "{puzzle}"], "one prompt template cannot serve several tasks"),
        (["--prompt-template", "@missing.txt", "--tasks", "sudoku"], "missing.txt"),
        (["--processes", "0"], "processes = 0"),
        (["--decoding.max-new-tokens", "250"], "exceed the model's 256"),
    ],
)
def test_what_cannot_be_asked(
    more: list[str], message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "x.json"
    assert main(command(checkpoint, record, *more)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("x.json*"))  # no record, and nothing that the next try would stumble over


def test_an_adapter_is_evaluated_directly(
    checkpoint: Path, tmp_path: Path, make_config: Callable[..., SftConfig], undisturbed: dict[str, Any]
) -> None:
    outcome = run_sft(make_config({"num_train_epochs": 1, "learning_rate": 0.1}, lora=LoraConfig(rank=4)), quiet=True)
    on_base, merged, by_itself = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    assert main(command(checkpoint, on_base, "--adapter", str(outcome.folder))) == 0
    assert main(["convert", "--merge", str(outcome.folder), "--output", str(tmp_path / "merged")]) == 0
    assert main(command(tmp_path / "merged", merged)) == 0
    assert main(command(outcome.folder, by_itself)) == 0
    assert answers(on_base) == answers(by_itself)
    assert answers(on_base) != undisturbed
    same = sum(a == b for a, b in zip(answers(on_base)["sudoku"], answers(merged)["sudoku"], strict=True))
    assert same >= 5  # merging rounds
    assert read(on_base)["arm"] == "sft"
    assert remask.load(outcome.folder)[0].peft_config


def test_answers_without_an_end_are_pointed_out(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", str(checkpoint), *FLAGS]) == 0
    assert "fill the whole canvas without an end" in capsys.readouterr().out


def test_code_is_not_run_unasked(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", str(checkpoint), "--tasks", "humaneval"]) == 2
    assert "--allow-code-execution" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a", "completion": "b"}\n', "is there already, and no evaluation"),
        ("", "is there already, and no evaluation"),
        ("an evaluation", "holds a finished evaluation of another model, or of other tasks or settings"),
    ],
)
def test_a_file_is_replaced_only_where_that_is_asked(
    content: str, message: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "precious.jsonl"
    if content == "an evaluation":
        assert main(command(checkpoint, record, "--n", "3")) == 0
    else:
        record.write_text(content)
    before = record.read_bytes()
    assert main(command(checkpoint, record)) == 2
    assert message in capsys.readouterr().err
    assert record.read_bytes() == before
    assert main(command(checkpoint, record, "--overwrite")) == 0
    assert read(record)["kind"] == "remask.evaluation"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_evaluation_that_is_finished_is_shown_again(
    processes: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the settings alone: no model is loaded, and settings that make no other evaluation may differ."""
    record = tmp_path / "x.json"
    assert main(command(checkpoint, record)) == 0
    first, before = capfd.readouterr().out, record.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("remask.evaluation.evaluate.load", lambda *_, **__: pytest.fail("loaded"))
        again = command(checkpoint, record, "--processes", processes, "--batch-size", "3")
        assert main(again) == 0
    assert "holds this evaluation already" in (second := capfd.readouterr().out)
    assert second.partition("\n")[2] == first.partition("\n")[2]
    assert record.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "other",
    [
        ["--n", "5"],
        ["--tasks", "countdown,sudoku"],
        ["--problem-seed", "3"],
        ["--decoding.steps", "4"],
        ["--arm", "mine"],
        ["--system", "Be brief."],
        ["--dtype", "bfloat16"],
        ["--model", "tiny"],
    ],
)
def test_another_evaluation_is_none_that_is_finished(
    other: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "x.json"
    assert main(command(checkpoint, record)) == 0
    capsys.readouterr()
    assert main(command(checkpoint, record, *other)) == 2
    said = capsys.readouterr().err
    assert f"{record}: holds a finished evaluation of another model, or of other tasks or settings" in said
    assert len(said.splitlines()) == 1


def test_weights_that_were_trained_on_make_another_evaluation(checkpoint: Path, tmp_path: Path) -> None:
    model, record = tmp_path / "model", tmp_path / "x.json"
    shutil.copytree(checkpoint, model)
    assert main(command(model, record)) == 0
    os.utime(model / "model.safetensors", (1, 1))
    assert main(command(model, record)) == 2
