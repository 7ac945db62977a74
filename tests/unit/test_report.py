"""The HTML report, from small run folders made here."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remask.errors import UserError
from remask.report import write_report
from remask.report.figures import smoothed
from remask.report.runs import load_run
from remask.report.tokens import glyph, strip_rows

NASTY = "<script>alert('x')</script> & <b>"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def confidence(place: int) -> dict[str, Any]:
    level = {"tokens": 4, "mean": 0.99 - place / 100, "least": 0.9 - place / 100}
    return {"text": level, "answer": level if place % 2 else None}


def evaluation(
    arm: str, seed: int | None, right: float, *, problems: int = 60, sure: bool = False, **change: Any
) -> dict[str, Any]:
    """An evaluation whose first share `right` of problems is answered correctly; `sure`: with falling confidence."""
    answers = [
        {
            "id": f"sudoku:{i}",
            "prompt": f"prompt {NASTY}",
            "completion": f"completion of {arm} {NASTY}",
            "reference": "1234",
            "correct": i < right * problems,
            "score": 1.0,
            "metrics": {"cells": 1.0 if i < right * problems else 0.25 + 0.01 * (i % 7)},
            "answer": "1234",
            "tokens": 12,
            **({"confidence": confidence(i)} if sure else {}),
        }
        for i in range(problems)
    ]
    return {
        "kind": "remask.evaluation",
        "format": 1,
        "model": arm,
        "arm": arm,
        "run_seed": seed,
        "decoding": {"steps": 40, "max_new_tokens": 80},
        "versions": {"remask": "0.1.0", "torch": "2.13.0"},
        "hardware": {"device": "cpu", "cores": 2},
        "seconds": 3.0,
        "tasks": {"sudoku": {"source": "generated test split, seed 0", "n": problems, "problems": answers}},
        "strip": {
            "prompt": "p",
            "tokens": ["a", "\n", " ", "<|eos|>"],
            "revealed_at": [1, 3, 2, None],
            "confidence": [0.9, 0.4, None, None],
            "steps": 3,
        },
    } | change


def run_dir(root: Path, method: str, seed: int, right: float) -> Path:
    """A whole run's folder."""
    folder = root / f"{method}-{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    record = {
        "kind": "remask.run",
        "status": "finished",
        "objective": {"name": method},
        "seed": seed,
        "model": "tiny",
        "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cpu"},
        "command": ["remask", "sft", "--objective", method],
        "seconds": 75.0,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(f"model: tiny\nobjective: {method}\nnote: '{NASTY}'\n")
    rows: list[dict[str, Any]] = []
    for step in range(10, 110, 10):
        norm = float(rng.random()) + 0.5
        norms = {"grad_norm_mean": norm, "grad_norm_max": 2 * norm}
        rows.append({"step": step, "loss": 3 / step, "effective_tokens": 1 / step, **norms})
        rows.append({"step": step, "eval_loss": 3 / step, "eval_nll": 2 / step})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    deciles = [{"low": i / 10, "high": (i + 1) / 10, "tokens": 100, "masked": 30 + 4 * i} for i in range(10)]
    (folder / "masking.json").write_text(json.dumps({"kind": "remask.masking", "deciles": deciles}))
    counts = {"tokens": {"number": [8, 4], "answer": [2, 0]}, "before": {"number": [4, 3], "answer": [1, 0]}}
    after = {"number": [6, 4], "answer": [2, 0]}
    table = {"kind": "remask.class_accuracy", "held_out": True, **counts, "after": after}
    (folder / "class_accuracy.json").write_text(json.dumps(table))
    example = {
        "prompt": f"question {NASTY}",
        "tokens": ["b", "\n", "<b>"],
        "entropy": [0.1, 1.25, 0.5],
        "beta": [0.3, 1.1, 0.7],
        "rate": [0.2, 0.8, 0.5],
        "time": 0.5,
    }
    (folder / "inspect.json").write_text(json.dumps({"kind": "remask.inspect", "examples": [example]}))
    (folder / "eval.json").write_text(json.dumps(evaluation(method, seed, right, sure=True)))
    return folder


