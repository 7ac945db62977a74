"""A chat template that writes the time writes the run's, whenever the run goes on."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from remask.chat_template import on_date
from remask.cli import main
from remask.data.chat import encode_prompt
from remask.models.load import load_tokenizer

DATED = (
    "Today is {{ strftime_now('%d %b %Y') }}. {% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def dated(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint with a template that writes the date."""
    import remask

    model, tokenizer = remask.load(checkpoint)
    tokenizer.chat_template = DATED
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "dated")
    return tmp_path / "dated"


def test_the_date_can_be_held_still(dated: Path) -> None:
    tokenizer = load_tokenizer(str(dated))
    ask: Any = [{"role": "user", "content": "hi"}]
    with on_date(datetime(2024, 2, 29)):
        assert tokenizer.decode(encode_prompt(tokenizer, ask)).startswith("Today is 29 Feb 2024. ")
    assert datetime.now().strftime("%Y") in tokenizer.decode(encode_prompt(tokenizer, ask))


@pytest.mark.parametrize("command", ["sft", "dpo"])
def test_a_run_goes_on_over_midnight(
    command: str, dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are those of the day it began on; else they would have changed, and it could not go on."""
    columns = ("prompt", "completion") if command == "sft" else ("prompt", "chosen", "rejected")
    texts = {"prompt": "a", "completion": "b", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text((json.dumps({name: texts[name] for name in columns}) + "\n") * 4)
    run = tmp_path / "run"
    flags = ["--model", str(dated), "--data", str(tmp_path / "rows.jsonl"), "--output-dir", str(run)]
    flags += ["--trainer.save-steps", "1", "--trainer.per-device-train-batch-size", "2", "--trainer.report-to", "none"]

    class Clock(datetime):
        day = 28

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2024, 2, cls.day)

    monkeypatch.setattr("remask.training.begun.datetime", Clock)
    assert main([command, *flags, "--max-steps", "1"]) == 0
    Clock.day = 29
    assert main([command, *flags, "--max-steps", "2", "--resume", "auto"]) == 0
    assert json.loads((run / "run.json").read_text())["date"] == "2024-02-28T00:00:00"
