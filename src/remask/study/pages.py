"""A study's results as Markdown, CSV, JSON, a figure (PNG and SVG) and one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2

from remask.config import StudyConfig
from remask.environment import hardware, versions
from remask.evaluation.statistics import Difference
from remask.files import as_json, write_atomically
from remask.progress import duration
from remask.report.words import p_value, plural
from remask.study.figure import draw, numbers
from remask.study.results import Found


def write_all(study: StudyConfig, name: str, found: Sequence[Found], folder: Path, command: str) -> dict[str, Path]:
    """Write every form of the results into `folder`, and return the paths by their kind."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"results.{kind}" for kind in ("md", "csv", "json", "svg", "png", "html")}
    record = {
        "kind": "remask.study",
        "name": name,
        "study": asdict(study),
        "command": command,
        "versions": versions(),
        "hardware": hardware(),
        "results": [f.row() for f in found],
    }
    write_atomically(files["json"], as_json(record, indent=1))
    write_atomically(files["csv"], as_csv(found))
    write_atomically(files["md"], markdown(study, name, found, command))
    draw(name, study.baseline, [f for f in found if f.leads], files)
    write_atomically(files["html"], as_html(study, name, found, command, files["svg"].read_text(encoding="utf-8")))
    return files


def answer(study: StudyConfig, found: Sequence[Found]) -> list[str]:
    """Return one sentence per arm, level and task that was compared: what was found, or that nothing was."""
    sentences = []
    for f in found:
        if not f.leads or f.against is None:
            continue
        at = "".join(f", {axis} {level}" for axis, level in f.levels.items())
        size = f"{difference(f.against.difference)} points, p {p_value(f.p_holm)}"
        verdict = f"{size} (Holm)" if f.found else f"no difference found ({size})"
        sentences.append(
            f"{f.arm} against {study.baseline} on {f.task}{at}: {verdict}; n = {f.score.n}, {plural(f.seeds, 'seed')}."
        )
    return sentences


def difference(d: Difference) -> str:
    """Return a difference and its interval as text, in points of percent."""
    return f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"


def percent(share: float | None) -> str:
    """Return a share in percent with its sign as text, or a dash for None."""
    return "–" if share is None else f"{100 * share:+.1f} %"


def columns(found: Sequence[Found]) -> tuple[list[str], list[list[str]]]:
    """Return heads and rows of the table that people read."""
    axes = list(dict.fromkeys(axis for f in found for axis in f.levels))
    several = len({f.metric for f in found}) > 1
    trained = any(f.gradient for f in found)
    heads = [*axes, "task", *(["metric"] if several else []), "arm", "seeds", "n", "mean, % [95 %]"]
    heads += ["difference, points [95 %]", "p (Holm)", "gain over score", "gain over delta", "cost, s"]
    heads += ["gradient norm: mean, std, max"] if trained else []
    rows = []
    for f in found:
        row = [*(f.levels[axis] for axis in axes), f.task, *([f.metric] if several else []), f.arm]
        row += [
            str(f.seeds),
            str(f.score.n),
            f"{100 * f.score.mean:.1f} [{100 * f.score.low:.1f}, {100 * f.score.high:.1f}]",
        ]
        if f.against is None:
            row += ["", "", "", ""]
        else:
            gain = f.against.gain
            row += [difference(f.against.difference), p_value(f.p_holm)]
            row += [percent(gain.over_score), percent(gain.over_delta)]
        row.append(f"{f.seconds:.0f}")
        if trained:
            row.append(", ".join(f"{value:.2f}" for value in f.gradient) if f.gradient else "")
        rows.append(row)
    return heads, rows


def markdown(study: StudyConfig, name: str, found: Sequence[Found], command: str) -> str:
    """Return the results as a page of Markdown."""
    heads, rows = columns(found)
    table = [heads, ["---"] * len(heads), *rows]
    lines = [f"# {name}", "", study.question, "", f"    {command}", ""]
    lines += [f"- {sentence}" for sentence in answer(study, found)]
    lines += ["", *("| " + " | ".join(row) + " |" for row in table), ""]
    return "\n".join(lines)


def as_csv(found: Sequence[Found]) -> str:
    """Return the results as CSV, one row for each of them."""
    rows = [f.row() for f in found]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
pre { background: #f3f4f6; padding: .6rem .8rem; overflow-x: auto; }
figure { margin: 1.5rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #dfe2e6; }
</style></head><body>
<h1>{{ name }}</h1><p>{{ question }}</p><pre>{{ command }}</pre>
<ul>{% for line in answers %}<li>{{ line }}</li>{% endfor %}</ul>
<figure>{{ figure | safe }}<figcaption>{{ caption }}</figcaption></figure>
<div class="table"><table><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p>{{ total }} of training and evaluation in all. {{ machine }}</p>
</body></html>
"""


def as_html(study: StudyConfig, name: str, found: Sequence[Found], command: str, svg: str) -> str:
    """Return the results as a page of HTML that needs no other file."""
    heads, rows = columns(found)
    cells = {(tuple(f.levels.items()), f.arm): f.seconds * f.seeds for f in found}
    machine = hardware()
    return (
        jinja2.Environment(autoescape=True)
        .from_string(PAGE)
        .render(
            name=name,
            question=study.question,
            command=command,
            answers=answer(study, found),
            figure=svg[svg.index("<svg") :],
            caption="" if numbers(found) else f"Filled: a difference to {study.baseline} was found (Holm, 5 %).",
            heads=heads,
            rows=rows,
            total=duration(sum(cells.values())),
            machine=", ".join(f"{key} {value}" for key, value in {**machine, **versions()}.items()),
        )
    )
