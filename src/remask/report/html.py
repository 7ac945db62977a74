"""The report: one self-contained HTML page made from run folders and evaluation files. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from remask.errors import UserError
from remask.evaluation.arms import ACCURACY, START, Evaluation, load_evaluation
from remask.files import write_atomically
from remask.report import figures
from remask.report.calibration import calibration_section
from remask.report.class_accuracy import class_accuracy_section
from remask.report.results import LEVEL, benchmark, comparable_groups, completions, tally
from remask.report.runs import Run, load_run, parse_examples
from remask.report.samples import samples
from remask.report.token_classes import class_section
from remask.report.tokens import heat_maps, strips
from remask.report.training import SFT, kind_of, training_sections
from remask.report.words import duration, method_order, pairs, plural

CARDS = 6
"""The number of verdicts above which only those that found something stand at the top, and a line counts the others."""

SHOWN_OPEN = 3
"""The number of arms whose texts are shown; those of further arms unfold on a click."""


def write_report(
    run_dirs: Sequence[Path],
    output: Path,
    *,
    title: str = "Remask report",
    evaluations: Sequence[Path] = (),
    lead: Sequence[str] = (),
) -> Path:
    """Write one HTML page of these runs and return its path. `lead` are sentences to open with, over a picture of the
    first task's scores.

    Evaluations are those lying in the run folders and the files named in `evaluations` (such as the starting model's).
    A section whose data are missing is left out, and the page says so. Raises UserError for a folder or file that
    cannot be read, for a run given twice, and where nothing was given. The file appears whole or not at all.
    """
    if not run_dirs and not evaluations:
        raise UserError("nothing to report on", mend="give run folders, evaluation files, or both")
    given: dict[Path, Path] = {}
    for path in run_dirs:
        if (place := path.resolve()) in given:
            raise UserError("the same run is given twice", where=f"{given[place]} and {path}", mend="give it once")
        given[place] = path
    runs = [load_run(path) for path in run_dirs]
    found = {e.path.resolve(): e for run in runs for e in run.evaluations}
    for path in evaluations:
        found.setdefault(Path(path).resolve(), load_evaluation(path))
    page = render(runs, list(found.values()), title, lead=lead)
    return _write(Path(output), page)


def _write(output: Path, page: str) -> Path:
    """The whole page or none."""
    if output.is_dir():
        raise UserError("is a folder, not a file", where=str(output), mend="give a file's name")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(output), mend="give another path") from error
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, is shown as its number.
    write_atomically(output, page.encode("utf-8", "backslashreplace"))
    return output


def write_inspection(record: dict[str, Any], output: Path) -> Path:
    """Write one HTML page of what `remask inspect` found and return its path."""
    model, objective, examples = record["model"], record["objective"], record["examples"]
    run = Run(Path(model), objective, None, "inspected", {"model": model}, "", [], [], parse_examples(examples), [])
    classes = class_section(record.get("classes"), objective, examples[0]["time"])
    page = render([run], [], f"{objective} on {model}", classes=classes)
    return _write(output, page)


def render(
    runs: Sequence[Run],
    evaluations: Sequence[Evaluation],
    title: str,
    *,
    classes: dict[str, Any] | None = None,
    lead: Sequence[str] = (),
) -> str:
    """Return the page as text; `classes` is what `class_section` makes of an inspection."""
    methods = method_order(runs, evaluations)
    runs = sorted(runs, key=lambda run: (methods.index(run.method), run.seed if isinstance(run.seed, int) else -1))
    # The starting model is grey; every trained method has a colour of its own, the same all over the page.
    trained = [method for method in methods if method != START]
    variables = {method: f"--c{i % figures.SERIES}" for i, method in enumerate(trained)} | {START: "--muted"}
    placeholders = {method: figures.series_colour(i) for i, method in enumerate(trained)} | {START: figures.MUTED}
    groups = comparable_groups(evaluations)
    answered = [group for group in groups if group.baseline.lead(group.task) == ACCURACY]
    benchmarks = [benchmark(group) for group in groups]
    verdicts = [verdict for b in benchmarks for verdict in b["verdicts"]]
    training, missing = training_sections(runs, placeholders)
    heat = heat_maps(runs)
    rollouts = samples(runs)
    learned = class_accuracy_section(runs, placeholders)
    unmasking = strips(evaluations)
    confidence, unrecorded = calibration_section(answered, placeholders)
    missing += unrecorded
    if not evaluations:
        missing.insert(0, "Results, unmasking and completions: there is no evaluation.")
    elif not unmasking:
        missing.append("Unmasking order: no evaluation holds a strip.")
    missing += _left_out(runs, heat=heat, classes=learned or classes, rollouts=rollouts)
    return _template().render(
        title=title,
        subtitle=_subtitle(runs, evaluations),
        lead=list(lead),
        colour=variables,
        verdicts=verdicts if len(verdicts) <= CARDS else [v for v in verdicts if v["found"]][:CARDS],
        tally=tally(verdicts) if len(verdicts) > CARDS else None,
        shown_open=SHOWN_OPEN,
        benchmarks=benchmarks,
        same_facts=len(benchmarks) > 1 and all(b["facts"] == benchmarks[0]["facts"] for b in benchmarks),
        comparisons=sum(len(b["differences"]) for b in benchmarks),
        training=training,
        learned=learned,
        classes=classes,
        heat=heat,
        calibration=confidence,
        strips=unmasking,
        rollouts=rollouts,
        completions=[completions(group) for group in answered],
        settings=[_settings(run) for run in runs],
        missing=missing,
        level=f"{100 * LEVEL:.0f}%",
    )


def _left_out(runs: Sequence[Run], *, heat: Any, classes: Any, rollouts: Any) -> list[str]:
    """Sentences about the sections for which no run has data."""
    kinds, said = {kind_of(run) for run in runs}, []
    unread = [(run.info.get("diagnostics") or {}).get("left_out") for run in runs]
    for why, count in Counter(str(why) for why in unread if why).items():
        said.append(f"Which tokens {plural(count, 'run')} masked, and got right before and after: {why}.")
    if SFT in kinds and not heat:
        said.append("Entropy over the text: no run holds an inspect.json.")
    if SFT in kinds and not classes:
        said.append("Right tokens by class: no run holds a class_accuracy.json that was read to the end.")
    if "rl" in kinds and not rollouts:
        said.append("Completions over training: no run holds a completions.jsonl.")
    return said


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("report.html.j2")


def _subtitle(runs: Sequence[Run], evaluations: Sequence[Evaluation]) -> str:
    parts = []
    if runs:
        models = dict.fromkeys(str(run.info["model"]) for run in runs if run.info.get("model"))
        parts.append(plural(len(runs), "training run") + (f" of {', '.join(models)}" if models else ""))
    if evaluations:
        tasks = dict.fromkeys(task for e in evaluations for task in e.tasks)
        parts.append(f"{plural(len(evaluations), 'evaluation')} on {', '.join(tasks)}")
    return " · ".join(parts)


def _settings(run: Run) -> dict[str, Any]:
    command = run.info.get("command")
    return {
        "name": run.name,
        "method": run.method,
        "seed": run.seed,
        "status": run.status,
        "time": duration(run.info.get("seconds")),
        "command": " ".join(map(str, command)) if isinstance(command, list) else command,
        "hardware": pairs(run.info.get("hardware") or {}),
        "versions": pairs(run.info.get("versions") or {}),
        "config": run.config,
    }
