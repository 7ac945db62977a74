"""`remask push`: what is published of a run, where to, and what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from remask import load
from remask.cli import main
from remask.config import LoraConfig, SftConfig
from remask.publishing import hub, publication
from remask.publishing.folders import write_folder
from remask.publishing.publication import identity_in
from remask.sft.run import run_sft

FULL, ADAPTER = "run", "adapters"


@pytest.fixture(scope="module")
def runs(make_config_in: Callable[..., SftConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of all weights that kept a checkpoint, one of adapters, and evaluations of the first."""
    folder = tmp_path_factory.mktemp("published")
    config = replace(make_config_in(folder, {"save_steps": 1}), max_steps=1)
    run_sft(config, quiet=True)
    adapters = replace(config, output_dir=str(folder / ADAPTER), lora=LoraConfig(rank=2))
    run_sft(adapters, quiet=True)
    for name, seed in (("scores", 0), ("other", 1)):
        (folder / f"{name}.json").write_text(json.dumps(evaluation(seed)))
    return folder


def evaluation(seed: int) -> dict[str, Any]:
    """Three answers of four right, and two rows read: 30 nats over 20 tokens."""
    answers = [{"id": str(i), "correct": i > 0, "metrics": {}} for i in range(4)]
    rows = [
        {"id": f"r{i}", "correct": None, "metrics": {"likelihood": 0.2}, "tokens": 10, "elbo": nats, "classes": {}}
        for i, nats in enumerate((-10.0, -20.0))
    ]
    return {
        "kind": "remask.evaluation",
        "model": "/elsewhere/run",
        "arm": "sft",
        "run_seed": seed,
        "decoding": {"steps": 7, "guidance": 0.0},
        "versions": {"python": "3", "torch": "2"},
        "hardware": {"processor": "a processor"},
        "tasks": {
            "sudoku": {"source": "/secret/folder/puzzles.csv", "problems": answers},
            "likelihood": {"source": "rows.jsonl", "lead": "likelihood", "problems": rows},
        },
    }


def test_a_published_folder_is_the_model_with_a_card(runs: Path, tmp_path: Path) -> None:
    target, scores = tmp_path / "model", str(runs / "scores.json")
    command = ["push", str(runs / FULL), "--to", str(target), "--licence", "mit", "--base", "owner/base"]
    assert main([*command, "--evaluations", scores]) == 0
    card = ModelCard.load(target / "README.md")
    said = card.data
    assert (said.library_name, said.pipeline_tag, said.license) == ("remask", "text-generation", "mit")
    assert (said.base_model, said.tags) == ("owner/base", ["remask", "diffusion", "sft"])
    found = {result.metric_type: result for result in said.eval_results}
    assert found["accuracy"].metric_value == 75.0
    assert found["accuracy"].dataset_name == "sudoku (puzzles.csv)"
    assert found["nats a token"].metric_value == 1.5
    assert "| sudoku | accuracy | 75.0 % [30.1, 95.4] | 4 |" in card.content  # Wilson's of 3 in 4
    assert "| steps | 1 |" in card.content
    assert "Decoding: steps 7." in card.content
    digest = json.loads((runs / FULL / "run.json").read_text())["data"]["digest"]
    assert f"| {digest} |" in card.content
    assert "/secret" not in card.content
    assert str(runs) not in card.content
    assert {path.name for path in target.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *(name for name in ("generation_config.json", "chat_template.jinja") if (runs / FULL / name).exists()),
    }
    assert_same_logits(runs / FULL, target)
    assert main(command) == 0  # the same run again: without scores now
    assert "75.0 %" not in (target / "README.md").read_text()