class Balance(HTMLParser):
    """Checks that every element that must be closed is, in order, and collects ids."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("report")
    runs = [run_dir(root, m, s, r) for m, r in (("sft", 0.4), ("gift", 0.7)) for s in (0, 1)]
    start = root / "start.json"
    start.write_text(json.dumps(evaluation("start", None, 0.2, sure=True)))
    output = write_report(runs, root / "deep" / "report.html", title=f"Title {NASTY}", evaluations=[start])
    assert output == root / "deep" / "report.html"
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
    return output.read_text(encoding="utf-8")


def test_the_page_asks_nothing_of_the_network(page: str) -> None:
    assert not re.findall(r"https?://", re.sub(r'xmlns(:\w+)?="[^"]*"', "", page))
    assert not re.findall(r"<(link|iframe|img)\b|@import|\bsrc=|url\((?!#)|<script\b(?!>)", page)
    assert not re.findall(r"\bfetch\(|XMLHttpRequest|\bimport\b", "".join(SCRIPT.findall(page)))


def test_the_page_is_well_formed_and_its_ids_are_unique(page: str) -> None:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    for reference in re.findall(r'(?:url\(|href=")#([^")]+)', page):
        assert reference in parser.ids


def test_text_is_escaped(page: str) -> None:
    assert len(SCRIPT.findall(page)) == page.count("<script") == 1  # the animation's own
    assert "alert(" not in SCRIPT.findall(page)[0]
    assert "completion of gift &lt;script&gt;" in page
    assert "question &lt;script&gt;" in page
    assert "&lt;b&gt;</span>" in page  # a token of the heat map


def test_every_arm_and_section_is_there(page: str) -> None:
    for arm in ("start", "sft", "gift"):
        assert f"</i>{arm}" in page
    for section in ("results", "training", "learned", "entropy", "calibration", "unmasking", "completions", "settings"):
        assert f'<section id="{section}">' in page
    assert '<section id="missing">' not in page
    assert page.count("<svg ") == 7
    assert page.count('role="img" aria-label') >= 7


def test_colours_follow_the_page(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "#0102" not in page
    assert "#0103" not in page
    for svg in re.findall(r"<svg .*?</svg>", page, flags=re.DOTALL):
        assert "var(--c0)" in svg
        assert "var(--c1)" in svg
        assert "DejaVu" not in svg


def test_the_headline_says_what_was_found(page: str) -> None:
    assert "gift scores higher than sft" in page
    assert "+30.0 <small>points" in page
    assert "60 problems × 2 seeds" in page
    assert "+75.0 %" in page  # 0.3 / 0.4
    assert "+150 %" in page  # 0.5 / 0.2 − 1
    assert "<b>steps</b>40" in page


def test_tokens_carry_their_numbers(page: str) -> None:
    assert 'title="entropy 1.25 nats · β 1.10 · t_i 0.80"' in page
    assert "⏎" in page


def test_no_difference_is_called_that(tmp_path: Path) -> None:
    runs = [run_dir(tmp_path, "sft", 0, 0.4), run_dir(tmp_path, "gift", 0, 0.4)]
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No difference found between gift and sft" in page
    assert "scores higher" not in page
    assert "one training seed" in page  # what its interval cannot say


def test_many_arms_are_counted_at_the_top_and_folded_below(tmp_path: Path) -> None:
    arms = ["sft", "gift", "gift-raw", "gift-log", "dft", "rho1", "cart", "lift2"]
    runs = [run_dir(tmp_path, arm, 0, 0.9 if arm == "dft" else 0.4) for arm in arms]
    page = write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "7 comparisons with the baseline: 1 higher, 0 lower, 6 with no difference found." in page
    assert page.count('class="verdict') - page.count('class="verdicts') == 1
    assert page.count("<summary>5 more</summary>") == 3
    parser = Balance()
    parser.feed(page)
    assert parser.open == []


def test_missing_parts_are_left_out_and_named(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "dft", 0, 0.5)
    for name in ("masking.json", "class_accuracy.json", "inspect.json", "eval.json", "config.yaml", "metrics.jsonl"):
        (run / name).unlink()
    page = write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        "no evaluation",
        "no run holds an inspect.json",
        "no run holds a masking.json",
        "no run holds a class_acc",
        "no run logged loss",
    ):
        assert words in page
    assert "<svg" not in page
    assert '<section id="entropy">' not in page


def test_evaluations_alone_make_a_report(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(evaluation("dft", 0, 0.5)))
    page = write_report([], tmp_path / "report.html", evaluations=[path]).read_text(encoding="utf-8")
    assert '<section id="results">' in page
    assert '<section id="training">' not in page


def test_what_cannot_be_compared_stands_in_tables_of_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(evaluation("sft", 0, 0.4)))
    paths[1].write_text(json.dumps(evaluation("gift", 0, 0.4, decoding={"steps": 80, "max_new_tokens": 80})))
    page = write_report([], tmp_path / "report.html", evaluations=paths).read_text(encoding="utf-8")
    assert page.count('aria-label="Scores on sudoku"') == 2
    assert "minus sft" not in page


def test_a_file_named_twice_counts_once(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    page = write_report([run], tmp_path / "r.html", evaluations=[run / "eval.json"]).read_text(encoding="utf-8")
    assert "1 evaluation on sudoku" in page


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    link = tmp_path / "link"
    link.symlink_to(run)
    for again in (run, run / ".." / run.name, link):
        with pytest.raises(UserError, match="the same run is given twice"):
            write_report([run, again], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_nothing_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_report([], tmp_path / "report.html")


def test_a_folder_that_is_no_run_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run's folder") as caught:
        write_report([tmp_path], tmp_path / "report.html")
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    with pytest.raises(UserError, match="cannot be written"):
        write_report([run], run / "config.yaml" / "report.html")
    with pytest.raises(UserError, match="is a folder, not a file"):
        write_report([run], Path("."))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"step": 1}\nnot json\n'),
        ("metrics.jsonl", "[1]\n"),
        ("masking.json", '{"deciles": [{}]}'),
        ("class_accuracy.json", '{"held_out": true, "tokens": {"word": [1]}, "before": null}'),
        (
            "class_accuracy.json",
            '{"held_out": true, "tokens": {"word": [1]}, "before": null, "after": {"word": [1, 1]}}',
        ),
        ("inspect.json", '{"examples": [{"tokens": ["a"], "entropy": []}]}'),
        ("inspect.json", '{"examples": [{"tokens": ["a"]}]}'),
        ("eval.json", '{"kind": "remask.evaluation"}'),
        ("run.json", "{}"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    (run / name).write_text(text)
    with pytest.raises(UserError) as caught:
        load_run(run)
    assert name in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["objective", "model", "seed", "seconds", "hardware", "versions", "data", "training"])
@pytest.mark.parametrize("value", [True, [1], "text", 3, {"a": 1}])
def test_a_record_with_another_kind_of_value_is_shown_or_named(tmp_path: Path, key: str, value: Any) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, key: value}))
    try:
        write_report([run], tmp_path / "report.html")
    except UserError as error:
        assert f"{key}: not what a run records there" in str(error)  # noqa: PT017
        assert not (tmp_path / "report.html").exists()
    else:
        fits = {"objective": (str, dict), "seed": (int,), "seconds": (int,), "model": (str,), "training": (str,)}
        assert type(value) in fits.get(key, (dict,))


def test_half_a_surrogate_pair_is_shown_as_its_number(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    write_report([run], tmp_path / "report.html", title="a \ud800 b")
    assert r"a \ud800 b" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob(".*"))


def test_a_strip_that_cannot_be_drawn_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(evaluation("sft", 0, 0.4, strip={"tokens": ["a"], "revealed_at": []})))
    with pytest.raises(UserError, match="strip") as caught:
        write_report([], tmp_path / "report.html", evaluations=[path])
    assert str(path) in str(caught.value)


def test_a_running_runs_last_line_may_be_cut(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert load_run(run).series("loss") == ([1.0], [2.0])


def test_what_is_not_finite_is_not_drawn(tmp_path: Path) -> None:
    run = run_dir(tmp_path, "sft", 0, 0.4)
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.0}\n{"step": 3, "loss": null}\n'
    )
    assert load_run(run).series("loss") == ([2.0], [1.0])


def test_strip_cells_by_hand() -> None:
    rows = strip_rows({"tokens": ["a", "b", "c"], "revealed_at": [2, 1, None], "confidence": [0.5, 1.0, None]})["rows"]
    assert [row["step"] for row in rows] == [1, 2]
    assert [[cell["state"] for cell in row["cells"]] for row in rows] == [["m", "n", "m"], ["n", "o", "m"]]
    assert rows[0]["cells"][1]["alpha"] == "1.00"


def test_frames_of_the_animation_by_hand() -> None:
    """Frames count the steps that revealed something; a cell that was filled has none."""
    strip = strip_rows(
        {"tokens": ["a", "bb", "c", "d"], "revealed_at": [7, 3, None, 7], "confidence": [0.5, 1.0, None, 0]}
    )
    assert strip["frames"] == 2
    assert [cell["frame"] for cell in strip["cells"]] == [2, 1, None, 2]
    assert [cell["alpha"] for cell in strip["cells"]] == ["0.50", "1.00", "0.50", "0.00"]
    assert [cell["width"] for cell in strip["cells"]] == [1, 2, 1, 1]
    assert [row["step"] for row in strip["rows"]] == [1, 2]


def test_old_strips_without_confidence_are_shown() -> None:
    strip = strip_rows({"tokens": ["a"], "revealed_at": [0]})
    cell = {"frame": 1, "sure": None, "width": 1, "alpha": "0.50", "text": "a", "was": [], "begins": False}
    assert strip["cells"] == [cell]


def test_blocks_and_tokens_that_did_not_stay_are_shown() -> None:
    """Two blocks of two. At the first place x stands from step 0 and is replaced at step 3 by a; at the last one y
    stands from step 2 and is masked again at step 4, in which nothing is written.
    """
    strip = strip_rows(
        {
            "tokens": ["a", "b", "c", "d"],
            "revealed_at": [3, 1, 2, 5],
            "block": [0, 0, 1, 1],
            "earlier": [
                {"place": 0, "token": "x", "written_at": 0, "until": 3},
                {"place": 3, "token": "y", "written_at": 2, "until": 4},
            ],
        }
    )
    assert [cell["begins"] for cell in strip["cells"]] == [False, False, True, False]
    assert [cell["was"] for cell in strip["cells"]] == [[[1, 4, "x"]], [], [], [[3, 5, "y"]]]
    assert [cell["frame"] for cell in strip["cells"]] == [4, 2, 3, 5]
    assert (strip["blocks"], strip["replaced"]) == (2, 2)
    assert ["".join(cell["text"] or "." for cell in row["cells"]) for row in strip["rows"]] == [
        "x...",
        "xb..",
        "xbcy",
        "abcy",
        "abcd",
    ]


def test_the_animation_can_be_worked_without_a_pointer_and_is_still_without_a_script(page: str) -> None:
    section = page[page.index('<section id="unmasking">') :]
    film = section[section.index("<figure") : section.index("</figure>")]
    assert '<div class="controls" hidden><button type="button">Play</button>' in film
    assert '<input type="range" min="0" max="3" value="3" aria-label="Step">' in film
    assert film.count(" data-at=") == 3
    assert 'title="step 1, confidence 0.90"' in film
    assert "prefers-reduced-motion" in SCRIPT.findall(page)[0]


def test_a_long_strip_shows_its_last_step() -> None:
    strip = strip_rows({"tokens": ["x"] * 100, "revealed_at": list(range(1, 101)), "steps": 100})
    assert len(strip["rows"]) == 16
    assert strip["rows"][-1]["step"] == 100
    assert all(cell["state"] != "m" for cell in strip["rows"][-1]["cells"])
    newly = sum(cell["state"] == "n" for row in strip["rows"] for cell in row["cells"])
    assert newly == 100  # each token is new exactly once


@pytest.mark.parametrize(
    ("token", "text", "quiet"),
    [("\n", "⏎", True), ("  ", "··", True), ("<|endoftext|>", "◦", True), ("</answer>", "</answer>", False)],
)
def test_invisible_tokens_are_made_visible(token: str, text: str, quiet: bool) -> None:
    shown = glyph(token)
    assert (shown["text"], shown["quiet"]) == (text, quiet)


def test_smoothing_by_hand() -> None:
    np.testing.assert_allclose(smoothed([0.0, 3.0, 6.0, 0.0], 3), [1.5, 3.0, 3.0, 3.0])
