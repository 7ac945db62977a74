"""The HTML report of reinforcement-learning and preference runs, from small run folders made here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import NASTY, Balance, evaluation, run_dir

from remask.report import write_report
from remask.report.runs import load_run


def completion(reward: float | None, /, **change: Any) -> dict[str, Any]:
    return {
        "text": f"text worth {reward} {NASTY}",
        "tokens": 57,
        "ended": True,
        "reward": reward,
        "rewards": {"task": reward, "format": 1.0},
        "advantage": None if reward is None else reward - 0.5,
    } | change


def group(rollout: int, problem: str = "sudoku:1", /, **change: Any) -> dict[str, Any]:
    rewards = (0.5, 0.0, None, 1.0)
    return {
        "rollout": rollout,
        "step": 8 * rollout,
        "task": "sudoku",
        "problem": problem,
        "prompt": f"prompt of {problem} {NASTY}",
        "completions": [completion(reward) for reward in rewards],
    } | change


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder_of(
    root: Path,
    method: str,
    seed: int,
    metrics: list[dict[str, Any]],
    groups: list[dict[str, Any]] | None = None,
    training: str = "rl",
    **config: Any,
) -> Path:
    folder = root / f"{method}-{seed}"
    folder.mkdir(parents=True)
    record = {
        "kind": "remask.run",
        "training": training,
        "status": "finished",
        "objective": {"name": method, "likelihood": "elbo_coupled", "level": "sequence"},
        "seed": seed,
        "model": "tiny",
        "task": "sudoku",
        "seconds": 90.0,
    }
    (folder / "run.json").write_text(json.dumps(record))
    settings = {"output_dir": str(folder), "seed": seed, "learning_rate": 1e-4} | config
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    if metrics:
        (folder / "metrics.jsonl").write_text(lines(metrics))
    if groups is not None:
        (folder / "completions.jsonl").write_text(lines(groups))
    return folder


def rl_metrics(seed: int, **without: None) -> list[dict[str, Any]]:
    """Forty updates, ten rollouts, an evaluation every ten updates."""
    rows: list[dict[str, Any]] = []
    for step in range(1, 41):
        row = {
            "step": step,
            "loss": 0.01 * (-1) ** step,
            "kl": 0.001 * step,
            "ratio_mean": 1.0,
            "ratio_max": 1.0 + 0.01 * step,
            "clip_low": 0.0,
            "clip_high": 0.1,
            "elbo_per_token": -1.0,
            "grad_norm_mean": 0.5,
            "grad_norm_max": 1.5,
            "tokens_per_second": 5000.0,
        }
        if step % 4 == 1:
            row |= {
                "reward_mean": step / 40 + 0.01 * seed,
                "reward_std": 0.3,
                "reward_task": step / 40,
                "reward_format": 1.0,
                "zero_spread": 0.25,
                "diversity": 0.75,
                "completion_tokens": 60.0,
                "ended": 1.0,
                "rollout_tokens_per_second": 900.0,
                "share_sampling": 0.5,
                "share_grading": 0.05,
                "share_scoring": 0.2,
                "share_update": 0.2,
            }
        rows.append({key: value for key, value in row.items() if key not in without})
        if step % 10 == 0:
            rows.append({"step": step, "eval_sudoku_accuracy": step / 100 + 0.1 * seed, "eval_sudoku_score": 0.9})
    return rows


def dpo_metrics() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, 60, 10):
        rows.append({"step": step, "loss": 0.7, "margin": 0.2, "accuracy": 0.6, "grad_norm_mean": 1.0})
        rows.append({"step": step, "eval_loss": 0.75, "eval_margin": 0.125, "eval_accuracy": 0.55})
    return rows


NO_RATIO = dict.fromkeys(("ratio_mean", "ratio_max", "clip_low", "clip_high", "kl"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of every kind of run."""
    root = tmp_path_factory.mktemp("mixed")
    kept = [group(rollout, f"sudoku:{k}") for rollout in range(1, 11) for k in (1, 2, 3)]
    runs = [
        run_dir(root, "sft", 0, 0.4),
        folder_of(root, "espo", 0, rl_metrics(0), kept),
        folder_of(root, "espo", 1, rl_metrics(1), kept[:1]),
        folder_of(root, "wd1", 0, rl_metrics(0, **NO_RATIO)),
        folder_of(root, "vrpo", 0, dpo_metrics(), training="dpo"),
    ]
    (runs[1] / "eval.json").write_text(json.dumps(evaluation("espo", 0, 0.7, sure=True)))
    return write_report(runs, root / "report.html").read_text(encoding="utf-8")


