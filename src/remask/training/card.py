"""A run's README.md, which hubs show of a model: what it is, made of what and how, and how it fared, by its record.

The run's own folder has it as soon as the run is finished; `publishing` writes it again for others, with what the run
cannot know: scores, licence, and the names by which the hub knows the model and its base.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from remask import config as configs
from remask.files import write_atomically
from remask.training.saving import go_on_with

NAME = "README.md"
MARK = "<!-- Made by Remask from run.json. Without this line a later run leaves the file as it is. -->"
TRAININGS = {"sft": "Supervised fine-tuning", "rl": "Reinforcement learning", "dpo": "Preference optimisation"}
PIPELINE = "text-generation"
LOCAL_FOLDER = re.compile(r"(?<![\w:/.<])(?:~|/)[^\s,:=`'\"|]*/")
"""The folders of an absolute path, which say nothing to others; a path's last part stays."""


@dataclass(frozen=True)
class Score:
    """A score says how the model fared at one task by one metric, with the ends of the 95 % interval. text: mean and
    interval as people read them; n: problems or rows.
    """

    task: str
    source: str
    metric: str
    value: float
    text: str
    n: int


@dataclass(frozen=True)
class Published:
    """A published card says more than the run's record. name: what the model is loaded by. base: the hub's name of what
    it was made from. conditions: sentences on how the scores were taken. engines: sentences on what else loads it.
    """

    name: str
    base: str | None = None
    licence: str | None = None
    datasets: Sequence[str] = ()
    scores: Sequence[Score] = ()
    conditions: Sequence[str] = ()
    engines: Sequence[str] = ()
    serves: bool = True
    in_folder: bool = False
    """True for a local folder, from which an adapter is loaded with the base that it names."""


def write_card(folder: Path, config: Any, record: Mapping[str, Any]) -> None:
    """Write the model card, unless there is one that somebody else wrote."""
    with suppress(OSError, UnicodeError):
        if MARK not in (folder / NAME).read_text(encoding="utf-8"):
            return
    write_atomically(folder / NAME, card_of(folder, config, record))


def card_of(folder: Path, config: Any, record: Mapping[str, Any], published: Published | None = None) -> str:
    """Return the card's text, its head in YAML as hubs read it. `record` is what run.json holds. With `published`, the
    card is for others: no folder of this machine is named.
    """
    kind = record.get("training", "sft")
    rank = config.lora.rank
    base = f"`{config.model}`"
    if published and published.base not in (None, config.model):
        base += f", from `{published.base}`"
    title = published.name if published else folder.resolve().name
    text = "\n".join(
        [
            "---",
            _head(config, kind, title, published).to_yaml(),
            "---",
            MARK,
            "",
            f"# {title}",
            "",
            f"{TRAININGS[kind]} of a diffusion language model: "
            f"{f'adapters (LoRA, rank {rank}) for' if rank else 'a model made from'} {base}.",
            "",
            *_table("what", _made_of(base.replace("`", ""), record)),
            "",
            *_table("result", _numbers(record["metrics"])),
            "",
            *(_scores(published) if published else ()),
            f"Made in {record['seconds']:.0f} s on {machine(record['hardware'])}, {versions(record['versions'])}.",
            "",
            *(_how_to_load(published, config, adapter=bool(rank)) if published else _in_its_folder(folder, kind)),
            "All settings:",
            "",
            "```yaml",
            configs.dump(config).strip(),
            "```",
            "",
        ]
    )
    return LOCAL_FOLDER.sub("", text) if published else text


def on_the_hub(model: str) -> bool:
    """Return whether a model's name is one of the hub's, not a folder's or an embedded model's."""
    return model.count("/") == 1 and model[0] not in "./~" and not Path(model).parent.exists()


