"""Give commands what nobody should give them: each must work, or refuse in one clear line and leave nothing behind.

    python tests/fuzz/inputs.py --cases 500 --seed 0

A case is a command that works (`drafts.py`) of which one or two things are changed: an option's value, a row of data, a
setting of a file, a whole file, a flag. It runs in this process under a time limit. It must end with exit code 0, or
with 2, one line of at most `LONGEST` characters that begins with `remask COMMAND:`, and no file that was not there but
those of whole checkpoints.
What fails is kept as a folder with a `command.txt`, and `--only N` runs one case again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import random
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import odd
from drafts import DRAFTS, Draft, model_files

from remask.cli import main as remask

LONGEST = 1500
"""Characters of a message."""
MEMORY = 12 * 2**30
"""Bytes that this process may take: what asks for more is refused by the machine, as elsewhere."""
SLOW = {"max_steps", "num_train_epochs", "steps", "n", "problems", "draws", "gradients", "replicates", "reference"}
SLOW |= {"orders", "prompts", "completions", "exact_tokens", "max_new_tokens", "block_length", "total_rows"}
SLOW |= {"inner_updates", "eval_draws", "accumulation", "gradient_accumulation_steps", "length", "rows", "max_length"}
SLOW |= {"dataloader_num_workers", "processes", "rank", "lora_rank", "logging_steps", "save_steps", "timeout"}
"""Options of which a large number is a wish that takes long, and no mistake."""


@dataclass(frozen=True)
class Case:
    """A command line, the files it finds (None: a folder) and what stands on its standard input."""

    arguments: list[str]
    files: dict[str, bytes | None]
    stdin: str
    changes: list[str]
    hopeless: bool
    """Nothing but a refusal will do."""

    @property
    def command(self) -> str:
        return shlex.join(["remask", *self.arguments])


class TooLong(BaseException):
    """Past the time limit. No `except Exception` takes it."""


def options(kind: Any, start: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of all options of a config, and their types."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        hint = hints[one.name]
        if is_dataclass(hint):
            yield from options(hint, f"{start}{one.name}.")
        else:
            yield start + one.name, hint


def fitting(hint: Any, chance: random.Random) -> Any:
    """A value of an option's type, however odd; any where there is none."""
    kinds = [kind for kind in (hint, *get_args(hint)) if kind is not type(None)]
    allowed = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if allowed:
        return chance.choice(allowed)
    if get_origin(hint) is tuple:
        return [fitting(get_args(hint)[0], chance) for _ in range(chance.choice((1, 1, 2)))]
    if bool in kinds:
        return chance.choice((True, False))
    if float in kinds:
        return chance.choice(odd.NUMBERS)
    if int in kinds:
        return chance.choice([one for one in odd.NUMBERS if isinstance(one, int)])
    return chance.choice(odd.TEXTS) if str in kinds else odd.value(chance)


def put(tree: dict[str, Any], name: str, value: Any) -> None:
    *outer, last = name.split(".")
    for key in outer:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[last] = value


def changed_option(draft: Draft, chance: random.Random) -> str | None:
    unknown = [("unknown", Any), ("trainer.unknown", Any)]
    name, hint = chance.choice([*options(draft.kind)] * 3 + unknown)
    if name in ("dry_run", "processes"):  # what other processes do is not watched here
        return None
    value = fitting(hint, chance) if chance.random() < 0.7 else odd.value(chance)
    draft.hopeless |= (name, hint) in unknown or (isinstance(value, float) and math.isnan(value))
    if name.rpartition(".")[2] in SLOW and isinstance(value, int | float) and 100 < value < 2**62:
        return None
    if draft.takes_file and chance.random() < 0.6 and isinstance(draft.settings, dict):
        put(draft.settings, name, value)
        return f"{name}: {odd.shown(value)}"
    draft.flags += flag(name, odd.spelled(value), chance)
    return f"--{name} {odd.shown(value)}"


def flag(name: str, value: str, chance: random.Random) -> list[str]:
    name = f"--{name.replace('_', '-')}"
    return [f"{name}={value}"] if chance.random() < 0.5 or value.startswith("-") else [name, value]


