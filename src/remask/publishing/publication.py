"""What is published of a run: the files of its model, and a card. Checkpoints, optimiser states, logs and records stay.

Weights, tokenizer and config are those the run saved, in the official layout. Two files are written anew: the card, and
config.json or adapter_config.json where it names what others do not have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache

from remask.config import DpoConfig, RlConfig, SftConfig
from remask.data.named import NAMED, Source
from remask.errors import UserError, first_line
from remask.files import as_json, from_json
from remask.models.load import EMBEDDED
from remask.models.lora import base_of, is_adapter
from remask.publishing.engines import engines
from remask.publishing.scores import evaluations_of, scores_of
from remask.training.begun import CONFIG, RECORD, Begun, recorded
from remask.training.card import MARK, NAME, Published, card_of, on_the_hub
from remask.training.folder import lasting
from remask.training.saving import WEIGHTS, go_on_with

CONFIGS: dict[str, Any] = {"sft": SftConfig, "rl": RlConfig, "dpo": DpoConfig}
MODEL_FILES = (
    *WEIGHTS,
    *("model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "*.py"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "preprocessor_config.json"),
    "processor_config.json",
)
"""The files of a model, in any of the layouts that Remask saves. Nothing else of a run is published."""
IDENTITY = re.compile(r"<!-- remask push ([0-9a-f]{32}) -->")
HUB_SET = re.compile(r"(?P<id>[\w.\-]+/[\w.\-]+(?<!\.jsonl)(?<!\.json)(?<!\.csv)(?<!\.tsv)(?<!\.parquet))(?:[:@].*)?")
"""A data set of the hub as sources write it, and not a file."""


@dataclass(frozen=True)
class Publication:
    """A publication has files by their names, each as a path to copy or as its content, and the run's identity: another
    publication of the same settings and data is the same model, perhaps at a later step. notes are for the user.
    """

    files: Mapping[str, Path | bytes]
    identity: str
    notes: Sequence[str] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file."""
        return {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in self.files.items()}


def publication(
    run: Path,
    name: str,
    *,
    evaluations: Sequence[str] = (),
    base: str | None = None,
    licence: str | None = None,
    in_folder: bool = False,
) -> Publication:
    """Return what is to be published of a run under a name, that of a repository of the hub or, with `in_folder`, of a
    folder. Nothing is written, and no network is used. The options are those of `remask push` (`PushConfig`).

    Raises UserError for a folder that is no finished run, for evaluations of another model, and for adapters that name
    a local folder as their base, which those who find them on the hub would not have.
    """
    record, config = _finished(run)
    adapter = is_adapter(str(run))
    known = base or _hub_base(run, config, through_runs=not adapter)
    files: dict[str, Path | bytes] = {path.name: path for path in _model_files(run)}
    if adapter:
        _name_base(files, run, known, in_folder=in_folder)
    else:
        _name_code(files, run, known)
    found = evaluations_of(run, evaluations, seed=record.get("seed"))
    scores, conditions = scores_of(found)
    model_type = _model_type(run)
    licence = licence or _licence(run, config, known)
    published = Published(
        name=name,
        base=known,
        licence=licence,
        datasets=_datasets(str(record["data"]["source"]), run, config.output_dir),
        scores=scores,
        conditions=conditions,
        engines=engines(model_type, adapter=adapter),
        serves=model_type != "diffusion_gemma",
        in_folder=in_folder,
    )
    notes = [] if licence else ["no licence is known, and the card names none: give --licence"]
    notes += (
        [] if scores else [f"no evaluation is known, and the card has no scores: remask eval --model {run} --json …"]
    )
    own = _own_card(run)
    if own is not None:
        notes = [f"{run / NAME} was written by hand: it is published as it is, without scores and licence"]
    identity = _identity(config, record)
    text = own if own is not None else card_of(run, config, record, published)
    files[NAME] = f"{text.rstrip()}\n\n<!-- remask push {identity} -->\n".encode()
    _check_head(text, run)
    return Publication(dict(sorted(files.items())), identity, notes)


def identity_in(card: str) -> str | None:
    """Return the identity of the run that a published card is of; None where it says none."""
    found = IDENTITY.findall(card)
    return found[-1] if found else None


def is_of_a_model(name: str) -> bool:
    """Return whether a file is one that a publication may have."""
    return name in (NAME, ".gitattributes") or any(fnmatch(name, pattern) for pattern in MODEL_FILES)


def _finished(run: Path) -> tuple[dict[str, Any], Any]:
    """The record and config of a run that is finished."""
    if not (run / RECORD).is_file() or not (run / CONFIG).is_file():
        raise UserError(
            f"is no run: it has no {RECORD} and {CONFIG}",
            where=str(run),
            mend="give the folder that a training command was given as --output-dir",
        )
    record = recorded(run)
    kind = record.get("training", "sft")
    if record.get("kind") != "remask.run" or kind not in CONFIGS:
        raise UserError("is no run of Remask's", where=str(run / RECORD), mend="give a run's folder")
    if record["status"] != "finished":
        raise UserError(
            f"is not finished ({record['status']})", where=str(run), mend=f"finish it: {go_on_with(kind, run)}"
        )
    return record, Begun.of_folder(run, CONFIGS[kind]).config