def _head(config: Any, kind: str, title: str, published: Published | None) -> ModelCardData:
    """What hubs read: https://huggingface.co/docs/hub/model-cards names the keys."""
    base = published.base if published else config.model if on_the_hub(config.model) else None
    rank = config.lora.rank
    further: dict[str, Any] = {"base_model_relation": "adapter" if rank else "finetune"} if base else {}
    scores = [
        EvalResult(
            task_type=PIPELINE,
            dataset_type=score.task,
            dataset_name=f"{score.task} ({LOCAL_FOLDER.sub('', score.source)})",
            metric_type=score.metric,
            metric_name=f"{score.metric}: {score.text}, n = {score.n}",
            metric_value=score.value,
        )
        for score in (published.scores if published else ())
    ]
    if scores:
        further |= {"model_name": title.rpartition("/")[2], "eval_results": scores}
    return ModelCardData(
        library_name="remask",
        pipeline_tag=PIPELINE,
        license=published.licence if published else None,
        base_model=base,
        datasets=list(published.datasets) or None if published else None,
        tags=["remask", "diffusion", kind, *(["peft", "lora"] if rank else [])],
        **further,
    )


def _made_of(base: str, record: Mapping[str, Any]) -> dict[str, Any]:
    objective = {key: value for key, value in record["objective"].items() if key != "name"}
    decoding = record.get("rollout", {}).get("decoding")
    functions = record.get("rewards", {}).get("functions")
    return {
        "method": record["objective"]["name"],
        **({"its choices": settings(objective)} if objective else {}),
        "base": base,
        **_data(record["data"]),
        **({"rewards": ", ".join(functions)} if functions else {}),
        **({"answers in training are decoded with": settings(decoding)} if decoding else {}),
        **{name: record[key] for name, key in (("steps", "steps"), ("rows a step", "rows_per_step")) if key in record},
        **({"seed": record["seed"]} if "seed" in record else {}),
    }


def settings(values: Mapping[str, Any]) -> str:
    """Return settings in one line, without those that are null."""
    kept = {key: value for key, value in values.items() if value is not None}
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value, default=str)}" for key, value in kept.items()
    )


def _scores(published: Published) -> Iterable[str]:
    if not published.scores:
        return
    yield "| task | metric | score, with its 95 % interval | n |"
    yield "|---|---|---|---|"
    for score in published.scores:
        yield f"| {_cell(score.task)} | {score.metric} | {score.text} | {score.n} |"
    yield ""
    for said in published.conditions:
        yield from (said, "")


def _how_to_load(published: Published, config: Any, *, adapter: bool) -> list[str]:
    """The ways to load a published model: Python, the commands, and other engines."""
    apart, base = adapter and not published.in_folder, published.base or config.model
    path, further = (base, f", adapter={published.name!r}") if apart else (published.name, "")
    option = f" --adapter {published.name}" if apart else ""
    served = f" --adapter own={published.name}" if apart else ""
    return [
        "## How to load it",
        "",
        "```python",
        "import remask",
        f"model, tokenizer = remask.load({path!r}{further})",
        'print(remask.generate(model, tokenizer, ["your prompt"]).texts[0])',
        "```",
        "",
        "```bash",
        f'remask generate --model {path}{option} "your prompt"',
        *([f"remask serve --model {path}{served}"] if published.serves else []),
        "```",
        "",
        *(line for said in published.engines for line in (said, "")),
    ]


def _in_its_folder(folder: Path, kind: str) -> list[str]:
    train_on = f"{go_on_with(kind, folder)} --max-steps N"
    return [f"Load it with `remask.load({str(folder)!r})`, or train on: `{train_on}`.", ""]


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    if not values:
        return []
    return [f"| {title} | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in values.items())]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _data(data: Mapping[str, Any]) -> dict[str, Any]:
    counted = {name: data[name] for name in ("rows", "prompts") if name in data}
    digest = {"digest of the rows (BLAKE2)": data["digest"]} if "digest" in data else {}
    return {"data": data["source"], **counted, **digest}


def _numbers(metrics: Mapping[str, float]) -> dict[str, str]:
    """What tells of the model: losses and what was evaluated."""
    return {name: f"{value:.4g}" for name, value in metrics.items() if name == "train_loss" or name.startswith("eval_")}


def versions(values: Mapping[str, str]) -> str:
    """Return the versions of libraries in one line."""
    return ", ".join(f"{name} {version}" for name, version in values.items() if name != "python")


def machine(hardware: Mapping[str, Any]) -> str:
    """Return the name of what computed."""
    return str(hardware.get("gpu") or hardware.get("processor", "an unnamed machine"))
