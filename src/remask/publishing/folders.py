"""A publication in a local folder, in the hub's layout: written beside, then put in its place, so that it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from remask.errors import UserError
from remask.files import refuse_unwritable_folder
from remask.progress import working
from remask.publishing.publication import NAME, Publication, identity_in, is_of_a_model


def write_folder(publication: Publication, target: Path, *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Write a publication into a folder and return its whole path; with `dry_run` only look whether it can be written.

    Raises UserError where the folder holds something else than a model, or (without `overwrite`) another model, and
    where it cannot be written: what was there then stays as it was.
    """
    place = target.resolve()
    refuse_unwritable_folder(target)
    if place.exists():
        _refuse_other(publication, place, target, overwrite=overwrite)
    elif not place.parent.is_dir():
        raise UserError("its folder does not exist", where=str(target), mend="create it first")
    if dry_run:
        return place
    temporary = old = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
        temporary.chmod(0o755)
        with working(f"writing {target}"):
            for name, content in publication.files.items():
                if isinstance(content, bytes):
                    (temporary / name).write_bytes(content)
                else:
                    shutil.copyfile(content, temporary / name)
        if place.exists():
            old = temporary.with_name(f"{temporary.name}-old")
            os.replace(place, old)
        os.replace(temporary, place)
    except BaseException as error:
        if old is not None and old.exists() and not place.exists():
            os.replace(old, place)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(
                f"cannot be written ({error.strerror})",
                where=str(target),
                mend="make room there, or give another folder",
            ) from error
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    return place


def _refuse_other(publication: Publication, place: Path, target: Path, *, overwrite: bool) -> None:
    """Raises UserError for a folder that must not be replaced."""
    there = sorted(path.name for path in place.iterdir())
    if foreign := [name for name in there if not is_of_a_model(name) or (place / name).is_dir()]:
        raise UserError(
            f"holds other files than a model's: {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}",
            where=str(target),
            mend="give a folder that is not there yet",
        )
    card = (place / NAME).read_text(encoding="utf-8", errors="replace") if NAME in there else ""
    if there and not overwrite and identity_in(card) != publication.identity:
        raise UserError("holds another model", where=str(target), mend="give another folder, or --overwrite")
