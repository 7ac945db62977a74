"""The page in a real browser, as a person uses it. Screenshots go to $REMASK_SCREENSHOTS, or to the test's folder."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

import remask
from remask.serving.run import Server

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
SUDOKU = "sudoku 2031 0002 0013 3004"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters of random weights, which write otherwise than the model."""
    found = {}
    for name in ("maths", "code"):
        model, _ = remask.load("tiny")
        wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        for key, weight in wrapped.named_parameters():
            if "lora_" in key:
                nn.init.normal_(weight, std=0.6 if name == "maths" else 0.9)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        wrapped.save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def server(adapters: dict[str, Path]) -> Iterator[Server]:
    named = tuple(f"{name}={path}" for name, path in adapters.items())
    with remask.serve(
        *remask.load("tiny"), background=True, port=0, token_budget=4096, adapter=named, timeout=60.0
    ) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        opened = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """Opens the page; nothing may be wrong in its console, and nothing be asked of another server."""
    faults: list[str] = []
    pages = []

    def open_page(width: int = 1280, height: int = 800, scheme: str = "light", url: str = server.url) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
        page.on("request", lambda asked: faults.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(url)
        page.locator("fieldset").first.wait_for(state="attached")
        pages.append(context)
        return page

    yield open_page
    for context in pages:
        context.close()
    assert faults == []


def is_fault(said: Any) -> bool:
    """Whether a line of the console is an error, other than a request that the server refused."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.click("#send")


def finished(page: Any, answers: int = 1) -> Any:
    """The canvas of the last answer, when all have their scrubber."""
    page.locator("input[type=range]").nth(answers - 1).wait_for()
    return page.locator(".canvas").last


def text_of(server: Server, prompt: str, **settings: Any) -> str:
    return str(remask.generate(*remask.load("tiny"), [prompt], row_seeds=[0], **settings).texts[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_prompt_is_answered_on_a_canvas(scheme: str, width: int, opened: Any, server: Server, tmp_path: Path) -> None:
    page = opened(width, 844, scheme)
    ask(page, SUDOKU)
    canvas = finished(page)
    assert canvas.inner_text().replace("◦", "").rstrip() == text_of(server, SUDOKU)
    assert canvas.locator(".mask").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    folder = Path(os.environ.get("REMASK_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"page-{scheme}-{width}.png", full_page=True)


def test_the_canvas_is_seen_while_it_is_written_and_afterwards(opened: Any) -> None:
    page = opened()
    ask(page, SUDOKU)
    page.locator(".canvas .mask").first.wait_for()
    canvas = finished(page)
    whole = canvas.inner_text()
    page.locator("input[type=range]").fill("5")
    assert canvas.locator(".mask").count() == 80 - 5 * 4
    assert canvas.locator(".new").count() == 4
    page.locator("input[type=range]").fill("20")
    assert canvas.inner_text() == whole
    assert "77 tokens in 20 steps" in page.locator(".told").inner_text()


def test_settings_reach_the_server_and_two_answers_stand_side_by_side(opened: Any, server: Server) -> None:
    page = opened()
    page.click("#compare")
    page.locator("input[name=steps]").nth(1).fill("40")
    ask(page, "countdown 4 5 9 -> 9")
    finished(page, 2)
    left, right = (page.locator(".canvas").nth(n).inner_text().replace("◦", "").rstrip() for n in range(2))
    assert left == text_of(server, "countdown 4 5 9 -> 9")
    assert right == text_of(server, "countdown 4 5 9 -> 9", steps=40)
    assert page.locator(".answer h2").nth(1).inner_text() == "tiny · steps 40"


def test_an_answer_can_be_stopped(opened: Any, server: Server) -> None:
    page = opened()
    page.locator("input[name=max_tokens]").fill("400")
    page.locator("input[name=steps]").fill("400")
    ask(page, SUDOKU)
    page.locator(".canvas .mask").first.wait_for()
    page.keyboard.press("Escape")
    page.locator(".told", has_text="stopped").wait_for()
    page.locator("#send:enabled").wait_for()
    end = time.monotonic() + 10
    while not server.service.scheduler.counted.cancelled:  # the page knows it before the server does
        assert time.monotonic() < end
        time.sleep(0.01)
    page.locator("input[name=max_tokens]").fill("20")
    page.locator("input[name=steps]").fill("20")
    ask(page, SUDOKU)  # the server is free again
    assert finished(page).inner_text()


def test_gaps_are_filled_in(opened: Any) -> None:
    page = opened()
    page.click("#mode-infill")
    page.fill("#context", SUDOKU)
    ask(page, "2[[1]]31 [[4]]")
    canvas = finished(page)
    assert canvas.locator(".given").count() == len("231 ") + 1  # and the token that ends the text
    assert "5 tokens in" in page.locator(".told").inner_text()


def test_an_adapter_is_chosen_by_name(opened: Any) -> None:
    page = opened()
    texts = []
    for number, name in enumerate(("tiny", "maths", "code", "tiny")):
        page.locator("select[name=model]").select_option(name)
        page.click("#clear")
        ask(page, SUDOKU)
        texts.append(finished(page).inner_text())
        assert page.locator(".answer h2").inner_text() == name, number
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_a_reload_begins_anew(opened: Any) -> None:
    page = opened()
    ask(page, SUDOKU)
    finished(page)
    page.reload()
    page.locator("fieldset").first.wait_for(state="attached")
    assert page.locator(".answer").count() == 0
    ask(page, SUDOKU)
    finished(page)


def test_the_keyboard_is_enough(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the prompt"
    page.keyboard.press("Enter")
    page.locator("#prompt").focus()
    page.keyboard.type(SUDOKU)
    page.keyboard.press("Control+Enter")
    finished(page)
    assert page.locator("#said").inner_text().startswith("The answer: ")
    for box in page.locator("input:visible, select:visible, textarea:visible").all():
        assert box.evaluate("e => !!(e.labels?.length || e.getAttribute('aria-label'))")


def test_what_is_wrong_is_shown(opened: Any) -> None:
    page = opened()
    page.locator("input[name=threshold]").fill("0.5")
    page.locator("select[name=reveal]").select_option("random")
    page.fill("#prompt", "x")
    with page.expect_response("**/v1/chat/completions") as answered:
        page.click("#send")
    assert answered.value.status == 400
    assert "no meaning" in page.locator(".answer .error").inner_text()


@pytest.mark.parametrize("kind", ["curl", "Python"])
def test_the_request_can_be_copied(kind: str, opened: Any, server: Server) -> None:
    page = opened()
    page.locator("input[name=steps]").fill("10")
    ask(page, "it's <b>bold</b>")
    finished(page)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click(f"text=Copy as {kind}")
    copied = page.evaluate("window.copied")
    assert f"{server.url}/v1" in copied
    if kind == "Python":
        texts: list[str] = []
        exec(compile(copied, "copied", "exec"), {"print": texts.append})
        assert texts == [text_of(server, "it's <b>bold</b>", steps=10)]
    else:
        body = json.loads(copied.split("-d '", 1)[1].rsplit("'", 1)[0].replace("'\\''", "'"))
        assert body == {"model": "tiny", "steps": 10, "messages": [{"role": "user", "content": "it's <b>bold</b>"}]}


def test_what_a_model_writes_is_only_ever_text(browser: Any, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = remask.load("tiny")
    markup = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    with remask.serve(model, tokenizer, background=True, port=0, token_budget=4096) as evil:
        page = opened(url=evil.url)
        monkeypatch.setattr(tokenizer, "decode", lambda ids, **settings: markup)
        page.locator("input[name=max_tokens]").fill("4")
        ask(page, markup)
        canvas = finished(page)
        assert markup in canvas.inner_text()
        assert page.locator(".user").inner_text() == markup
        assert page.locator("main script, main img").count() == 0
        assert page.title() == "Remask"


def test_a_key_is_asked_for_and_kept_in_the_tab(browser: Any) -> None:
    with remask.serve(
        *remask.load("tiny"), background=True, port=0, token_budget=4096, api_key="open sesame"
    ) as locked:
        page = browser.new_page()
        page.goto(locked.url)
        page.locator("#key").fill("open sesame")
        page.click("#key-form button")
        page.locator("fieldset").first.wait_for(state="attached")
        ask(page, SUDOKU)
        assert finished(page).locator(".mask").count() == 0
        page.close()
