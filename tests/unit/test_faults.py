"""What a command says of an error: one line for the user's and the machine's, a traceback for this program's own."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import BPE

from remask import cli, config, progress
from remask.cli import main
from remask.config import LoraConfig, RlConfig
from remask.errors import UserError, one_line, shortened
from remask.faults import what_went_wrong
from remask.files import as_json, from_json, refuse_unwritable, refuse_unwritable_folder
from remask.training.model import trainable
from remask.training.rows import refuse_beyond_memory

EVAL = ["eval", "--model", "tiny-direct", "--tasks", "countdown", "--n", "1", "--decoding.max-new-tokens", "4"]


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def undecodable() -> None:
    b"\xff".decode()


MACHINE: dict[str, tuple[Callable[[], object], str]] = {
    "no such file": (lambda: Path("/no/such/file").read_bytes(), "/no/such/file: No such file or directory"),
    "a long name": (lambda: Path("/x" * 300).read_bytes(), "No such file"),
    "a name too long": (lambda: Path("y" * 300).read_bytes(), "File name too long"),
    "no room": (lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")), "No space left"),
    "memory of torch": (lambda: torch.empty(1 << 60), "not enough memory"),
    "memory of numpy": (lambda: bytearray(1 << 62), "not enough memory"),
    "sizes beyond all": (lambda: torch.empty(1 << 62, 1 << 62), "not enough memory"),
    "bytes that are no text": (undecodable, "text that cannot be read or written"),
    "tensors": (lambda: (_ for _ in ()).throw(SafetensorError("I/O error: No space left")), "I/O error: No space left"),
    "a tokenizer": (lambda: Tokenizer(BPE()).save("/"), "Is a directory (os error 21)"),
    "depth": (lambda: json.loads("[" * 100_000), "nested too deeply"),
    "depth of YAML": (lambda: yaml.safe_load("[" * 20_000), "nested too deeply"),
    "a number": (lambda: float(10**400), "a number is too large"),
}


@pytest.mark.parametrize("case", MACHINE)
def test_the_users_and_the_machines_errors_are_one_line(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call, said = MACHINE[case]
    monkeypatch.setattr("remask.commands.evaluate.run", lambda _: call())
    assert main(["eval"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("remask eval: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert len(error) < 500


def deeper(n: int) -> int:
    return deeper(n + 1)


@pytest.mark.parametrize(
    "call", [lambda: None.x, lambda: {}["x"], lambda: deeper(0), lambda: 1 // 0, lambda: torch.ones(2) @ torch.ones(3)]
)
def test_mistakes_of_the_program_keep_their_traceback(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised(call)
    assert what_went_wrong(error) is None
    monkeypatch.setattr("remask.commands.evaluate.run", lambda _: call())
    with pytest.raises(type(error)):
        main(["eval"])


def test_all_have_a_traceback_where_one_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REMASK_TRACEBACK", "1")
    assert main(["eval", "--n", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("remask eval: n = 0")


def test_json_is_what_the_standard_says() -> None:
    """No word for NaN and infinity; half a surrogate pair only as its number; and what is too deep is no JSON."""
    values = {"a": [1.5, float("nan"), (float("inf"), -float("inf"))], "b": "é漢", "c": None, "d": True}
    assert as_json(values) == '{"a": [1.5, null, [null, null]], "b": "é漢", "c": null, "d": true}'
    halved = as_json({"a": "é\ud800"})
    assert halved == r'{"a": "\u00e9\ud800"}'
    assert from_json(halved.encode()) == {"a": "é\ud800"}
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json("[" * 100_000)


@pytest.mark.parametrize("part", ["what", "where", "mend"])
def test_messages_are_one_line_of_a_length_to_be_read(part: str) -> None:
    """Whatever is quoted in them: a whole file, or characters that move the cursor, show nothing or are half a pair."""
    texts = {"what": "is wrong", "where": "a.json", "mend": "mend it"}
    told = str(UserError(**{**texts, part: "begin " + "x" * 100_000 + " end"}))
    assert len(told) < 1100
    assert "begin xxx" in told
    assert "xxx end" in told
    assert all(text in told for name, text in texts.items() if name != part)
    odd = str(UserError(**{**texts, part: "a\n\x1b[31m\x07\u202e\u2028\ud800é漢b"}))
    assert r"a\n\x1b[31m\x07\u202e\u2028\ud800é漢b" in odd
    assert odd == one_line(odd)


def test_a_file_that_cannot_be_read_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("remask.commands.evaluate.run", lambda _: Path("/no\nsuch\x1b[2J").read_bytes())
    assert main(["eval"]) == 2
    assert capsys.readouterr().err == "remask eval: /no\\nsuch\\x1b[2J: No such file or directory\n"
    assert main(["\n" * 500]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_long_texts_are_shortened_in_the_middle() -> None:
    assert shortened("a" * 160) == "a" * 160
    assert shortened("a" * 200 + "z") == "a" * 80 + " … " + "a" * 79 + "z"


# ---- streams ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An answer to be graded again: what grades, prints and writes as an evaluation does, but loads no torch."""
    path = tmp_path_factory.mktemp("stored") / "stored.json"
    assert main([*EVAL, "--json", str(path)]) == 0
    return path


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Of a new interpreter: how it finds its streams when it starts is what is looked at."""
    command = line.replace("REMASK", f"{sys.executable} -m remask.cli").replace("EVAL", " ".join(EVAL))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_terminal_of_ascii_gets_the_result(tmp_path: Path, stored: Path) -> None:
    done = shell(f"REMASK grade countdown {stored}", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "0.0 \\u2013 " in done.stdout  # the dash of an interval
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_no_file(closed: str, tmp_path: Path, stored: Path) -> None:
    """The next file that is opened would get their numbers, and what is said would go into it."""
    done = shell(f"REMASK grade countdown {stored} --json x.json {closed}", tmp_path)
    assert done.returncode == 0
    assert json.loads((tmp_path / "x.json").read_text())["kind"] == "remask.grades"


@pytest.mark.slow
def test_an_evaluation_without_any_stream_is_written(tmp_path: Path) -> None:
    assert shell("REMASK EVAL --json x.json <&- >&- 2>&-", tmp_path).returncode == 0
    assert json.loads((tmp_path / "x.json").read_text())["kind"] == "remask.evaluation"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_one_line(tmp_path: Path, stored: Path) -> None:
    done = shell(f"REMASK --help > /dev/full; REMASK grade countdown {stored} --json x.json > /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("No space left on device")
    assert (tmp_path / "x.json").exists()


def test_a_lost_working_directory_is_said(tmp_path: Path) -> None:
    done = shell(
        f"mkdir gone; cd gone; rmdir ../gone; PYTHONPATH={Path(cli.__file__).parents[1]} REMASK EVAL", tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "remask eval: the working directory is gone; go to another one: cd"


# ---- what is found before the work -----------------------------------------------------------------------------------


def test_links_to_nothing_are_named(tmp_path: Path) -> None:
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("nowhere")
    loop.symlink_to("loop")
    for path in (link, link / "run", loop / "run"):
        with pytest.raises(UserError, match=rf"^{tmp_path}/l(ink|oop): is a link to nothing"):
            refuse_unwritable_folder(path)
    with pytest.raises(UserError, match="is a link to nothing"):
        refuse_unwritable(str(link))
    (tmp_path / "nowhere").mkdir()
    refuse_unwritable_folder(link / "run")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rollout": {"prompts": 10**400}}, r"rollout\.prompts: too large a number"),
        ({"seed": 1 << 62, "max_steps": -(1 << 70)}, r"seed, max_steps: too large a number"),
        ({"output_dir": "a\0b"}, r"output_dir: holds a NUL character"),
        ({"trainer": {"extra": {"x": 10**50}}}, r"trainer\.extra\.x: too large a number"),
    ],
)
def test_values_that_nothing_can_work_with(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.from_dict(RlConfig, values, where="x.yaml")


@pytest.mark.parametrize(
    "flags",
    [
        ["rl", "--rollout.prompts", "9" * 400],
        ["rl", "--rollout.prompts", "1000000000000"],
        ["rl", "--rollout.minibatches", "2147483648"],
        ["rl", "--held-out.n", "2147483648"],
        ["rl", "--choices.draws", "2147483648"],
        ["dpo", "--choices.draws", "2147483648"],
        ["dpo", "--trainer.eval-draws", "2147483648"],
        ["sft", "--trainer.eval-draws", "2147483648"],
        ["sft", "--trainer.gradient-accumulation-steps", "2147483648"],
        ["sft", "--trainer.per-device-train-batch-size", "2147483648"],
    ],
)
def test_numbers_beyond_all_sense_are_refused_at_once(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--output-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert flags[1].removeprefix("--").replace("-", "_") in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_what_takes_long_and_has_no_known_end_says_that_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("remask.progress.LINE_SECONDS", 0.05)
    with progress.working("problems of sudoku"):
        for _ in range(20_000_000):  # work, not a pause
            pass
    said = capsys.readouterr().err.splitlines()
    assert len(said) > 1
    assert set(said) <= {f"problems of sudoku: {n} s gone" for n in range(60)}
    with progress.working("nothing to say"):
        pass
    assert capsys.readouterr().err == ""


def test_problems_of_an_evaluation_are_made_in_the_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("remask.progress.LINE_SECONDS", 0.05)
    assert main(["eval", "--model", "tiny-direct", "--tasks", "countdown", "--n", "999999"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("problems of countdown: ")
    assert "no more distinct test problems" in said[-1]
    assert main(["eval", "--n", "1000000000"]) == 2
    assert "n = 1000000000; give 1000000 or less" in capsys.readouterr().err


def test_adapters_wider_than_every_layer_are_refused(random_model: Any) -> None:
    with pytest.raises(UserError, match=r"lora\.rank = 100000000: no layer is wider than \d+"):
        trainable(random_model, "x", quantization=None, lora=LoraConfig(rank=100_000_000), seed=0)


def test_rows_beyond_the_machines_memory_are_refused(random_model: Any) -> None:
    with pytest.raises(UserError, match=r"16 rows of 100000000 tokens take \d+ GiB"):
        refuse_beyond_memory(random_model, 16, 100_000_000, torch.device("cpu"))
    refuse_beyond_memory(random_model, 16, 4096, torch.device("cpu"))


def test_a_library_that_is_not_there_is_named() -> None:
    assert "the library rich is not installed" in str(what_went_wrong(ModuleNotFoundError("x", name="rich.table")))
    assert what_went_wrong(ModuleNotFoundError("x", name="remask.gone")) is None