def changed_tree(draft: Draft, chance: random.Random) -> str | None:
    """A value in a file, a row of data or the file of options."""
    trees = [*draft.trees] * 2 + (["settings"] if draft.takes_file else [])
    if not trees:
        return None
    name = chance.choice(trees)
    if name == "settings":
        draft.settings, how = odd.changed(draft.settings, chance)
    else:
        draft.trees[name], how = odd.changed(draft.trees[name], chance)
    return f"in {name} {how}"


def changed_json(draft: Draft, chance: random.Random) -> str | None:
    """A value in a JSON file of a model's or a run's folder."""
    names = [name for name in draft.files if name.endswith(".json")]
    if not names:
        return None
    name = chance.choice(names)
    try:
        tree = json.loads(draft.files[name] or b"")
    except (ValueError, RecursionError):  # damaged before
        return None
    tree, how = odd.changed(tree, chance)
    draft.files[name] = json.dumps(tree).encode()
    return f"in {name} {how}"


def given_a_folder(draft: Draft, chance: random.Random) -> str | None:
    """The model is a folder, with something wrong in it."""
    if not isinstance(draft.settings, dict) or draft.settings.get("model") != "tiny-direct":
        return None
    draft.settings["model"] = "model"
    draft.files |= model_files()
    names = [name for name in draft.files if name.startswith("model/")]
    return damaged(draft, chance, names) if chance.random() < 0.5 else changed_json(draft, chance)


def damaged(draft: Draft, chance: random.Random, names: list[str] | None = None) -> str | None:
    """Something is wrong with a whole file, or it is not there."""
    names = names or [*draft.trees, *draft.files, *(["settings.yaml"] if draft.takes_file else [])]
    if not names:
        return None
    name, how = chance.choice(names), chance.choice([*odd.DAMAGES, "gone", "gone"])
    draft.hopeless |= how in ("gone", "garbage", "a folder instead") and name in needed(draft)
    if how == "gone":
        draft.gone.add(name)
    else:
        draft.files[name] = odd.DAMAGES[how](content(draft, name), chance)
        draft.trees.pop(name, None)
    return f"{name} is {how}"


def needed(draft: Draft) -> set[str]:
    """The files without which a command can do nothing."""
    asked = [*draft.words, "settings.yaml", draft.settings.get("data") if isinstance(draft.settings, dict) else None]
    return {name for name in draft.trees if name in asked} | {"settings.yaml"}


def renamed(draft: Draft, chance: random.Random) -> str | None:
    """Rows of data in a file of another kind's name."""
    names = [name for name in draft.trees if name.endswith(".jsonl")]
    if not names:
        return None
    name, suffix = names[0], chance.choice((".json", ".csv", ".tsv", ".parquet", ".gz", ".jsonl.gz", ".txt", ""))
    new = name.removesuffix(".jsonl") + suffix
    draft.files[new] = content(draft, name)
    del draft.trees[name]
    draft.settings = json.loads(json.dumps(draft.settings).replace(name, new))
    draft.words = [word.replace(name, new) for word in draft.words]
    return f"{name} is called {new}"


def changed_flags(draft: Draft, chance: random.Random) -> str:
    """Words that nobody asked for, or fewer of them."""
    new = chance.choice(("", "-", "--", "--=", "word", "-x", "--no-json", "\udcff", "--config", "--help=1", "--json="))
    draft.flags.append(new)
    if draft.words and chance.random() < 0.5:
        draft.words = draft.words[1:]
    return f"with {new!r}, {len(draft.words)} words"


def changed_output(draft: Draft, chance: random.Random) -> str | None:
    """Where the output goes is something else already."""
    if not isinstance(draft.settings, dict):
        return None
    keys = [key for key in ("output_dir", "output", "json", "html") if isinstance(draft.settings.get(key), str)]
    if not keys or draft.settings[keys[0]] in ("", "."):
        return None
    place = draft.settings[keys[0]]
    if any(f"{name}/".startswith(f"{place}/") for name in draft.files):
        return None
    inside = chance.random() < 0.3
    held = chance.choice(("run.json", "config.yaml", "model.safetensors", "x"))
    draft.files[f"{place}/{held}" if inside else place] = chance.choice((b"{}", b"", b"text"))
    return f"{place} is {'a folder with something in it' if inside else 'a file'}"


