"""A run's README.md, which hubs show of a model: what it is, made of what and how, and how it fared, by its record."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from remask import config as configs
from remask.files import write_atomically
from remask.training.saving import go_on_with

NAME = "README.md"
MARK = "<!-- Made by Remask from run.json. Without this line a later run leaves the file as it is. -->"
TRAININGS = {"sft": "Supervised fine-tuning", "rl": "Reinforcement learning", "dpo": "Preference optimisation"}


def write_card(folder: Path, config: Any, record: Mapping[str, Any]) -> None:
    """Write the model card, unless there is one that somebody else wrote."""
    with suppress(OSError, UnicodeError):
        if MARK not in (folder / NAME).read_text(encoding="utf-8"):
            return
    write_atomically(folder / NAME, card_of(folder, config, record))


def card_of(folder: Path, config: Any, record: Mapping[str, Any]) -> str:
    """Return the card's text, its head in YAML as hubs read it. `record` is what run.json holds."""
    kind = record.get("training", "sft")
    rank = config.lora.rank
    what = f"adapters (LoRA, rank {rank}) for" if rank else "a model made from"
    head: dict[str, Any] = {"library_name": "peft" if rank else "transformers", "tags": ["remask", "diffusion", kind]}
    if not Path(config.model).exists() and config.model.count("/") == 1:  # a hub's name
        head["base_model"] = config.model
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).strip(),
            "---",
            MARK,
            "",
            f"# {folder.resolve().name}",
            "",
            f"{TRAININGS[kind]} of a diffusion language model: {what} `{config.model}`.",
            "",
            *_table("what", {"method": record["objective"]["name"], "base": config.model, **_data(record["data"])}),
            "",
            *_table("result", _numbers(record["metrics"])),
            "",
            f"Made in {record['seconds']:.0f} s on {_machine(record['hardware'])}, {_versions(record['versions'])}.",
            "",
            f"Load it with `remask.load({str(folder)!r})`, or train on: `{go_on_with(kind, folder)} --max-steps N`. "
            "All settings:",
            "",
            "```yaml",
            configs.dump(config).strip(),
            "```",
            "",
        ]
    )


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in values.items())]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    counted = {name: data[name] for name in ("rows", "prompts") if name in data}
    return {"data": data["source"], **counted}


def _numbers(metrics: Mapping[str, float]) -> dict[str, str]:
    """What tells of the model: losses and what was evaluated."""
    return {name: f"{value:.4g}" for name, value in metrics.items() if name == "train_loss" or name.startswith("eval_")}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python")


def _machine(hardware: Mapping[str, Any]) -> str:
    return str(hardware.get("gpu") or hardware["processor"])
