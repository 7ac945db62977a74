"""Leave out of the built site's search what only repeats a name: fields and constants that no sentence describes.

python scripts/site_search.py [build/docs/site]        they stay on their pages
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

REFERENCE = "reference/python/"
CODE = re.compile(r"<(pre|code)\b.*?</\1>", re.DOTALL)


def says_something(entry: dict[str, Any]) -> bool:
    """Return whether an entry is of no name of the reference, or has a sentence besides code."""
    if not entry["location"].startswith(REFERENCE):
        return True
    return re.search(r"\w", re.sub(r"<[^>]*>", " ", CODE.sub(" ", entry["text"]))) is not None


def thinned(index: dict[str, Any]) -> dict[str, Any]:
    """Return the index with the entries that say something, those of pages that were written by hand first."""
    kept = [entry for entry in index["items"] if says_something(entry)]
    return {**index, "items": sorted(kept, key=lambda entry: entry["location"].startswith(REFERENCE))}


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs/site") / "search.json"
    index = json.loads(path.read_text())
    made = thinned(index)
    path.write_text(json.dumps(made, ensure_ascii=False))
    print(f"{path}: {len(made['items'])} of {len(index['items'])} entries")


if __name__ == "__main__":
    main()
