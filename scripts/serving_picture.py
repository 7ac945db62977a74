"""Make docs/figures/serving.png: the page of `remask serve` in a headless Chromium, in the middle of an answer.

python scripts/serving_picture.py [--chromium /usr/bin/chromium]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

import remask

TARGET = Path(__file__).parents[1] / "docs" / "figures" / "serving.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    chromium = parser.parse_args().chromium
    model, tokenizer = remask.load("tiny")
    with (
        remask.serve(model, tokenizer, background=True, port=0, token_budget=4096) as server,
        sync_playwright() as tools,
    ):
        browser = tools.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 640})
        page.goto(server.url)
        page.click("#compare")
        page.locator("input[name=steps]").nth(1).fill("40")
        page.fill("#prompt", "sudoku 2031 0002 0013 3004")
        page.click("#send")
        page.locator("input[type=range]").nth(1).wait_for()
        page.locator("input[type=range]").nth(0).fill("9")
        page.locator("h1").click()
        page.screenshot(path=TARGET)
        browser.close()
    print(TARGET)


if __name__ == "__main__":
    main()