def _model_files(run: Path) -> list[Path]:
    found = [
        path for path in sorted(run.iterdir()) if path.is_file() and path.name != NAME and is_of_a_model(path.name)
    ]
    if not any(_names_code(path) for path in found):  # then Python files are the user's own
        found = [path for path in found if path.suffix != ".py"]
    if not any(fnmatch(path.name, pattern) for path in found for pattern in WEIGHTS):
        raise UserError("holds no weights", where=str(run), mend="bring them back, or train again with --overwrite")
    return found


def _names_code(path: Path) -> bool:
    """Whether a config, of the model or of its tokenizer, names Python code that lies beside it."""
    return path.name in ("config.json", "tokenizer_config.json") and "auto_map" in from_json(path.read_bytes())


def _hub_base(run: Path, config: Any, *, through_runs: bool) -> str | None:
    """The hub's name of what a run began from, through the runs that lie between (an adapter fits none but its own).

    The run's own card says whether the hub knows the model: a relative path looks the same from another folder.
    """
    seen: set[Path] = set()
    model, output = config.model, config.output_dir
    while run.resolve() not in seen:
        seen.add(run.resolve())
        if (base := _said(run / NAME, "base_model")) is not None:
            return base
        before = _folder(model, run, output)
        if not through_runs or before is None:
            return None
        with suppress(OSError, yaml.YAMLError, KeyError, TypeError):
            values = yaml.safe_load((before / CONFIG).read_text(encoding="utf-8"))
            run, model, output = before, str(values["model"]), str(values["output_dir"])
    return None


def _folder(path: str, run: Path, output: str) -> Path | None:
    """A file or folder that a run's settings name, as seen from here or from where the run was begun; None where it is
    not there. `output` is what the settings call the run's own folder.
    """
    begun = Path(str(run.resolve()).removesuffix(output.rstrip("/").removeprefix("./")))
    return next((place for place in (Path(path), begun / path) if place.exists()), None)


def _name_base(files: dict[str, Path | bytes], run: Path, base: str | None, *, in_folder: bool) -> None:
    """Make adapters name their base as the hub does, where they name a folder of this machine. Raises UserError where
    no such name is known and the adapters are for the hub.
    """
    named = base_of(str(run))
    if named in EMBEDDED or named == base:
        return
    if base is None:
        if in_folder:
            return
        raise UserError(
            f"the adapter's base is a folder of this machine: {named}",
            where=str(run),
            mend=f"publish the base and give its name as --base, or merge: remask convert --merge {run}",
        )
    values = from_json((run / "adapter_config.json").read_bytes())
    files["adapter_config.json"] = as_json({**values, "base_model_name_or_path": base}, indent=2).encode()


def _name_code(files: dict[str, Path | bytes], run: Path, base: str | None) -> None:
    """Let config.json name the base's repository for code of the official model that does not lie beside the weights,
    as `transformers` writes it: `owner/name--module.Class`.
    """
    values = from_json((run / "config.json").read_bytes())
    code = values.get("auto_map")
    if base is None or not isinstance(code, dict):
        return
    full = {
        key: f"{base}--{name}" if isinstance(name, str) and "--" not in name and _module(name) not in files else name
        for key, name in code.items()
    }
    if full != code:
        files["config.json"] = as_json({**values, "auto_map": full}, indent=2).encode()


def _module(name: str) -> str:
    return f"{name.rpartition('.')[0]}.py"


def _model_type(run: Path) -> str | None:
    with suppress(OSError, ValueError, AttributeError):
        return str(from_json((run / "config.json").read_bytes()).get("model_type"))
    return None


def _licence(run: Path, config: Any, base: str | None) -> str | None:
    """The base's licence: that of this package for embedded models, else what its card says where it lies here."""
    if config.model in EMBEDDED:
        return "apache-2.0"
    folder = _folder(config.model, run, config.output_dir)
    cards: list[Any] = [] if folder is None else [folder / NAME]
    if base is not None:
        with suppress(ValueError):
            cards.append(try_to_load_from_cache(base, NAME))
    said = (_said(card, "license") for card in cards if isinstance(card, str | Path))
    return next((licence for licence in said if licence is not None), None)


def _said(card: str | Path, key: str) -> str | None:
    """What a card's head says of a key, where it lies on this machine and says one thing."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        text = Path(card).read_text(encoding="utf-8")  # ModelCard.load would ask the hub for one that is not there
        found = ModelCard(text, ignore_metadata_errors=True).data.to_dict().get(key)
        return found if isinstance(found, str) else None
    return None


def _datasets(source: str, run: Path, output: str) -> list[str]:
    """The hub's names of the data sets in a source; generated problems and files have none."""
    with suppress(UserError):
        source = Source.parse(source).place
    places = [NAMED.get(place.partition("=")[0].partition("@")[0], place) for place in source.split(",")]
    found = [one["id"] for one in map(HUB_SET.fullmatch, places) if one]
    return list(dict.fromkeys(name for name in found if on_the_hub(name) and _folder(name, run, output) is None))


def _own_card(run: Path) -> str | None:
    """The card in the run's folder where somebody wrote it by hand."""
    try:
        text = (run / NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None
    return None if MARK in text else text


def _identity(config: Any, record: Mapping[str, Any]) -> str:
    what = [record.get("training", "sft"), lasting(config), record["data"].get("digest")]
    return hashlib.blake2b(as_json(what).encode(), digest_size=16).hexdigest()


def _check_head(text: str, run: Path) -> None:
    """Raises UserError for a card whose head the hub's own library cannot read."""
    try:
        ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"the card's head is not what the hub reads ({first_line(error)})",
            where=str(run / NAME),
            mend="correct it there, or delete the file: a card is then written from the run's record",
        ) from error
