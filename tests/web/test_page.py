"""The page of serve, in a real browser where there is one."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accessibility import unreachable, violations
from conftest import LIMIT
from PIL import Image
from serving import Served, upload

from vqa_repro.web.server import IMAGE_BYTES


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """Open the page with the printed URL; errors in the browser's console fail the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, locale="en-US")
    opened = context.new_page()
    opened.set_default_timeout(1000 * LIMIT)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda line: complaints.append(line.text) if "status of 4" not in line.text else None,
    )
    opened.goto(f"http://127.0.0.1:{served.port}/?token={served.token}")
    opened.wait_for_selector("#samples button")
    yield opened
    context.close()
    assert complaints == []


def answered(page: Any) -> str:
    """Return what a screen reader announces once the answers have arrived."""
    return shows(page, "[role=status]", " ms)")


def shows(page: Any, selector: str, text: str) -> str:
    """Wait until an element contains ``text``; return its whole text."""
    page.locator(selector).filter(has_text=text).wait_for()
    return str(page.inner_text(selector))


DROP = """([name, size]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(size)], name));
  document.body.dispatchEvent(
    new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.slow
def test_choosing_an_image_typing_and_viewing_attention(
    page: Any, served: Served, drawn_folder: Path
) -> None:
    assert page.url == f"http://127.0.0.1:{served.port}/", "the token left the address bar"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", drawn_folder / "images" / "1.png")
    page.keyboard.press("Tab")
    page.keyboard.type("what color is the zebra?")
    page.keyboard.press("Enter")
    announced = answered(page)
    assert page.locator(".run").count() == 2
    first = page.locator(".run").first
    best = first.locator(".bars li").first.inner_text().split("\n")
    assert best[0] in announced and best[1].endswith("%")
    assert "zebra" in first.locator(".note").inner_text()
    notes = page.locator(".run").nth(1).locator(".note").all_inner_texts()
    assert "not finished (epoch 12 of 12)" in notes[0]

    # Hovering over a region; then the same by keyboard.
    first.locator("[role=gridcell]").nth(6).hover()
    hovered = first.locator(".readout").inner_text()
    assert re.fullmatch(r"row 2, column 3: [\d.]+% of the attention, [\d.]+ times uniform", hovered)
    first.locator("[role=gridcell][tabindex='0']").focus()
    for key in ("Control+Home", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert first.locator(".readout").inner_text() == hovered
    weight = re.findall(r"[\d.]+%", hovered)[0]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith(f"{weight}, ") and label.endswith("row 2, column 3")

    # The next hop, by keyboard.
    before = cell_weights(first)
    first.get_by_label("Hop 1").focus()
    page.keyboard.press("ArrowRight")
    assert first.get_by_label("Hop 2").is_checked() and cell_weights(first) != before
    page.get_by_label("as regions").focus()
    page.keyboard.press("Space")
    assert first.locator(".stage canvas").evaluate("c => [c.width, c.height]") == [4, 4]

    # HieCoAtt: levels, and words with their weights.
    second = page.locator(".run").nth(1)
    words = second.locator(".words li").all_inner_texts()
    assert [word.split()[0] for word in words] == ["what", "color", "is", "the", "zebra", "?"]
    second.locator(".words li").nth(1).hover()
    assert "“color”" in second.locator(".readout").inner_text()
    second.get_by_label("Question level").focus()
    page.keyboard.press("Space")
    assert second.locator(".words li").all_inner_texts() != words

    # A share that rounds to all is not shown as all.
    shown = page.evaluate("[0.452, 0.9998, 1].map(percent)")
    assert shown == ["45.2%", "99.98%", "100.0%"]

    # The page again without the token in the URL, and without any token.
    page.reload()
    page.wait_for_selector("#samples button")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    shows(page, "[role=alert]", "Open the URL that the server printed")


def cell_weights(run: Any) -> list[str]:
    cells = run.locator("[role=gridcell]")
    return [str(text) for text in cells.evaluate_all("all => all.map((one) => one.ariaLabel)")]


@pytest.mark.slow
def test_samples_fill_in_their_question_and_errors_are_shown(page: Any, served: Served) -> None:
    page.locator("#samples button").nth(2).click()
    answered(page)
    assert page.input_value("#question") != ""
    assert page.locator("#samples button[aria-pressed=true]").count() == 1
    assert page.inner_text("#true-answer").startswith("True answer: ")
    with page.expect_download() as download:
        page.locator("button.save").first.click()
    with Image.open(download.value.path()) as figure:
        assert figure.format == "PNG" and figure.width == 640
    page.fill("#question", " ")
    page.keyboard.press("Enter")
    assert "empty" in page.inner_text("[role=alert]")
    page.evaluate(DROP, ["huge.png", IMAGE_BYTES + 1])
    assert "huge.png is too large: 21.0 MB" in page.inner_text("[role=alert]")
    page.evaluate(DROP, ["broken.png", 1000])
    shows(page, "[role=alert]", "Refused: not an image")
    page.fill("#question", "is it red?")
    page.keyboard.press("Enter")
    assert "no image yet" in page.inner_text("[role=alert]")
    # The server has dropped the image: the page uploads it again.
    page.locator("#samples button").nth(0).click()
    answered(page)
    for shade in range(8):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (0, shade, 0)).save(buffer, "PNG")
        upload(served, buffer.getvalue())
    page.fill("#question", "is it blue at all?")
    page.keyboard.press("Enter")
    shows(page, "#title-answers", "at all")
    assert page.inner_text("[role=alert]") == ""


@pytest.mark.slow
def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("#samples button").first.click()
    answered(page)
    tree = page.locator("body").aria_snapshot()
    controls = re.findall(r"- '?(textbox|button|radio|img|group|grid|article|list)\b(.*)", tree)
    assert len(controls) > 10
    unnamed = [(kind, rest) for kind, rest in controls if kind != "list" and '"' not in rest]
    assert unnamed == []
    kinds = [kind for kind, _ in controls]
    assert kinds.count("grid") == 2 and tree.count("- gridcell ") == 2 * 16
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "title"), [("en", "Ask about"), ("zh-CN", "向图片提问")])
def test_axe_and_the_keyboard_find_nothing_wrong(
    browser: Any, served: Served, drawn_folder: Path, scheme: str, locale: str, title: str
) -> None:
    context = browser.new_context(locale=locale, color_scheme=scheme)
    page = context.new_page()
    address = f"http://127.0.0.1:{served.port}/"
    page.goto(address)
    assert violations(page) == [], "the page without a token"
    page.goto(f"{address}?token={served.token}")
    page.locator("#samples button").first.wait_for()
    assert title in page.inner_text("h1")
    assert violations(page) == [], "before the first question"
    page.fill("#question", "what color is the zebra?")
    page.set_input_files("#file", drawn_folder / "images" / "1.png")
    page.locator("#form button").click()
    page.locator(".run").nth(1).wait_for()
    assert violations(page) == [], "with answers"
    page.evaluate(DROP, ["huge.png", IMAGE_BYTES + 1])
    page.set_viewport_size({"width": 360, "height": 700})
    assert violations(page) == [], "on a phone, with an error"
    assert unreachable(page) == []
    context.close()
