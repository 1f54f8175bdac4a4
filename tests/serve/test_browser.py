"""`blip serve` in a browser: upload, ask, maps, the table, what goes wrong, ten at once, keys alone, requests."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.random_checkpoints import all_checkpoints, noise_images
from helpers.serving import Server

pytest.importorskip("gradio", minversion="6.20", reason="the page is made with gradio: pip install -e '.[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="browsers are driven by playwright")
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")]

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
           "--disable-component-update", "--no-first-run"]  # fmt: skip
PATIENCE = 60_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    (folder / "images").mkdir()
    noise_images(folder / "images")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    models = all_checkpoints(folder)
    order = [models["vqa"], models["caption"], models["retrieval"], models["nlvr"]]
    with Server(*order, "--images", folder / "images", folder=folder / "temporary") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


class Tab:
    """A page in the browser, and what it asked for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.mistakes: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.on("console", lambda line: self.mistakes.append(line.text) if line.type == "error" else None)
        self.page.goto(address)
        self.page.get_by_label("Question about the image").wait_for()

    def choose(self, *files: Path, field: str = "open") -> None:
        self.page.set_input_files(f"#{field} input[type=file]", list(files))

    def open(self, file: Path) -> None:
        self.choose(file)
        self.page.get_by_role("img", name=f"The chosen image: {file.name}, 50 x 40 pixels").wait_for()

    def view(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def result(self, part: str = ".blip-result") -> Any:
        """What appeared: a part of a result, or a message in its place, which is an error."""
        self.page.locator(".blip-result:visible, .blip-problem:visible").last.wait_for()
        found = self.page.locator(f"{part}:visible")
        assert found.count(), self.page.locator(".blip-problem:visible").last.inner_text()
        return found.last


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Tab]:
    tab = Tab(browser, server.address)
    yield tab
    tab.context.close()


def test_upload_ask_and_see_the_map_word_by_word(tab: Tab, folder: Path, server: Server) -> None:
    tab.open(folder / "images" / "a.png")
    tab.page.get_by_label("Question about the image").fill("is there a lesion")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    answer = tab.result()
    assert "is there a lesion" in answer.inner_text() and answer.locator("tbody tr").count() == 5
    assert "Not for clinical use" in answer.inner_text()

    tab.view("Maps")
    explained = tab.page.get_by_label("Question, caption or text to explain")
    sync_api.expect(explained).to_have_value("is there a lesion", timeout=PATIENCE)
    tab.page.get_by_role("button", name="Draw the maps").click()
    words = tab.result(".blip-words")
    assert words.locator("label").all_inner_texts() == ["whole text", "is", "there", "a", "lesion"]
    assert words.get_by_role("img").count() == 1, "the other maps are hidden"
    tab.page.get_by_role("radio", name="whole text").focus()
    tab.page.keyboard.press("ArrowLeft")  # round to the last one
    words.get_by_role("img", name="Map of lesion over the image").wait_for()
    assert words.get_by_role("img").count() == 1
    width = words.get_by_role("img").evaluate("image => image.naturalWidth")
    assert width == 448
    assert not tab.mistakes and not server.errors


def test_results_vanish_with_their_image_and_their_model(tab: Tab, folder: Path) -> None:
    """An answer about one patient never stands beside the image of another one."""
    for change in ("image", "example", "model"):
        tab.open(folder / "images" / "a.png")
        tab.page.get_by_label("Question about the image").fill("is there a lesion")
        tab.page.get_by_role("button", name="Ask", exact=True).click()
        assert "is there a lesion" in tab.result().inner_text()
        if change == "image":
            tab.open(folder / "images" / "b.jpg")
        elif change == "example":
            tab.page.get_by_label("Or take one of these").click()
            tab.page.get_by_role("option", name="c/d.png").click()
            tab.page.get_by_role("img", name="The chosen image: c/d.png, 50 x 40 pixels").wait_for()
        else:
            tab.page.get_by_role("combobox", name="Model").click()
            tab.page.get_by_role("option", name="caption", exact=True).click()
            sync_api.expect(tab.page.get_by_role("tab")).to_have_text(
                ["Caption", "Maps", "Many images"], timeout=PATIENCE
            )
        sync_api.expect(tab.page.locator(".blip-result")).to_have_count(0, timeout=PATIENCE)
        sync_api.expect(tab.page.locator("#views")).to_contain_text("appear", timeout=PATIENCE)
    assert not tab.mistakes


def test_many_images_become_a_file(tab: Tab, folder: Path, server: Server, tmp_path: Path) -> None:
    tab.view("Many images")
    tab.choose(folder / "images" / "a.png", folder / "images" / "b.jpg", folder / "broken.png", field="files")
    tab.page.locator("#files").get_by_text("broken").wait_for()
    tab.page.get_by_label("Questions or texts, one in each line").fill("is there a lesion\nnormal")
    tab.page.get_by_role("button", name="Start").click()
    assert "broken.png cannot be read" in tab.result().inner_text()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Download the table (CSV)").click()
    assert download.value.suggested_filename == "blip.csv"
    download.value.save_as(tmp_path / "blip.csv")
    with open(tmp_path / "blip.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a.png", "a.png", "b.jpg", "b.jpg"]
    assert {row["note"] for row in rows} == {"not for clinical use"}
    assert not server.files()