def section(page: str, anchor: str) -> str:
    start = page.index(f'<section id="{anchor}">')
    return page[start : page.index("</section>", start)]


def figure_names(text: str) -> list[str]:
    return re.findall(r"<figure><h3>(.*?)</h3>", text)


def caption(text: str, name: str) -> str:
    return re.findall(rf"<h3>{re.escape(name)}</h3>.*?<figcaption>(.*?)</figcaption>", text, flags=re.DOTALL)[0]


def row(text: str, run: str) -> list[str]:
    """A run's cells in the table of a section, without tags."""
    found = re.findall(rf"<tr><th[^>]*>(?:<i[^>]*></i>)?{run}</th>(.*?)</tr>", text, flags=re.DOTALL)[0]
    return [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", found, flags=re.DOTALL)]


@pytest.mark.slow
def test_a_mixed_page_is_well_formed_and_loads_nothing(mixed: str) -> None:
    parser = Balance()
    parser.feed(mixed)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', mixed):
        assert reference in parser.ids
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", mixed))
    assert mixed.count("<script") == 1  # the animation's own
    assert "#0102" not in mixed
    assert "#0103" not in mixed


def test_every_kind_has_its_own_section_and_figures(mixed: str) -> None:
    assert figure_names(section(mixed, "training")) == [
        "Training loss",
        "Held-out nll, nats per token",
        "Gradient norm",
        "Effective tokens of a step",
        "Masked share by token entropy",
    ]
    assert figure_names(section(mixed, "preference")) == [
        "Preference loss",
        "Preference accuracy",
        "Margin",
        "Gradient norm",
    ]
    shown, folded = section(mixed, "reinforcement").split('<details class="more">')
    assert figure_names(shown) == [
        "Reward",
        "Held-out accuracy, sudoku",
        "KL to the reference, nats per token",
        "Ratio to the sampling policy",
        "Clipped ratios",
        "ELBO, nats per token",
        "Groups of equal rewards",
        "Diversity",
        "Gradient norm",
    ]
    assert figure_names(folded) == [
        "Reward, task",
        "Reward, format",
        "Completion length, tokens",
        "Completions that end",
        "Policy loss",
    ]
    assert "<h2>Supervised fine-tuning</h2>" in mixed
    assert '<section id="missing">' not in mixed


def test_a_figure_counts_the_runs_that_logged_its_quantity(mixed: str) -> None:
    text = section(mixed, "reinforcement")
    assert caption(text, "Reward").endswith("Runs: 2 of espo, 1 of wd1.")
    assert caption(text, "Ratio to the sampling policy").endswith("Runs: 2 of espo.")
    assert caption(section(mixed, "training"), "Training loss").endswith("Runs: 1 of sft.")


def test_the_table_of_runs_holds_their_numbers(mixed: str) -> None:
    text = section(mixed, "reinforcement")
    espo = ["espo", "1", "40", "0.935", "50.0 %", "0.0385", "1.40", "50 / 5 / 20 / 20", "900", "5,000", "90 s", "1.5"]
    assert row(text, "espo-1") == [*espo, "elbo_coupled, sequence", "finished"]
    assert row(text, "wd1-0")[3:7] == ["0.925", "40.0 %", "–", "–"]
    assert row(section(mixed, "preference"), "vrpo-0")[3:6] == ["0.7500", "55.0 %", "0.125"]
    assert 'aria-label="sampling 50 %, grading 5 %, scoring 20 %, update 20 %"' in text
    assert re.findall(r"--p:var\(--p(\d)\);width:([\d.]+)%", text)[:4] == [
        ("0", "50.00"),
        ("1", "5.00"),
        ("2", "20.00"),
        ("3", "20.00"),
    ]


def test_completions_over_training_are_few_ordered_and_escaped(mixed: str) -> None:
    text = section(mixed, "rollouts")
    assert "8 of 30 kept groups from 10 rollouts, the same problems over time" in text
    assert "1 of 1 kept groups<" in text
    assert re.findall(r">rollout (\d+)<span class=\"note\">step (\d+)<", text) == [
        ("1", "8"),
        ("4", "32"),
        ("7", "56"),
        ("10", "80"),
        ("1", "8"),
    ]
    first = text[text.index("<article") : text.index("</article>")]
    assert "prompt of sudoku:1 &lt;script&gt;" in first
    assert re.findall(r'reward <b class="num">(.*?)</b>', first) == ["1.00", "0.00", "0.50", "–"]
    assert re.findall(r'advantage <b class="num">(.*?)</b>', first) == ["+0.50", "−0.50", "0.00", "–"]
    assert re.findall(r'class="mark \w+">(\w+)<', first) == ["best", "worst"]
    assert "2 more completions" in first
    assert "text worth 1.0 &lt;script&gt;alert(&#39;x&#39;)" in first
    assert "sudoku:3" not in text
    assert text.count("<details open>") == 1


def test_names_out_of_the_files_are_escaped(tmp_path: Path) -> None:
    evil = '"><script>x</script>'
    metrics = [
        {"step": 1, "reward_mean": 1.0, f"eval_{evil}_accuracy": 0.5, f"reward_{evil}": 1.0},
        {"step": 2, "reward_mean": 1.0, f"eval_{evil}_accuracy": 0.5, f"reward_{evil}": 1.0},
    ]
    kept = [group(1, evil, task=evil, completions=[completion(1.0, rewards={evil: 1.0, "b": 0.0})])]
    run = folder_of(tmp_path, "espo", 0, metrics, kept)
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;x&lt;/script&gt;") >= 6
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert all(re.fullmatch(r"[\w.-]+", id) for id in parser.ids)


@pytest.mark.parametrize("training", ["rl", "dpo"])
def test_a_run_that_has_only_begun_is_a_row_of_dashes(tmp_path: Path, training: str) -> None:
    run = folder_of(tmp_path, "espo", 0, [], training=training)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: value for key, value in record.items() if key != "seconds"}))
    (run / "completions.jsonl").write_text('{"rollout": 0, "st')
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    anchor = {"rl": "reinforcement", "dpo": "preference"}[training]
    assert set(row(section(page, anchor), "espo-0")[2:-2]) <= {"–", "elbo_coupled, sequence"}
    assert "<svg" not in page
    assert '<section id="rollouts">' not in page
    assert "Gradient norm: no run logged grad_norm_mean." in page
    assert "inspect.json" not in page
    assert "masking.json" not in page


