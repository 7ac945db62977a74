"""Is a model better on rows of one's own? From training to the comparison, by answers and by likelihood."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import remask
from remask.cli import main
from remask.data.canvas import Fill, build_rows
from remask.data.collate import Collator, Visit
from remask.data.sources import load_examples
from remask.data.token_classes import LEXICAL
from remask.diffusion.corruption import Canvas
from remask.diffusion.likelihood import elbo_coupled_views, estimate
from remask.diffusion.noise import Noise
from remask.evaluation.likelihood import NOISE_SEED, evaluate_likelihood
from remask.tasks.generated import generated_examples

SMALL = ["--decoding.max-new-tokens", "4", "--decoding.steps", "2", "--batch-size", "8"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    words = ("ab", "abc", "a", "bbbb", "cab", "ba")
    path.write_text("".join(json.dumps({"prompt": word, "completion": word[0]}) + "\n" for word in words))
    return path


def test_likelihood_is_the_mean_of_its_draws_whatever_the_batch(random_model: Any, tokenizer: Any, rows: Path) -> None:
    settings: Any = {"count": None, "draws": 3, "quiet": True}
    block = evaluate_likelihood(random_model, tokenizer, str(rows), batch_size=4, **settings)
    built = build_rows(load_examples(str(rows)).examples, tokenizer, max_length=99, over_long="error").rows
    collator = Collator(Fill("none"), tokenizer.eos_token_id, 99, NOISE_SEED)
    for i, (row, problem) in enumerate(zip(built, block["problems"], strict=True)):
        draws = []
        for draw in range(3):
            batch = collator([(row, Visit(i, draw, 3 * i + draw))])
            views = elbo_coupled_views(Canvas.of(batch), Noise.of(batch), tokenizer.mask_token_id)
            with torch.no_grad():
                draws.append(estimate(random_model, Canvas.of(batch), [views]).sequence.item())
        assert problem["elbo"] == pytest.approx(sum(draws) / 3, rel=1e-4)
        tokens, nats = (
            sum(said[part] for name, said in problem["classes"].items() if name in LEXICAL) for part in (0, 1)
        )
        assert (tokens, problem["classes"]["end"][0]) == (len(row.response), 1)
        assert nats == pytest.approx(-problem["elbo"])
        assert problem["metrics"]["likelihood"] == pytest.approx(math.exp(sum(draws) / 3 / len(row.response)), rel=1e-4)
    assert block["nats_per_token"] == pytest.approx(
        -sum(p["elbo"] for p in block["problems"]) / sum(p["tokens"] for p in block["problems"])
    )
    assert block["classes"]["end"][0] == len(built)
    alone = evaluate_likelihood(random_model, tokenizer, str(rows), batch_size=1, **settings)
    for one, other in zip(alone["problems"], block["problems"], strict=True):
        assert one["elbo"] == pytest.approx(other["elbo"], rel=1e-4)


def test_generated_rows_are_of_the_split_that_is_asked_for(tmp_path: Path) -> None:
    records = []
    for split in ("test", "validation"):
        path = tmp_path / f"{split}.json"
        asked = ["--model", "tiny-direct", "--data", "direct:sudoku:6", "--likelihood", "--draws", "1"]
        assert main(["eval", *asked, "--split", split, "--json", str(path)]) == 0
        records.append(json.loads(path.read_text())["tasks"]["likelihood"])
    said = [{problem["id"] for problem in record["problems"]} for record in records]
    assert [len(keys) for keys in said] == [6, 6]
    assert not said[0] & said[1]
    asked = ["eval", "--model", "tiny-direct", "--data", "direct:sudoku:6", "--likelihood", "--draws", "1", "--split"]
    assert main([*asked, "test", "--json", str(tmp_path / "test.json")]) == 0  # it is there already
    assert main([*asked, "validation", "--json", str(tmp_path / "test.json")]) == 2
    assert main([*asked, "test", "--n", "3", "--json", str(tmp_path / "test.json")]) == 2
    _, tokenizer = remask.load("tiny-direct")
    lengths = [
        len(tokenizer.encode(example.completion, add_special_tokens=False)) + 1
        for example in generated_examples("direct:sudoku:6", split="test", prompt_style="compact")
    ]
    assert [problem["tokens"] for problem in records[0]["problems"]] == lengths


def test_better_on_my_data(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fine-tune on rows, then evaluate start and run on rows of the same kind: likelier and better, and it is said."""
    run = tmp_path / "run"
    flags = ["--data", str(rows), "--output-dir", str(run), "--max-steps", "40", "--trainer.learning-rate", "3e-3"]
    assert main(["sft", "--model", "tiny-direct", *flags, "--trainer.report-to", "none"]) == 0
    files = []
    for model in ("tiny-direct", str(run)):
        files.append(str(tmp_path / f"{len(files)}.json"))
        asked = ["--tasks", f"match={rows}", "--data", str(rows), "--likelihood", "--draws", "4"]
        assert main(["eval", "--model", model, *asked, "--json", files[-1], *SMALL]) == 0
        assert "nats a token" in capsys.readouterr().out
    before, after = (json.loads(Path(file).read_text())["tasks"] for file in files)
    assert after["likelihood"]["nats_per_token"] < before["likelihood"]["nats_per_token"] - 0.5
    assert [p["id"] for p in after["likelihood"]["problems"]] == [p["id"] for p in before["likelihood"]["problems"]]
    assert main(["compare", *files]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "likelihood: sft is better than start by" in said
    assert "fewer are better" in said
    assert main(["compare", *files, "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)["nats_per_token"]["likelihood"][0]
    nats = [tasks["likelihood"]["nats_per_token"] for tasks in (before, after)]
    assert everything["name"] == "all tokens"
    assert [everything[side]["mean"] for side in ("baseline", "candidate")] == pytest.approx(nats)
    assert everything["difference"]["mean"] == pytest.approx(nats[1] - nats[0])
    assert everything["difference"]["high"] < 0
    assert main(["report", str(run), *files, "--output", str(tmp_path / "report.html")]) == 0
    assert "likelihood, %" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "x.jsonl"], "--data is given without --likelihood"),
        (["--likelihood"], "--likelihood is given without --data"),
        (["--tasks", ""], "there is no task"),
        (["--likelihood", "--data", "x.jsonl", "--draws", "0"], "draws = 0"),
        (["--likelihood", "--data", "gone.jsonl"], "gone.jsonl: no such file"),
        (["--tasks", "match=gone.jsonl"], "gone.jsonl: no such file"),
        (["--tasks", "match"], "match has no data set on the hub; give match=FILE"),
    ],
)
def test_what_cannot_be_evaluated_is_told(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *flags]) == 2
    assert said in capsys.readouterr().err
