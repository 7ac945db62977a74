"""A checkpoint folder of random weights and a few rows of data: enough to run every command in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from safetensors.torch import load_file
from torch import Tensor

from remask.config import CanvasConfig, SftConfig, TrainerConfig
from remask.models.llada import LLaDAConfig, LLaDAModelLM

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module", autouse=True)
def shapes_unchecked() -> Iterator[None]:
    """Whole commands call the same functions as the unit tests, many times over: shapes are checked there."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, small_config: Callable[..., LLaDAConfig]
) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint"), small_config(init_std=0.1), tokenizer)


@pytest.fixture(scope="session")
def long_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, small_config: Callable[..., LLaDAConfig]
) -> Path:
    """The same with as many positions as published problems take."""
    config = small_config(init_std=0.1, max_sequence_length=2048)
    return saved(tmp_path_factory.mktemp("long"), config, tokenizer)


def saved(folder: Path, config: LLaDAConfig, tokenizer: Any) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LLaDAModelLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 rows of unequal lengths."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [{"prompt": f"say {LETTERS[i]}", "completion": LETTERS[i] * (3 + i % 7)} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def make_config_in(checkpoint: Path, data: Path) -> Callable[..., SftConfig]:
    """The config of a short run in a folder; `trainer` keywords are the engine's settings."""

    def make(folder: Path, trainer: dict[str, Any] | None = None, **keywords: Any) -> SftConfig:
        engine = {
            "learning_rate": 1e-3,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "report_to": ("none",),
        }
        values: dict[str, Any] = {
            "model": str(checkpoint),
            "data": str(data),
            "output_dir": str(folder / "run"),
            "canvas": CanvasConfig(max_length=64),
            "trainer": TrainerConfig(**{**engine, **(trainer or {})}),
        }
        return SftConfig(**{**values, **keywords})

    return make


@pytest.fixture
def make_config(make_config_in: Callable[..., SftConfig], tmp_path: Path) -> Callable[..., SftConfig]:
    """The same, in the test's own folder."""
    return partial(make_config_in, tmp_path)


@pytest.fixture(scope="session")
def restored() -> Callable[[Path], AbstractContextManager[None]]:
    """A context that leaves what is beside and in a run's folder as it was before: a run that several tests begin from
    is trained once, in a folder that is no test's own.
    """

    @contextmanager
    def restore(run: Path) -> Iterator[None]:
        place = run.parent
        kept = place.with_name(f"{place.name}-kept")
        shutil.copytree(place, kept)
        try:
            yield
        finally:
            shutil.rmtree(place)
            kept.rename(place)

    return restore


@pytest.fixture(scope="session")
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """The weights a run ended with."""

    def read(folder: Path) -> dict[str, Tensor]:
        name = "adapter_model.safetensors"
        return load_file(folder / (name if (folder / name).exists() else "model.safetensors"))

    return read


TIMES = ("seconds", "share_", "_per_second", "train_runtime")


@pytest.fixture(scope="session")
def untimed() -> Callable[[Path], list[dict[str, Any]]]:
    """All that a run logged, line by line, but for how long it took."""

    def read(folder: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not any(part in k for part in TIMES)} for row in rows]

    return read


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    def read(folder: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return read
