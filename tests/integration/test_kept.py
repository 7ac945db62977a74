"""What checkpoints and a run's folder keep: whatever a run goes on from, its files are those of one that never stopped,
and none that was changed passes for what the run wrote.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from remask import config as configs
from remask.cli import main
from remask.config import (
    CanvasConfig,
    DecodingConfig,
    DpoConfig,
    HeldOutConfig,
    LoraConfig,
    PolicyEngineConfig,
    PreferenceChoicesConfig,
    PreferenceEngineConfig,
    ProbeConfig,
    RewardsConfig,
    RlConfig,
    RolloutConfig,
    SftConfig,
)
from remask.errors import UserError
from remask.preference.run import run_dpo
from remask.rl.run import run_rl
from remask.sft.run import run_sft
from remask.training.begun import KEPT
from remask.training.checkpoints import MANIFEST, checkpoints, step_of
from remask.training.lines import Lines
from started import Started

MakeConfig = Callable[..., SftConfig]
Untimed = Callable[[Path], list[dict[str, Any]]]
Weights = Callable[[Path], dict[str, torch.Tensor]]
Restored = Callable[[Path], AbstractContextManager[None]]
RUN: dict[str, Callable[..., Any]] = {"sft": run_sft, "rl": run_rl, "dpo": run_dpo}


@pytest.fixture
def make_run(make_config: MakeConfig, checkpoint: Path, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """A short run of a kind, with something held out; keywords are the engine's settings."""

    def make(kind: str, name: str = "run", **engine: Any) -> Any:
        folder = str(tmp_path / f"{kind}-{name}")
        common = {"learning_rate": 3e-3, "report_to": ("none",), **engine}
        if kind == "sft":
            return make_config(common, output_dir=folder, objective="gift", eval_data=str(data), max_steps=8)
        if kind == "rl":
            return RlConfig(
                model=str(checkpoint),
                tasks="countdown",
                problems=6,
                max_steps=8,
                output_dir=folder,
                rewards=RewardsConfig(functions=("length",)),
                rollout=RolloutConfig(
                    prompts=2, completions=3, inner_updates=3, decoding=DecodingConfig(max_new_tokens=8, steps=4)
                ),
                held_out=HeldOutConfig(n=2, decoding=DecodingConfig(max_new_tokens=8, steps=2)),
                trainer=PolicyEngineConfig(**common),
            )
        pairs = tmp_path / "pairs.jsonl"
        rows = [{"prompt": f"say {n}", "chosen": "a" * (1 + n % 5), "rejected": "B" * (1 + n % 3)} for n in range(12)]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"per_device_train_batch_size": 4, "num_train_epochs": 3, **common}
        return DpoConfig(
            model=str(checkpoint),
            data=str(pairs),
            eval_data=str(pairs),
            max_steps=8,
            output_dir=folder,
            canvas=CanvasConfig(max_length=64),
            choices=PreferenceChoicesConfig(draws=2),
            trainer=PreferenceEngineConfig(**settings),
        )

    return make


def forget_after(folder: Path, step: int) -> None:
    """As if the process had died before it wrote a later checkpoint: what it logged since is there."""
    for newer in checkpoints(folder):
        if step_of(newer) > step:
            shutil.rmtree(newer)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "running"}))


@pytest.mark.parametrize(("logging", "saving", "evaluating"), [(3, 2, 4), (5, 3, 0), (1, 3, 2)])
@pytest.mark.parametrize("kind", RUN)
def test_what_is_logged_is_that_of_a_run_that_never_stopped(
    kind: str, logging: int, saving: int, evaluating: int, make_run: Callable[..., Any], untimed: Untimed
) -> None:
    """Also in windows that a checkpoint stands in, of the last and shorter one, and of the means over all steps."""
    engine = {"logging_steps": logging, "save_steps": saving, "eval_steps": evaluating, "save_total_limit": None}
    config = make_run(kind, **engine)
    folder = RUN[kind](config, quiet=True).folder
    whole = untimed(folder)
    files = {path.name: path.read_bytes() for path in folder.glob("completions.jsonl")}
    assert [row["step"] for row in whole if "loss" in row] == [*range(logging, 8, logging), 8]
    assert [row["step"] for row in whole if "train_loss" in row] == [8]
    for step in [step_of(path) for path in checkpoints(folder)][::-1]:
        forget_after(folder, step)
        assert RUN[kind](replace(config, resume="auto"), quiet=True).finished
        assert untimed(folder) == whole
        assert {path.name: path.read_bytes() for path in folder.glob("completions.jsonl")} == files


def test_a_run_made_longer_logs_what_one_of_that_length_does(make_run: Callable[..., Any], untimed: Untimed) -> None:
    engine = {"logging_steps": 3, "save_steps": 2, "lr_scheduler_type": "constant", "num_train_epochs": 9}
    config = replace(make_run("sft", "short", **engine), eval_data=None)
    run_sft(replace(config, max_steps=4), quiet=True)
    run_sft(replace(config, max_steps=8, resume="auto"), quiet=True)
    whole = replace(make_run("sft", "long", **engine), eval_data=None)
    assert untimed(Path(config.output_dir)) == untimed(run_sft(whole, quiet=True).folder)


