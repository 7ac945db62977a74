"""Make docs/figures/report.png: the top of a report of `remask report`, in a headless Chromium.

python scripts/report_picture.py report.html [--chromium /usr/bin/chromium]

The report of the picture is of two runs as those of docs/learn/05-report.md, without held-out rows.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parents[1] / "docs" / "figures" / "report.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    asked = parser.parse_args()
    with sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(asked.report.absolute().as_uri())
        page.wait_for_load_state("networkidle")
        page.screenshot(path=asked.target)
        browser.close()
    print(asked.target)


if __name__ == "__main__":
    main()