def changed_stdin(draft: Draft, chance: random.Random) -> str | None:
    if not draft.stdin:
        return None
    draft.stdin = chance.choice(("", "\n", "\n\na\n", "\0", "\ufeff", "\ud800", "x" * 10_000, "<|mask|>\n"))
    return f"standard input {odd.shown(draft.stdin)}"


CHANGES = {
    changed_option: 8,
    changed_tree: 6,
    damaged: 4,
    given_a_folder: 3,
    changed_json: 2,
    renamed: 1,
    changed_flags: 1,
    changed_output: 1,
    changed_stdin: 1,
}


def content(draft: Draft, name: str) -> bytes:
    if name == "settings.yaml" and name not in draft.files:
        return odd.as_yaml(draft.settings)
    if name in draft.trees:
        tree = draft.trees[name]
        if name.endswith(".jsonl") and isinstance(tree, list):
            return odd.as_lines(tree)
        return odd.as_yaml(tree) if name.endswith(".yaml") else json.dumps(tree).encode()
    return draft.files.get(name) or b""


def case(seed: int, number: int) -> Case:
    """The case of that number, always the same one."""
    chance = random.Random(f"{seed} {number}")
    draft = chance.choices(list(DRAFTS), list(DRAFTS.values()))[0](chance)
    changes: list[str] = []
    wanted = 1 if chance.random() < 0.7 else 2
    while len(changes) < wanted:
        change = chance.choices(list(CHANGES), list(CHANGES.values()))[0]
        if (how := change(draft, chance)) is not None:
            changes.append(how)
    files: dict[str, bytes | None] = {name: content(draft, name) for name in draft.trees}
    files |= draft.files
    if draft.takes_file:
        files.setdefault("settings.yaml", odd.as_yaml(draft.settings))
    settings = ["--config", "settings.yaml"] if draft.takes_file else as_flags(draft.settings)
    if draft.takes_file and files["settings.yaml"] != odd.as_yaml(draft.settings):  # the defaults take longer
        settings += ["--model", "tiny-direct", "--output-dir", "out", "--max-steps", "1"]
        settings += ["--rollout.prompts", "1", "--rollout.completions", "2"] if draft.command == "rl" else []
    files = {name: data for name, data in files.items() if name not in draft.gone}
    arguments = [draft.command, *draft.words, *settings, *draft.flags]
    return Case(arguments, files, draft.stdin, [draft.command, *changes], draft.hopeless)


def as_flags(settings: Any, start: str = "") -> list[str]:
    """Options as they are written after a command."""
    if not isinstance(settings, dict):
        return []
    done: list[str] = []
    for key, value in settings.items():
        name = f"--{start}{key}".replace("_", "-")
        if isinstance(value, dict):
            done += as_flags(value, f"{start}{key}.")
        elif value is True:
            done.append(name)
        elif isinstance(value, list):
            done += [name, *map(odd.spelled, value)]
        else:
            done.append(f"{name}={odd.spelled(value)}")
    return done


def lay_out(case: Case, place: Path) -> None:
    for name, data in case.files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            path.mkdir(exist_ok=True)
        elif not path.is_dir():
            path.write_bytes(data)


def run(case: Case, place: Path, seconds: float) -> tuple[int | None, str | None]:
    """The exit code, and what is wrong with how the case ended: None where nothing is."""
    lay_out(case, place)
    before = set(place.rglob("*"))
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: Any = None
    stdin = io.StringIO(case.stdin)
    wrong: str | None = None
    with contextlib.chdir(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), given(stdin):
        try:
            with limited(seconds):
                code = remask(case.arguments)
        except SystemExit as leave:
            code = leave.code or 0
        except TooLong as error:
            wrong = f"took over {seconds:g} s, in {innermost(error)}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            wrong = "".join(traceback.format_exception(error)[-12:])
    said = err.buffer.getvalue().decode("utf-8", "backslashreplace")  # type: ignore[attr-defined]
    if wrong is None:
        wrong = fault(case, code, said, sorted(set(place.rglob("*")) - before), place)
    return code, wrong


