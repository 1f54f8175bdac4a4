"""The pages of `blip show` and `blip report` in Chromium: widths of telephones and screens, light, dark, on paper."""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.written_runs import write_answers, write_run

from blip.reports.grid import show
from blip.reports.items import Choice
from blip.reports.run_page import report

pytestmark = pytest.mark.slow
pytest.importorskip("matplotlib", reason="curves need matplotlib: pip install -e '.[pictures]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[test]'")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)
if BROWSER is None:
    pytest.skip(f"no browser is installed (one of {', '.join(NAMES)})", allow_module_level=True)

PAGES = ("show", "report", "comparison")
WIDTHS = (400, 900, 1400)
# the lowest contrast of a text with its ground, by the formula of WCAG 2; texts of drawings have their colour as `fill`
CONTRAST = """() => {
  const light = c => c.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = node => {
    for (; node; node = node.parentElement) {
      const found = numbers(getComputedStyle(node).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let lowest = 99, where = '';
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(node);
    const colour = numbers(node.closest('svg') ? style.fill : style.color).slice(0, 3);
    const [a, b] = [light(colour), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < lowest) { lowest = ratio; where = node.tagName + ': ' + node.textContent.trim().slice(0, 40); }
  }
  return [lowest, where];
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    answers, run = write_answers(folder / "vqa"), write_run(folder / "pre")
    show(answers, folder / "show.html", Choice(sort="worst"))
    report(run, folder / "report.html")
    report(
        [run, write_run(folder / "other", text="a long text without blanks " + "x" * 300)], folder / "comparison.html"
    )
    return {name: folder / f"{name}.html" for name in PAGES}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_and_can_be_read(pages: dict[str, Path], browser: Any, name: str, scheme: str) -> None:
    problems: list[str] = []
    tab = browser.new_page(color_scheme=scheme)
    tab.on("console", lambda message: problems.append(message.text))  # refusals of the policy are among them
    tab.on(
        "request", lambda request: problems.extend([] if request.url.startswith(("file:", "data:")) else [request.url])
    )
    tab.goto(pages[name].as_uri())
    for width in WIDTHS:
        tab.set_viewport_size({"width": width, "height": 900})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"wider than {width} pixels"
    lowest, where = tab.evaluate(CONTRAST)
    assert lowest >= 4.5, where
    tab.emulate_media(media="print", color_scheme=scheme)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "paper is white"
    assert tab.evaluate(CONTRAST)[0] >= 4.5
    assert not problems
    tab.close()


@pytest.mark.parametrize("name", PAGES)
def test_pages_can_be_used_without_seeing_them(pages: dict[str, Path], browser: Any, name: str) -> None:
    tab = browser.new_page()
    tab.goto(pages[name].as_uri())
    assert tab.locator("h1").count() == tab.locator("main").count() == 1
    assert tab.evaluate("[...document.images].every(x => x.alt && x.complete && x.naturalWidth > 0)")
    assert tab.evaluate("[...document.querySelectorAll('svg')].every(x => x.getAttribute('aria-label').length > 20)")
    assert tab.evaluate("[...document.querySelectorAll('th')].every(x => x.scope)")
    assert tab.evaluate("[...document.querySelectorAll('nav a')].every(x => document.querySelector(x.hash))")
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(x => +x.tagName[1])")
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels)), "no level is left out"
    tab.close()


def test_the_switch_of_right_and_wrong(pages: dict[str, Path], browser: Any) -> None:
    tab = browser.new_page()
    tab.goto(pages["show"].as_uri())
    cards = tab.locator(".card")
    assert [cards.nth(n).is_visible() for n in range(5)] == [True] * 5
    tab.get_by_label("wrong ones").check()
    assert [cards.nth(n).is_visible() for n in range(5)] == [True, True, False, False, False]
    tab.keyboard.press("ArrowLeft")  # as the keyboard chooses among them
    assert [cards.nth(n).is_visible() for n in range(5)] == [False, False, True, True, True]
    tab.close()
