"""Write src/remask/tasks/published.bin: digests of the published test problems, which generators leave out.

python scripts/digest_published.py FOLDER      # holding 4x4_test_sudoku.csv, countdown_cd3_test.jsonl, dream_eval/
"""

from __future__ import annotations

import sys
from pathlib import Path

from remask.tasks import Countdown, Sudoku
from remask.tasks.generator import digest


def main(folder: Path) -> None:
    keys: set[str] = set()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".csv", ".jsonl"):
            task = Sudoku() if "sudoku" in path.name else Countdown()
            problems = task.load(path)
            keys.update(problem.key for problem in problems)
            print(f"{path.name}: {len(problems)} problems")
    target = Path(__file__).parents[1] / "src/remask/tasks/published.bin"
    target.write_bytes(b"".join(sorted(digest(key) for key in keys)))
    print(f"{target}: {len(keys)} digests")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
