"""`remask push`: a run's model, on the hub or in a folder in the hub's layout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from remask.commands.options import parse, split_words
from remask.config import PushConfig
from remask.errors import UserError
from remask.imports import uncollected

EXAMPLES = """Examples:
  remask push runs/gift --to me/gift --dry-run
  remask push runs/gift --to me/gift --private --evaluations gift.json likelihood.json
  remask push runs/gift --to ./published --licence apache-2.0

The files are the model's: weights, tokenizer, config and a card. Checkpoints, optimiser states, logs and records are
not published."""


def run(arguments: Sequence[str]) -> int:
    """Run `remask push` with these arguments and return the exit code."""
    words, flags = split_words(PushConfig, arguments)
    config = parse(PushConfig, flags, command="push", examples=EXAMPLES, words="RUN")
    if len(words) != 1 or not config.to:
        raise UserError("one run and its target are needed", mend="write remask push RUN --to OWNER/NAME")
    folder = Path(words[0])
    if not folder.is_dir():
        raise UserError("no such folder", where=words[0], mend="give a run's folder")
    with uncollected():
        from remask.publishing.folders import write_folder
        from remask.publishing.hub import repository, upload
        from remask.publishing.publication import publication

    name, target = repository(config.to), Path(config.to)
    made = publication(
        folder,
        name or target.resolve().name,
        evaluations=config.evaluations,
        base=config.base,
        licence=config.licence,
        in_folder=name is None,
    )
    for note in made.notes:
        print(note, file=sys.stderr)
    place = "" if name else str(write_folder(made, target, overwrite=config.overwrite, dry_run=config.dry_run))
    if config.dry_run:
        _list(made.sizes)
        print(f"{len(made.files)} files, {sum(made.sizes.values()):,} bytes, would go to {name or target}")
        return 0
    if name:
        place = upload(made, name, private=config.private, overwrite=config.overwrite)
    print(f"{place}: {len(made.files)} files, {sum(made.sizes.values()):,} bytes")
    return 0


def _list(sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        print(f"{size:>15,}  {name}")
