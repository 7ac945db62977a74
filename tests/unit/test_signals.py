"""The frozen probe's one pass: interrupted and gone on with, shared by ranks, tied to what it was read from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remask.data.canvas import Fill, Row
from remask.data.collate import Collator
from remask.diffusion.corruption import Canvas
from remask.diffusion.reader import ModelReader
from remask.errors import UserError
from remask.sft import signals
from remask.sft.signals import CacheKey, SignalCache, build_cache

KEY = CacheKey("model", "tokenizer", "data", "entropy")
ROWS = [Row([60, 61], list(range(70, 70 + n)), f"row {n}") for n in (3, 9, 4, 7, 5, 8, 6)]


class Interrupted:
    """A model that is called so many times and then no more; `seen` counts its rows."""

    def __init__(self, model: Any, calls: int) -> None:
        self.reader, self.calls, self.seen = ModelReader(model), calls, 0

    def losses(self, *arguments: Any) -> Tensor:
        return self.reader.losses(*arguments)

    def weighted_loss(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self.reader.weighted_loss(*arguments)

    def look(self, noised: Tensor, canvas: Canvas, *further: Any) -> tuple[Tensor, ...]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.seen += len(noised)
        return self.reader.look(noised, canvas, *further)


def read(reader: Any, path: Path | None, key: CacheKey = KEY, **keywords: Any) -> SignalCache:
    collator = Collator(Fill.parse("none"), 0, 64, seed=0)
    return build_cache(
        reader,
        ROWS,
        collator,
        1,
        "entropy",
        key,
        batch_size=2,
        device=torch.device("cpu"),
        path=path,
        show_progress=False,
        **keywords,
    )


def equal(a: SignalCache, b: SignalCache) -> bool:
    return all(torch.allclose(x, y, atol=1e-6) for x, y in zip(a.signals, b.signals, strict=True))


def test_an_interrupted_pass_goes_on(tmp_path: Path, random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PART_SECONDS", 0.0)
    path = tmp_path / "start.safetensors"
    with pytest.raises(KeyboardInterrupt):
        read(Interrupted(random_model, 2), path)
    assert not path.exists()
    rest = Interrupted(random_model, -1)
    again = read(rest, path)
    assert rest.seen == len(ROWS) - 4
    assert equal(again, read(ModelReader(random_model), None))
    assert equal(SignalCache.load(path, KEY), again)
    assert [len(signal) for signal in again.signals] == [len(row.response) for row in ROWS]
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_another_pass_are_refused(tmp_path: Path, random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "PART_SECONDS", 0.0)
    path = tmp_path / "start.safetensors"
    with pytest.raises(KeyboardInterrupt):
        read(Interrupted(random_model, 1), path)
    with pytest.raises(UserError, match="another model"):
        read(ModelReader(random_model), path, CacheKey("other", "tokenizer", "data", "entropy"))


def test_ranks_share_the_pass_and_take_as_many_forwards(random_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows in batches of two for three ranks: four batches, two of them again."""
    said: list[Any] = []
    monkeypatch.setattr(signals, "gather_object", lambda own: said.extend(own) or said)
    counts = []
    for rank in range(3):
        reader = Interrupted(random_model, -1)
        if rank < 2:
            with pytest.raises(KeyError):  # the others' rows are not there yet
                read(reader, None, rank=rank, world=3)
        else:
            cache = read(reader, None, rank=rank, world=3)
        counts.append(-1 - reader.calls)
    assert counts == [2, 2, 2]
    assert equal(cache, read(ModelReader(random_model), None))


@pytest.fixture
def written(tmp_path: Path, random_model: Any) -> tuple[Path, SignalCache]:
    path = tmp_path / "start.safetensors"
    return path, read(ModelReader(random_model), path)


def test_no_changed_byte_passes_for_the_signals_that_were_read(written: tuple[Path, SignalCache]) -> None:
    """Each byte of the file in turn: it is refused by name, or what it says is the same (a space in its header)."""
    path, cache = written
    content, said = path.read_bytes(), list[str]()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            found = SignalCache.load(path, KEY)
        except UserError as error:
            said.append(str(error))
        else:
            assert all(torch.equal(x, y) for x, y in zip(found.signals, cache.signals, strict=True))
    assert len(said) > 0.9 * len(content)
    assert all(line.startswith(f"{path}: ") and "delete it" in line for line in said)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_cut_cache_is_refused(length: int, written: tuple[Path, SignalCache]) -> None:
    path, _ = written
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"not a probe cache.*delete it: the entropies are then read again"):
        SignalCache.load(path, KEY)


def test_a_cache_that_cannot_be_written_is_one_error_and_leaves_nothing(tmp_path: Path, random_model: Any) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot be written .*--probe\.cache"):
        read(ModelReader(random_model), tmp_path / "file" / "start.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