def test_what_one_kind_lacks_is_said_of_that_kind(tmp_path: Path) -> None:
    runs = [run_dir(tmp_path, "sft", 0, 0.4), folder_of(tmp_path, "wd1", 0, rl_metrics(0, **NO_RATIO))]
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    left_out = re.findall(r"<li>(.*?)</li>", section(page, "missing"))
    assert "Reinforcement learning, ratio to the sampling policy: no run logged ratio_mean." in left_out
    assert "Completions over training: no run holds a completions.jsonl." in left_out
    assert not [line for line in left_out if "Training loss" in line or "Supervised" in line]


def test_the_kind_of_a_run_is_read(tmp_path: Path) -> None:
    assert load_run(run_dir(tmp_path, "sft", 0, 0.4)).training == "sft"
    assert load_run(folder_of(tmp_path, "vrpo", 0, [], training="dpo")).training == "dpo"


def test_both_kls_have_a_curve_of_their_own(tmp_path: Path) -> None:
    to_old = [{("kl_old" if key == "kl" else key): value for key, value in row.items()} for row in rl_metrics(0)]
    runs = [folder_of(tmp_path, "espo", 0, rl_metrics(0)), folder_of(tmp_path, "tracerl", 0, to_old)]
    for run, name in zip(runs, ("KL to the reference", "KL to the policy that wrote the answers"), strict=True):
        page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
        assert [found for found in figure_names(page) if found.startswith("KL")] == [f"{name}, nats per token"]


def test_a_kind_of_training_that_is_not_known_is_shown_by_what_it_logged(tmp_path: Path) -> None:
    run = folder_of(tmp_path, "new", 0, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}], training="distil")
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    assert figure_names(section(page, "training")) == ["Training loss"]
