"""A run's model for others: which files, the card of its record, and how they come to the hub or into a folder."""

from __future__ import annotations

from remask.publishing.folders import write_folder
from remask.publishing.hub import upload
from remask.publishing.publication import Publication, publication

__all__ = ["Publication", "publication", "upload", "write_folder"]