# ---- files that are not what the run wrote ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(make_config_in: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> SftConfig:
    config = make_config_in(
        tmp_path_factory.mktemp("begun"),
        {"save_steps": 3, "save_total_limit": None, "logging_steps": 2, "learning_rate": 3e-3},
        objective="gift",
        probe=ProbeConfig(policy="frozen"),
    )
    run_sft(config, quiet=True)
    forget_after(Path(config.output_dir), 6)
    return config


@pytest.fixture
def stopped(begun: SftConfig, restored: Restored) -> Iterator[SftConfig]:
    """A run as it is when its process died after step 9 of 12, its last checkpoint at 6."""
    with restored(Path(begun.output_dir)):
        yield begun


def resume(config: SftConfig) -> list[str]:
    return ["sft", "--config", f"{config.output_dir}/config.yaml", "--resume", "auto"]


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 3],
    "not UTF-8": lambda content: content[:40] + b"\xff\xfe\x80" + content[43:],
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "another thing": lambda content: b'["well-formed", "but another thing"]\n',
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.jsonl", "probe/start.safetensors"])
def test_a_harmed_file_is_refused_by_name(
    name: str, harm: str, stopped: SftConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(stopped.output_dir)
    before = (folder / name).read_bytes()
    (folder / name).write_bytes(HARMS[harm](before))
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(resume(stopped)) == 2
    said = capsys.readouterr().err
    assert str(folder / name) in said
    assert len(said.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    (folder / name).write_bytes(before)
    assert main(resume(stopped)) == 0


@pytest.mark.parametrize("name", ["config.yaml", f"checkpoint-6/{KEPT}", "checkpoint-6/window-0-of-1.json"])
def test_a_changed_value_is_refused(name: str, stopped: SftConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that is still a value, such as another seed or another number of steps."""
    folder = Path(stopped.output_dir)
    content = (folder / name).read_bytes()
    places = [place for place in range(len(content)) if chr(content[place]).isdigit()]
    for place in random.Random(0).sample(places, min(12, len(places))):
        other = b"7" if content[place : place + 1] != b"7" else b"3"
        (folder / name).write_bytes(content[:place] + other + content[place + 1 :])
        assert main(resume(stopped)) == 2
        assert Path(name).name in capsys.readouterr().err


def test_no_changed_byte_of_a_manifest_passes(stopped: SftConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(stopped.output_dir) / "checkpoint-6" / MANIFEST
    content = path.read_bytes()
    for place in random.Random(0).sample(range(len(content)), 40):
        changed = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        if changed.split() == content.split():  # another kind of space
            continue
        path.write_bytes(changed)
        assert main(resume(stopped)) == 2
        assert "checkpoint-6: cannot resume" in capsys.readouterr().err


def test_settings_that_were_changed_in_the_file_and_given_as_flags(stopped: SftConfig) -> None:
    """A run's config.yaml is a record: it is not edited, and without its first line it is not one. Elsewhere it is a
    config like any other.
    """
    path = Path(stopped.output_dir) / "config.yaml"
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    with pytest.raises(UserError, match=r"is not what the run wrote; .* give changes as flags"):
        run_sft(replace(stopped, resume="auto"), quiet=True)
    assert main(["sft", "--config", str(path), "--output-dir", f"{stopped.output_dir}-2", "--max-steps", "1"]) == 0
    path.unlink()
    assert run_sft(replace(stopped, resume="auto", max_steps=10), quiet=True).finished


def test_files_that_are_gone_are_told_of_or_not_needed(
    stopped: SftConfig, capsys: pytest.CaptureFixture[str], weights: Weights, make_config: MakeConfig
) -> None:
    folder = Path(stopped.output_dir)
    for name in ("run.json", "metrics.jsonl", "probe/start.safetensors"):
        (folder / name).unlink()
    assert run_sft(replace(stopped, resume="auto"), quiet=True).finished
    assert f"{folder}/metrics.jsonl is gone" in capsys.readouterr().err
    whole = run_sft(replace(stopped, output_dir=f"{folder}-whole"), quiet=True)
    a, b = weights(folder), weights(whole.folder)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("kind", "rank"), [("sft", 0), ("sft", 2), ("rl", 0), ("dpo", 0), ("dpo", 2)])
def test_other_weights_of_the_starting_model_are_refused_where_they_are_read(
    kind: str, rank: int, make_run: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    """By adapters, which are added to them, and by a reference that is compared with."""
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    config = replace(make_run(kind, save_steps=4), model=str(model), lora=LoraConfig(rank=rank))
    RUN[kind](config, quiet=True)
    forget_after(Path(config.output_dir), 4)
    tensors = load_file(model / "model.safetensors")
    tensors[min(tensors)] += 0.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    again = replace(config, resume="auto")
    if (kind, rank) == ("sft", 0):
        assert RUN[kind](again, quiet=True).finished
    else:
        with pytest.raises(UserError, match=rf"^{model}: its weights are not those that the run began with"):
            RUN[kind](again, quiet=True)


# ---- two processes at once -------------------------------------------------------------------------------------------


def both(*arguments: str) -> list[tuple[int, int, str]]:
    """(process, exit code, what it said) of the same command given twice at once."""
    pair = [Started(*arguments) for _ in range(2)]
    said = [process.communicate(240)[1] for process in pair]
    return [(process.pid, process.wait(), text) for process, text in zip(pair, said, strict=True)]


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_runs_in_one_folder_the_second_is_refused(
    resume: bool, make_run: Callable[..., Any], untimed: Untimed
) -> None:
    config = make_run("sft", "twice", save_steps=2)
    whole = untimed(run_sft(replace(config, output_dir=f"{config.output_dir}-whole"), quiet=True).folder)
    folder = Path(config.output_dir)
    if resume:
        run_sft(config, quiet=True)
        forget_after(folder, 4 if (folder / "checkpoint-4").exists() else 6)
    path = folder.parent / "settings.yaml"
    path.write_text(configs.dump(config))
    (pid, _, _), (_, _, said) = sorted(both("sft", "--config", str(path), "--resume", "auto"), key=lambda each: each[1])
    refused = f"{folder}: is being worked on by process {pid} on " in said
    assert refused or f"{folder} is already finished" in said  # where the first was done before the second looked
    assert untimed(folder) == whole
    assert not (folder / ".remask.lock").exists()


def test_of_two_evaluations_for_one_file_the_second_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    record = tmp_path / "x.json"
    flags = ["--tasks", "countdown", "--n", "40", "--batch-size", "1", "--decoding.max-new-tokens", "32"]
    found = sorted(both("eval", "--model", str(checkpoint), "--json", str(record), *flags), key=lambda each: each[1])
    if [code for _, code, _ in found] != [0, 0]:  # where the first was done before the second looked
        assert [code for _, code, _ in found] == [0, 2]
        assert f"{record}: is being worked on by process {found[0][0]} on " in found[1][2]
    assert len(json.loads(record.read_text())["tasks"]["countdown"]["problems"]) == 40
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


# ---- no room ---------------------------------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As where the disk is full: what is longer cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [12_000, 30_000, 100_000])
@pytest.mark.parametrize("kind", RUN)
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    kind: str, size: int, make_run: Callable[..., Any], weights: Weights
) -> None:
    """Too little room for the weights, or for the optimiser's state after them."""
    config = make_run(kind, save_steps=4, save_total_limit=None)
    folder = Path(config.output_dir)
    RUN[kind](config, quiet=True)
    whole = weights(folder)
    forget_after(folder, 4)
    with files_of_at_most(size), pytest.raises(UserError) as error:
        RUN[kind](replace(config, resume="auto"), quiet=True)
    said = str(error.value)
    assert said.startswith(f"{folder}/checkpoint-8: could not be written (")
    assert said.endswith(
        f"and go on from {folder}/checkpoint-4: remask {kind} --config {folder}/config.yaml --resume auto"
    )
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-4"]
    assert main([*said.rpartition(": remask ")[2].split()]) == 0
    assert all(torch.equal(value, whole[name]) for name, value in weights(folder).items())


def test_a_model_that_cannot_be_written_leaves_no_part_of_it(make_run: Callable[..., Any]) -> None:
    config = make_run("sft", save_steps=0)
    folder = Path(config.output_dir)
    with files_of_at_most(12_000), pytest.raises(UserError) as error:
        run_sft(config, quiet=True)
    assert str(error.value).startswith(f"{folder}: could not be written (")
    assert str(error.value).endswith("start anew with --overwrite: there is no checkpoint before it")
    assert not list(folder.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "config.json"])
def test_a_folder_in_the_way_of_the_model_is_not_told_as_want_of_room(name: str, make_run: Callable[..., Any]) -> None:
    """What the checkpoint holds can be gone on with when it is cleared away."""
    config = make_run("sft", save_steps=4)
    folder = Path(config.output_dir)
    (folder / name).mkdir(parents=True)
    with pytest.raises(UserError, match=r"could not be written \(.*Is a directory.*\); clear what stands") as error:
        run_sft(config, quiet=True)
    assert not list(folder.glob("*.safetensors"))
    (folder / name).rmdir()
    assert main([*str(error.value).rpartition(": remask ")[2].split()]) == 0
    assert (folder / name).is_file()


def test_metrics_that_cannot_be_written_are_one_error(make_run: Callable[..., Any], tmp_path: Path) -> None:
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.go_back(None)
    lines.append([{"step": 1, "loss": 1.0}])
    before = lines.path.read_bytes()
    with files_of_at_most(len(before) + 9), pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        lines.append([{"step": 2, "loss": 1.0}])
    assert lines.path.read_bytes() == before
    lines.append([{"step": 2, "loss": 1.0}])
    assert [json.loads(line)["step"] for line in lines.path.read_text().splitlines()] == [1, 2]
