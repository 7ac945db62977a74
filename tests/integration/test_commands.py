"""The command line: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remask import generate
from remask import load as load_model
from remask.cli import COMMANDS, main
from remask.commands.tour import RECIPE, study_of
from remask.config import StudyConfig, TourConfig, load
from remask.tasks import get

SMALL = ["--decoding.max-new-tokens", "24", "--decoding.steps", "6", "--n", "4"]


@pytest.fixture(scope="module")
def evaluations(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two evaluations of the same problems, and one of others."""
    folder = tmp_path_factory.mktemp("evaluations")
    files = {}
    for name, flags in {
        "a": ["--arm", "a"],
        "b": ["--arm", "b"],
        "other": ["--problem-seed", "1", "--arm", "b"],
        "steps": ["--decoding.steps", "12", "--arm", "b"],
    }.items():
        files[name] = folder / f"{name}.json"
        arguments = ["eval", "--model", str(checkpoint), "--json", str(files[name]), *SMALL, *flags]
        assert main(arguments) == 0
    return files


def test_help_lists_every_command_and_loads_no_torch() -> None:
    code = (
        "import sys; from remask.cli import main; main(['--help']); "
        "print(sorted(m for m in sys.modules if m in ('torch', 'transformers', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("[]")
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"])
    assert leave.value.code in (0, None)
    assert f"remask {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("compare", "A B"),
        ("grade", "TASK FILE..."),
        ("push", "RUN"),
        ("report", "RUN|EVALUATION..."),
        ("study", "STUDY.yaml"),
        ("generate", "[PROMPT...]"),
    ],
)
def test_the_usage_line_names_what_stands_without_a_flag(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"usage: remask {command} {words} " in capsys.readouterr().out


def test_an_evaluation_keeps_everything(evaluations: dict[str, Path]) -> None:
    record = json.loads(evaluations["a"].read_text())
    assert record["decoding"]["steps"] == 6
    assert record["decoding"]["reveal"] == "confidence"
    assert record["decoding"]["prompt_style"] == "compact"
    assert {"torch", "transformers", "remask"} <= set(record["versions"])
    assert record["hardware"]["device"] == "cpu"
    for task in ("sudoku", "countdown"):
        problems = record["tasks"][task]["problems"]
        assert len(problems) == 4
        assert all({"id", "prompt", "completion", "correct", "score", "metrics", "answer"} <= set(p) for p in problems)
        accuracy = record["tasks"][task]["metrics"]["accuracy"]
        assert accuracy["mean"] == sum(p["correct"] for p in problems) / 4
        assert accuracy["low"] <= accuracy["mean"] <= accuracy["high"]


def test_a_published_file_can_be_evaluated(shared: Path, checkpoint: Path, tmp_path: Path) -> None:
    source = shared / "data/sudoku_countdown/4x4_test_sudoku.csv"
    target = tmp_path / "e.json"
    arguments = ["eval", "--model", str(checkpoint), "--tasks", f"sudoku={source}", "--json", str(target), *SMALL]
    assert main(arguments) == 0
    task = json.loads(target.read_text())["tasks"]["sudoku"]
    assert task["source"] == str(source)
    assert task["problems"][0]["id"] == "sudoku:3102200002100320"


def test_compare_says_what_may_be_said(evaluations: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(evaluations["a"]), str(evaluations["b"])]) == 0
    assert "no difference found" in capsys.readouterr().out
    assert main(["compare", str(evaluations["a"]), str(evaluations["b"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {c["task"] for c in found["comparisons"]} == {"sudoku", "countdown"}
    assert all(c["difference"]["mean"] == 0 for c in found["comparisons"])


def test_compare_says_what_it_leaves_out(
    evaluations: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(evaluations["b"].read_text())
    del record["tasks"]["countdown"]
    path = tmp_path / "b.json"
    path.write_text(json.dumps(record))
    assert main(["compare", str(evaluations["a"]), str(path), "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["only_baseline"], found["only_candidate"]) == (["countdown"], [])
    assert said.err == "a alone has countdown: left out\n"
    assert main(["compare", str(path), str(evaluations["a"])]) == 0
    assert capsys.readouterr().err == "a alone has countdown: left out\n"


def test_compare_tells_two_arms_of_one_name_apart(
    evaluations: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ("a-long-name-" * 6)
    folder.mkdir()
    for name in ("x", "y"):
        (folder / f"{name}.json").write_bytes(evaluations["a"].read_bytes())
    assert main(["compare", str(folder / "x.json"), str(folder / "y.json")]) == 0
    said = capsys.readouterr().out
    assert "a (y.json) against a (x.json)" in said
    (head,) = (line for line in said.splitlines() if line.split()[:1] == ["task"])
    assert head.index("a (x.json)") < head.index("a (y.json)")
    assert main(["compare", str(evaluations["a"]), str(folder / "y.json")]) == 0
    said = capsys.readouterr().out
    assert "…" not in said
    assert re.search(r"sudoku +accuracy +\d+\.\d \[.*\] +\d+\.\d \[.*\] +[+-]\d", said)


@pytest.mark.parametrize(("other", "said"), [("other", "problem"), ("steps", "steps"), ("missing", "missing.json")])
def test_compare_refuses_what_cannot_be_compared(
    other: str, said: str, evaluations: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    second = evaluations.get(other, Path("missing.json"))
    assert main(["compare", str(evaluations["a"]), str(second)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_generate_prints_the_text_or_json(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", str(checkpoint), "--decoding.max-new-tokens", "8"]
    assert main(["generate", "say a", *flags]) == 0
    printed = capsys.readouterr().out
    assert main(["generate", *flags, "--json", "say a"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "say a"
    assert printed.rstrip("\n") == record["text"].rstrip("\n")
    assert len(record["token_ids"]) == 8
    assert main(["generate", *flags, "--stream", "True", "say a"]) == 0
    assert record["text"].strip() in capsys.readouterr().out


def test_generate_answers_every_line_or_none(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", str(checkpoint), "--decoding.max-new-tokens", "8", "--json"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n \nb\n"))
    assert main(["generate", *flags]) == 2
    assert "standard input, line 2: is blank" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n\n"))
    assert main(["generate", *flags]) == 0
    assert [record["prompt"] for record in json.loads(capsys.readouterr().out)] == ["a", "b"]


def test_a_tour_into_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "taken"
    file.touch()
    for folder in (file, file / "tour"):
        assert main(["tour", "--output-dir", str(folder)]) == 2
        assert f"{file}: is a file, not a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tour_says_what_was_found_and_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tour"
    flags = ["--seeds", "0", "--n", "4", "--rows", "16", "--steps", "1", "--output-dir", str(folder)]
    assert main(["tour", *flags]) == 0
    first = capsys.readouterr()
    assert "fine-tuning and evaluating: " in first.err
    assert "GIFT on the wrong tokens" in first.out
    assert "ESPO after GIFT" in first.out
    assert f"--model {folder / 'espo-0'}" in first.out
    assert (folder / "espo-0" / "model.safetensors").is_file()
    page = (folder / "report.html").read_text()
    assert page.count("1 seed)") >= 3
    assert page.index("1 seed)") < page.index("<main>")
    stamp = (folder / "gift-0" / "model.safetensors").stat().st_mtime_ns
    assert main(["tour", *flags]) == 0
    assert capsys.readouterr().out.split("  (")[0] == first.out.split("  (")[0]
    assert (folder / "gift-0" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_tour_is_the_study_of_its_recipe() -> None:
    study = load(StudyConfig, RECIPE)
    assert study_of(TourConfig()) == study
    quick = study_of(TourConfig(quick=True))
    assert (quick.seeds, list(quick.arms), quick.base["eval"]["n"]) == ((0,), ["sft", "gift", "gift-permuted"], 200)
    assert quick.base["sft"] == study.base["sft"]


@pytest.mark.parametrize(
    "flags", [["--n", "1"], ["--rows", "0"], ["--steps", "-1"], ["--seeds", "0", "0"], ["--processes", "0"]]
)
def test_a_tour_of_impossible_numbers_is_refused(flags: list[str], tmp_path: Path) -> None:
    assert main(["tour", *flags, "--output-dir", str(tmp_path / "tour")]) == 2
    assert not (tmp_path / "tour").exists()


def test_inspect_colours_writes_json_and_html(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", str(tmp_path / "i.json"), "--html", str(tmp_path / "i.html"), "--rows", "2", "--time", "0.25"]
    assert main(["inspect", "--model", str(checkpoint), "--data", str(data), *flags]) == 0
    assert "least sure" in capsys.readouterr().out
    example = json.loads((tmp_path / "i.json").read_text())["examples"][0]
    assert "".join(example["tokens"]).startswith("aaa")
    mean = sum(example["beta"]) / len(example["beta"])
    for entropy, beta, rate in zip(example["entropy"], example["beta"], example["rate"], strict=True):
        assert beta == pytest.approx(entropy**0.5, abs=1e-4)
        assert rate == pytest.approx(1 - 0.75 ** (beta / mean), abs=1e-3)
    page = (tmp_path / "i.html").read_text()
    assert "entropy" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_inspect_classes_the_tokens(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--json", str(tmp_path / "i.json"), "--html", str(tmp_path / "i.html"), "--classes"]
    assert main(["inspect", "--model", str(checkpoint), "--data", str(data), *flags]) == 0
    printed = capsys.readouterr().out
    assert "AUC of entropy" in printed
    record = json.loads((tmp_path / "i.json").read_text())
    assert len(record["examples"]) == record["classes"]["rows"] == 24
    classes = {one["name"]: one for one in record["classes"]["classes"]}
    assert set(classes) == {"word", "end", "step start"}
    assert all(f"\n{name} " in printed for name in classes)
    assert classes["end"]["tokens"] == classes["step start"]["tokens"] == 24
    assert sum(one["tokens"] for one in classes.values()) - 24 == sum(len(e["tokens"]) for e in record["examples"])
    page = (tmp_path / "i.html").read_text()
    assert page.count("<svg") == 2
    assert "Which tokens are uncertain" in page


def test_inspect_refuses_to_class_what_gives_no_interval(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "p", "completion": "c"}) + "\n")
    flags = ["--model", str(checkpoint), "--data", str(tmp_path / "one.jsonl"), "--classes"]
    assert main(["inspect", *flags, "--json", str(tmp_path / "i.json")]) == 2
    assert main(["inspect", *flags, "--rows", "1"]) == 2
    assert main(["inspect", *flags, "--html", str(tmp_path / "no" / "i.html")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 3
    assert not (tmp_path / "i.json").exists()


def test_the_embedded_model_answers_in_its_format() -> None:
    model, tokenizer = load_model("tiny")
    problem = get("sudoku").generate(1, split="test", seed=0)[0]
    (text,) = generate(model, tokenizer, [get("sudoku").prompt(problem, "compact")]).texts
    assert get("sudoku").grade(problem, text).answer is not None


def test_sft_then_eval_then_report(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    recipe = Path(__file__).parents[2] / "recipes/tiny/gift.yaml"
    flags = ["--config", str(recipe), "--model", str(checkpoint), "--data", str(data), "--output-dir", str(run)]
    changes = ["--objective", "gift-raw", "--trainer.learning_rate", "1e-4", "--max-steps", "2"]
    assert main(["sft", *flags, *changes]) == 0
    assert "gift-raw finished" in capsys.readouterr().out
    assert main(["eval", "--model", str(run), "--json", str(run / "eval.json"), *SMALL]) == 0
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    assert "gift-raw" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("objectiv: gift", "unknown key 'objectiv' (did you mean 'objective'?)"),
        ("trainer: {learning_rate: fast}", "trainer.learning_rate"),
        ("trainer: {lr: 1}", "unknown key 'trainer.lr'"),
        ("- a", "expected a mapping of keys to values, got ['a']"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_bad_config_is_one_line_and_exit_code_2(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(content)
    assert main(["sft", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(path) in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "holds no usable rows"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "line 2: not JSON"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": " "}', "line 2: the answer is empty"),
        ('{"prompt": "a", "completion": 3}', "line 1: completion is a number, not text"),
        ('{"inputs": "a", "outputs": "b"}', "line 1: no columns Remask knows"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: messages does not end with an assistant"),
    ],
)
def test_bad_data_names_file_and_line(
    rows: str, said: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(rows)
    run = tmp_path / "run"
    assert main(["sft", "--model", str(checkpoint), "--data", str(path), "--output-dir", str(run)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "bad.jsonl" in error
    assert not run.exists()


def test_bad_rows_can_be_skipped_and_are_listed(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\nnot json\n{"prompt": "a"}\n')
    run = tmp_path / "run"
    flags = ["--model", str(checkpoint), "--data", str(path), "--output-dir", str(run), "--on-bad-row", "skip"]
    assert main(["sft", *flags, "--max-steps", "1", "--trainer.report-to", "none"]) == 0
    skipped: list[Any] = json.loads((run / "run.json").read_text())["data"]["skipped"]
    assert len(skipped) == 2
    assert "line 2" in skipped[0]
    assert "line 3" in skipped[1]


def test_unknown_flags_and_commands_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    assert main(["sft", "--learning-rate", "1"]) == 2
    assert main(["sft", "--trainer.learning_rate", "fast"]) == 2
    assert main(["eval", "--tasks", "chess"]) == 2
    assert main(["eval", "--n", "1", "--decoding.steps", "0"]) == 2
    assert all(line.startswith("remask") for line in capsys.readouterr().err.strip().splitlines())
