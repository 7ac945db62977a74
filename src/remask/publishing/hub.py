"""A publication in a repository of the hub, as one commit: it is there whole, or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from remask.errors import UserError, first_line
from remask.publishing.publication import NAME, Publication, identity_in, is_of_a_model

PREFIX = "hf://"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")

UNREACHABLE: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)
"""The errors of the network. huggingface_hub's own class of them is built on that of whichever HTTP library it uses."""


def repository(to: str) -> str | None:
    """Return the repository of the hub that a target names, None where it is a folder. Raises UserError for a target
    that may be either.
    """
    name = to.removeprefix(PREFIX)
    if not REPOSITORY.fullmatch(name):
        if to.startswith(PREFIX):
            raise UserError(f"{to!r} names no repository", mend="write hf://OWNER/NAME")
        return None
    if not to.startswith(PREFIX) and Path(to).parent.exists():
        raise UserError(
            f"{to!r} may be a repository of the hub, or a folder in {str(Path(to).parent)!r}",
            mend=f"write {PREFIX}{to} for the hub, or ./{to} for the folder",
        )
    return name


def upload(publication: Publication, name: str, *, private: bool = False, overwrite: bool = False) -> str:
    """Upload a publication to a repository, which is made where there is none, and return the commit's address. Files
    of an earlier model that this one has not are deleted in the same commit; other files there are left.

    Raises UserError without a token, where the repository holds another model (without `overwrite`), where the hub
    refuses, and where it cannot be reached.
    """
    if get_token() is None:
        raise UserError("there is no token for the hub", mend="log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    with _told(name):
        there = _files_of(api, name)
        if any(path != NAME and path != ".gitattributes" and is_of_a_model(path) for path in there):
            _refuse_other(api, publication, name, NAME in there, overwrite=overwrite)
        _validate(publication)
        api.create_repo(name, private=private or None, exist_ok=True)
        stale = [path for path in there if is_of_a_model(path) and path not in {*publication.files, ".gitattributes"}]
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in publication.files.items()]
        operations += [CommitOperationDelete(path) for path in stale]
        made = api.create_commit(name, operations, commit_message="Upload a model with remask push")
    return str(made.commit_url)


def _files_of(api: HfApi, name: str) -> list[str]:
    """The files of a repository; none where it is not there yet."""
    try:
        return list(api.list_repo_files(name))
    except RepositoryNotFoundError:
        return []


def _refuse_other(api: HfApi, publication: Publication, name: str, has_card: bool, *, overwrite: bool) -> None:
    """Raises UserError where a repository holds a model of other settings or data."""
    if overwrite:
        return
    card = Path(api.hf_hub_download(name, NAME)).read_text(encoding="utf-8", errors="replace") if has_card else ""
    if identity_in(card) != publication.identity:
        raise UserError("holds another model", where=name, mend="give another name, or --overwrite")


def _validate(publication: Publication) -> None:
    """Let the hub check the card before anything is made there."""
    card = publication.files[NAME]
    assert isinstance(card, bytes)
    try:
        ModelCard(card.decode()).validate()
    except HfHubHTTPError:
        raise
    except ValueError as error:
        raise UserError(
            f"the hub does not take the card ({first_line(error)})",
            where=NAME,
            mend="correct --licence and --base, or the README.md in the run's folder",
        ) from error


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Raises UserError where the hub refuses or cannot be reached."""
    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(
            f"the hub refuses ({first_line(error)})",
            where=name,
            mend="check the owner's name, and that your token may write there",
        ) from error
    except OfflineModeIsEnabled as error:
        raise UserError("the hub is not asked: HF_HUB_OFFLINE is set", where=name, mend="unset it") from error
    except UNREACHABLE as error:
        raise UserError(
            f"the hub cannot be reached ({first_line(error)})", where=name, mend="check the network, and try again"
        ) from error