def fault(case: Case, code: Any, said: str, new: list[Path], place: Path) -> str | None:
    if code not in (0, 2):
        return f"exit code {code}: {said[-500:]}"
    if "Traceback" in said:
        return f"a traceback is printed: {said[-1500:]}"
    if code == 0:
        return "what cannot be done is passed over" if case.hopeless else unreadable(new)
    start = f"remask {case.arguments[0]}: "
    told = [line for line in said.splitlines() if line.startswith(start)]
    last = said.rstrip("\n").rpartition("\n")[2]
    if len(told) != 1 or not last.startswith(start):
        return f"not one line of error at the end: {said[-500:]!r}"
    if len(last) > LONGEST:
        return f"a message of {len(last)} characters: {last[:200]} …"
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", last):
        return f"control characters in the message: {last!r}"
    kept = [str(path.relative_to(place)) for path in new if not is_whole_checkpoint(path)]
    return f"left behind: {', '.join(kept[:8])} ({last})" if kept else None


def is_whole_checkpoint(path: Path) -> bool:
    """Part of a checkpoint that is sealed: what a run that could not save its model goes on from."""
    return any((one / "remask_manifest.json").is_file() for one in (path, path.parent))


def unreadable(new: list[Path]) -> str | None:
    """What was written of JSON and is none, by the standard: NaN and infinity are not."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    for path in new:
        if path.suffix not in (".json", ".jsonl") or any("checkpoint-" in part for part in path.parts):
            continue
        lines = path.read_text(encoding="utf-8")
        try:
            for text in lines.splitlines() if path.suffix == ".jsonl" else [lines]:
                json.loads(text, parse_constant=refuse)
        except ValueError as error:
            return f"{path.name} is written and is not JSON ({error})"
    return None


def innermost(error: BaseException) -> str:
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "/remask/" in f.filename]
    return f"{ours[-1].filename.partition('/remask/')[2]}:{ours[-1].lineno}" if ours else "another library"


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def given(stdin: io.StringIO) -> Iterator[None]:
    before, sys.stdin = sys.stdin, stdin
    try:
        yield
    finally:
        sys.stdin = before


def offline() -> None:
    """No case asks the network: names of models and data sets are made up."""
    import datasets
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def keep(case: Case, wrong: str, place: Path) -> None:
    """The case as a folder of its own, to be run again by hand."""
    place.mkdir(parents=True, exist_ok=True)
    lay_out(case, place)
    told = "\n".join(["; ".join(case.changes), f"cd {place}", case.command, "", wrong])
    (place / "command.txt").write_text(told, encoding="utf-8", errors="backslashreplace")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, action="append", help="the number of a case to run alone")
    parser.add_argument("--seconds", type=float, default=30.0, help="the time limit of a case")
    parser.add_argument("--keep", type=Path, help="where to keep the cases that fail")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    offline()
    kept = asked.keep or Path(tempfile.mkdtemp(prefix="inputs-"))
    started, codes, failed = time.monotonic(), {0: 0, 2: 0}, []
    numbers = asked.only or range(asked.cases)
    for done, number in enumerate(numbers, 1):
        one = case(asked.seed, number)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="case-", ignore_cleanup_errors=True) as place:
            code, wrong = run(one, Path(place), asked.seconds)
        if code in codes:
            codes[code] += 1
        if asked.only:
            print(f"{one.command[:2000]}\n{'; '.join(one.changes)}\nexit code {code}")
        if wrong is not None:
            failed.append(number)
            keep(one, wrong, kept / str(number))
            print(f"case {number}: {'; '.join(one.changes)}\n  {wrong}\n  {kept / str(number)}", flush=True)
        if done % 25 == 0 or time.monotonic() - began > 5:
            print(f"{done}/{len(numbers)}  {time.monotonic() - started:.0f} s gone, {len(failed)} failed", flush=True)
    ended = f"{codes[0]} worked, {codes[2]} were refused, {len(failed)} failed"
    print(f"seed {asked.seed}: {len(numbers)} cases, {ended}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