def assert_same_logits(run: Path, published: Path) -> None:
    (model, tokenizer), (again, _) = load(run), load(published)
    ids = torch.tensor([tokenizer.encode("say a")])
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_another_model_is_replaced_only_where_it_is_said(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model"
    assert main(["push", str(runs / ADAPTER), "--to", str(target)]) == 0
    assert_same_logits(runs / ADAPTER, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert main(["push", str(runs / FULL), "--to", str(target)]) == 2
    assert "holds another model" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert main(["push", str(runs / FULL), "--to", str(target), "--overwrite"]) == 0
    assert not (target / "adapter_config.json").exists()
    (target / "notes.txt").write_text("mine")
    assert main(["push", str(runs / FULL), "--to", str(target), "--overwrite"]) == 2
    assert "other files than a model's: notes.txt" in capsys.readouterr().err
    assert (target / "notes.txt").read_text() == "mine"


def test_what_cannot_be_written_leaves_all_as_it_was(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model"
    command = ["push", str(runs / FULL), "--to", str(target)]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def full(source: Path, place: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("remask.publishing.folders.shutil.copyfile", full)
    assert main(command) == 2
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_dry_run_lists_files_and_writes_nothing(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(runs / FULL), "--to", str(tmp_path / "model"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    size = (runs / FULL / "model.safetensors").stat().st_size
    assert f"{size:>15,}  model.safetensors\n" in said
    assert "checkpoint" not in said
    assert "training_args.bin" not in said
    assert list(tmp_path.iterdir()) == []


class Hub:
    """A hub of one repository, that keeps what is committed to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, []  # type: tuple[Path, list[Any]]

    def list_repo_files(self, name: str) -> list[str]:
        if not self.folder.exists():
            response = SimpleNamespace(headers={}, request=None)
            raise RepositoryNotFoundError("404", response=response)  # type: ignore[arg-type]
        return [path.name for path in self.folder.iterdir()]

    def create_repo(self, name: str, *, private: bool | None, exist_ok: bool) -> None:
        self.calls.append((name, private, exist_ok))
        self.folder.mkdir(exist_ok=exist_ok)

    def hf_hub_download(self, name: str, file: str) -> str:
        return str(self.folder / file)

    def create_commit(self, name: str, operations: list[Any], *, commit_message: str) -> Any:
        for one in operations:
            place = self.folder / one.path_in_repo
            if isinstance(one, hub.CommitOperationDelete):
                place.unlink()
            else:
                content = one.path_or_fileobj
                place.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())
        return SimpleNamespace(commit_url=f"https://hub/{name}/commit/1")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub in a folder, and a token for it."""
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    monkeypatch.setattr(ModelCard, "validate", lambda self: None)
    return made


def test_a_hub_gets_one_commit_and_loses_what_is_stale(
    runs: Path, served: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["push", str(runs / FULL), "--to", "me/model", "--private"]
    assert main(command) == 0
    assert served.calls == [("me/model", True, True)]
    assert capsys.readouterr().out.startswith("https://hub/me/model/commit/1: ")
    assert_same_logits(runs / FULL, served.folder)
    assert "remask.load('me/model')" in (served.folder / "README.md").read_text()
    (served.folder / "model-00001-of-00002.safetensors").write_bytes(b"an earlier one's")
    (served.folder / "picture.png").write_bytes(b"the owner's")
    assert main(command) == 0
    assert not (served.folder / "model-00001-of-00002.safetensors").exists()
    assert (served.folder / "picture.png").exists()
    adapters = ["push", str(runs / ADAPTER), "--to", "me/model", "--base", "owner/base"]
    assert main(adapters) == 2
    assert "holds another model" in capsys.readouterr().err
    assert main([*adapters, "--overwrite"]) == 0
    assert not (served.folder / "model.safetensors").exists()
    assert json.loads((served.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/base"
    card = ModelCard.load(served.folder / "README.md")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "remask.load('owner/base', adapter='me/model')" in card.content


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([FULL], "one run and its target are needed"),
        ([".", "--to", "me/x"], "is no run"),
        ([FULL, "--to", "adapters/x"], "may be a repository of the hub, or a folder"),
        ([FULL, "--to", "run"], "holds other files than a model's"),
        ([FULL, "--to", "hf://x"], "names no repository"),
        ([FULL, "--to", "me/x", "--evaluations", "other.json"], "an evaluation of a run of seed 1"),
        ([FULL, "--to", "me/x", "--evaluations", "scores.json", "scores.json"], "is evaluated twice"),
        ([ADAPTER, "--to", "me/x"], "the adapter's base is a folder of this machine"),
        ([FULL, "--to", "me/x"], "there is no token for the hub"),
    ],
)
def test_what_cannot_be_published_is_said(
    arguments: list[str],
    said: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert main(["push", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("refused", [False, True])
def test_a_hub_that_is_not_reached_or_refuses_is_said(
    refused: bool, runs: Path, served: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (network, *_) = hub.UNREACHABLE
    response: Any = SimpleNamespace(headers={}, request=None)

    def fail(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError("403 Forbidden", response=response) if refused else network("no route to host")

    monkeypatch.setattr(served, "create_repo" if refused else "list_repo_files", fail)
    assert main(["push", str(runs / FULL), "--to", "me/model"]) == 2
    said = "the hub refuses (403 Forbidden)" if refused else "the hub cannot be reached (no route to host)"
    assert said in capsys.readouterr().err


def test_an_unfinished_run_and_a_card_of_ones_own(
    runs: Path, tmp_path: Path, restored: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / FULL
    with restored(run):
        (run / "README.md").write_text("---\nlicense: mit\n---\nmy own words")
        made = publication(run, "me/model")
        write_folder(made, tmp_path / "model")
        card = (tmp_path / "model" / "README.md").read_text()
        assert card.startswith("---\nlicense: mit\n---\nmy own words\n")
        assert identity_in(card) == made.identity
        (run / "README.md").write_text("---\nlicense: [\n---\n")
        assert main(["push", str(run), "--to", "me/model"]) == 2
        assert "the card's head is not what the hub reads" in capsys.readouterr().err
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({**record, "status": "stopped"}))
        assert main(["push", str(run), "--to", "me/model"]) == 2
        assert "is not finished (stopped)" in capsys.readouterr().err


def test_code_of_the_official_model_is_named_where_it_lies(runs: Path, restored: Any) -> None:
    run = runs / FULL
    with restored(run):
        (run / "there.py").write_text("")
        assert "there.py" not in publication(run, "me/model").files  # no config names it: it is the user's own
        config = json.loads((run / "config.json").read_text())
        code = {"AutoConfig": "there.Config", "AutoModel": "absent.Model", "AutoTokenizer": ["absent.Fast", None]}
        (run / "config.json").write_text(json.dumps({**config, "auto_map": code}))
        made = publication(run, "me/model", base="owner/base")
    content = made.files["config.json"]
    assert isinstance(content, bytes)
    assert json.loads(content)["auto_map"] == {**code, "AutoModel": "owner/base--absent.Model"}
    assert "there.py" in made.files


def test_a_card_names_what_the_hub_knows_and_no_path_that_looks_like_it(runs: Path, restored: Any) -> None:
    """The run's own card knows whether its model was the hub's."""
    run = runs / FULL
    assert ModelCard(content_of(run)).data.base_model is None
    with restored(run):
        (run / "README.md").write_text((run / "README.md").read_text().replace("---\n", "---\nbase_model: a/b\n", 1))
        record = json.loads((run / "run.json").read_text())
        record["data"]["source"] = "data/rows.jsonl,gsm8k,owner/set:part@train"
        (run / "run.json").write_text(json.dumps(record))
        said = ModelCard(content_of(run)).data
    assert (said.base_model, said.license) == ("a/b", None)
    assert said.datasets == ["openai/gsm8k", "owner/set"]


def test_the_licence_is_that_of_the_base(runs: Path, checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    try:
        assert ModelCard(content_of(runs / FULL)).data.license == "bsd-3-clause"
    finally:
        (checkpoint / "README.md").unlink()


def content_of(run: Path) -> str:
    card = publication(run, "me/model").files["README.md"]
    assert isinstance(card, bytes)
    return card.decode()


def test_every_file_that_a_model_is_saved_in_is_published(runs: Path) -> None:
    """Nothing of what transformers and peft saved is left out: what stays behind is the run's own."""
    left = {path.name for path in (runs / FULL).iterdir()} - set(publication(runs / FULL, "me/model").files)
    measured = {"class_accuracy.json", "masking.json"}
    assert left == {"checkpoint-1", "config.yaml", "metrics.jsonl", "run.json", "training_args.bin", *measured}