def test_what_goes_wrong_is_said_on_the_page(tab: Tab, folder: Path, server: Server) -> None:
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    assert "there is no image" in tab.result(".blip-problem").inner_text()
    tab.choose(folder / "broken.png")
    tab.page.get_by_role("alert").filter(has_text="broken.png cannot be read").wait_for()
    tab.page.get_by_label("Or take one of these").click()
    tab.page.get_by_role("option", name="c/d.png").click()
    tab.page.get_by_role("img", name="The chosen image: c/d.png, 50 x 40 pixels").wait_for()
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    tab.page.get_by_role("alert").filter(has_text="the question is empty").wait_for()
    assert "Traceback" not in tab.page.content() and not server.errors


def test_each_model_has_the_views_of_what_it_can_do(tab: Tab, folder: Path) -> None:
    views = {
        "vqa": ["Ask", "Maps", "Many images"],
        "caption": ["Caption", "Maps", "Many images"],
        "retrieval": ["Match", "Maps", "Many images"],
        "nlvr": ["Two images", "Maps"],
        "vqa ": ["Ask", "Maps", "Many images"],
    }
    for model, names in views.items():
        tab.page.get_by_role("combobox", name="Model").click()
        tab.page.get_by_role("option", name=model.strip(), exact=True).click()
        sync_api.expect(tab.page.locator(".blip-model")).to_contain_text(model.strip(), timeout=PATIENCE)
        sync_api.expect(tab.page.get_by_role("tab")).to_have_text(names, timeout=PATIENCE)
    tab.page.get_by_role("combobox", name="Model").click()
    tab.page.get_by_role("option", name="caption", exact=True).click()
    tab.page.get_by_role("button", name="Write a caption").wait_for()
    tab.open(folder / "images" / "a.png")
    tab.page.get_by_role("button", name="Write a caption").click()
    assert tab.result().locator("tbody tr").count() == 3


def test_the_page_is_used_with_keys_alone(tab: Tab, folder: Path) -> None:
    names = []
    for _ in range(12):
        tab.page.keyboard.press("Tab")
        names.append(tab.page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement."
                                       "innerText || document.activeElement.type"))  # fmt: skip
        if names[-1] == "Ask" and tab.page.evaluate("document.activeElement.tagName") == "BUTTON" and "text" in names:
            break
    for name in ("Model", "Choose an image or a video, or drop it here", "Or take one of these", "Maps", "Many images"):
        assert name in names, names
    assert names[-1] == "Ask", names
    tab.open(folder / "images" / "a.png")
    tab.page.get_by_label("Question about the image").focus()
    tab.page.keyboard.type("is there a lesion")
    tab.page.keyboard.press("Enter")
    assert "Probability" in tab.result().inner_text()
    unnamed = "[...document.querySelectorAll('img')].filter((one) => !one.alt).length"
    assert tab.page.evaluate(unnamed) == 0
    live = "[...document.querySelectorAll('.blip-live')].every((one) => one.getAttribute('aria-live') === 'polite')"
    assert tab.page.evaluate(live)


def test_nothing_but_the_server_is_asked(tab: Tab, server: Server, folder: Path) -> None:
    tab.open(folder / "images" / "a.png")
    tab.page.get_by_label("Question about the image").fill("is there a lesion")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    tab.result()
    assert len(tab.asked) > 10
    foreign = [url for url in tab.asked if not url.startswith((f"{server.address}/", "data:", "blob:"))]
    assert not foreign
    assert not tab.page.get_by_text("gradio", exact=False).filter(visible=True).count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1400])
def test_the_page_fits_and_can_be_read(browser: Any, server: Server, folder: Path, width: int, scheme: str) -> None:
    tab = Tab(browser, server.address, viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.open(folder / "images" / "a.png")
    tab.page.get_by_label("Question about the image").fill("is there a lesion")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    tab.result()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for part in (".blip-head .blip-warning", ".blip-result .blip-warning", ".blip-result thead th", "button#ask"):
        colours = tab.page.locator(part).first.evaluate(COLOURS)
        assert contrast(*colours) >= 4.5, (part, colours)
    if shots := os.environ.get("BLIP_SHOTS"):
        tab.page.screenshot(path=f"{shots}/{width}-{scheme}.png", full_page=True)
    tab.context.close()


# the colour of the text of an element, and that of the first element behind it that is opaque
COLOURS = """element => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  let behind = element;
  while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 1) behind = behind.parentElement;
  return [numbers(getComputedStyle(element).color), behind ? numbers(getComputedStyle(behind).backgroundColor)
          : [255, 255, 255]];
}"""


def contrast(first: list[float], second: list[float]) -> float:
    """The ratio of WCAG 2: 1 for equal colours, 21 for black and white."""

    def luminance(colour: list[float]) -> float:
        shares = [value / 255 for value in colour[:3]]
        linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_ten_browsers_at_once(browser: Any, server: Server, folder: Path) -> None:
    tabs = [Tab(browser, server.address) for _ in range(10)]
    for tab in tabs:
        tab.open(folder / "images" / "a.png")
        tab.page.get_by_label("Question about the image").fill("is there a lesion")
    for tab in tabs:  # without waiting for the answers
        tab.page.get_by_role("button", name="Ask", exact=True).click(no_wait_after=True)
    answers = {tab.result().locator("tbody").inner_text() for tab in tabs}
    assert len(answers) == 1
    assert not [mistake for tab in tabs for mistake in tab.mistakes] and not server.errors
    for tab in tabs:
        tab.context.close()
