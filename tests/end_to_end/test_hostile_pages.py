"""Pages with hostile texts in every field: no script, no request, no dialog, and nothing lost of the texts."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.hostile_pages import KINDS, hostile_texts, write_pages

from blip.html_page import visible

pytest.importorskip("matplotlib", reason="maps are drawn with matplotlib: pip install -e '.[pictures]'")

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason=f"no browser is installed (one of {', '.join(BROWSERS)})")

ELEMENTS = (
    "html head meta title style body h1 h2 h3 p b br span div section article small ul li table tr th td figure "
    "figcaption img svg rect line text main header footer nav a fieldset legend label input dl dt dd details summary "
    "caption thead tbody g defs clippath path use"
)
ATTRIBUTES = (
    "lang charset http-equiv content class style alt src viewbox width height x y x1 x2 y1 y2 stroke text-anchor name "
    "href id scope role tabindex aria-label type checked transform d clip-path"
)
POLICY = {
    "default-src": "'none'", "img-src": "data:", "style-src": "'unsafe-inline'", "base-uri": "'none'",
    "form-action": "'none'",
}  # fmt: skip


class Parts(HTMLParser):
    """Elements with their attributes, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.foreign: list[str] = []  # comments, processing instructions
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.foreign.append(data)

    handle_pi = unknown_decl = handle_comment


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, server: "Server") -> dict[str, Path]:
    return write_pages(hostile_texts(server.address), tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def shorter(pages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, server: "Server") -> dict[str, Path]:
    """The pages for a browser, which takes long for a text of 1 MB in a narrow column: only one of them has it."""
    folder = tmp_path_factory.mktemp("shorter")
    return write_pages(hostile_texts(server.address)[:-1], folder) | {"explanations": pages["explanations"]}


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_becomes_a_part_of_a_page(pages: dict[str, Path], server: "Server", kind: str) -> None:
    page = pages[kind].read_bytes().decode()  # UTF-8, without lone surrogates
    parts = Parts(page)
    assert {name for name, _ in parts.elements} <= set(ELEMENTS.split()) and not parts.foreign
    assert {key for _, attributes in parts.elements for key in attributes} <= set(ATTRIBUTES.split())
    for name, attributes in parts.elements:
        assert str(attributes.get("src", "data:image/")).startswith("data:image/"), name
        assert re.fullmatch(r"(#[\w-]+)?", attributes.get("href") or ""), name
        style = attributes.get("style") or ""
        drawn = r"([a-z-]+: ([\w #.,-]|var\(--\w+\))*(; )?)*"  # of matplotlib
        assert re.fullmatch(rf"(width:\d+px|color:#[0-9a-f]{{6}})?|{drawn}", style), name
    whole = "".join(parts.texts)
    for text in hostile_texts(server.address):
        assert visible(text, keep="\t\n\r") in whole, text[:100]
    assert page.count("</style>") == page.count("<style>") == 1, "texts are not a part of the style sheet"


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_forbids_scripts_and_requests(pages: dict[str, Path], kind: str) -> None:
    parts = Parts(pages[kind].read_bytes().decode())
    names = [name for name, _ in parts.elements]
    policies = [attributes for name, attributes in parts.elements if attributes.get("http-equiv")]
    assert [policy["http-equiv"] for policy in policies] == ["Content-Security-Policy"]
    rules = [rule.strip().partition(" ") for rule in str(policies[0]["content"]).split(";")]
    assert {name: value for name, _, value in rules} == POLICY
    assert names.index("meta") < names.index("style"), "a policy holds for what follows it"


# ---- in a browser ----------------------------------------------------------------------------------------------------


class Server:
    """Answers every request on this machine, and records it."""

    def __init__(self) -> None:
        asked = self.asked = list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.server.shutdown()
    running.server.server_close()


def opened(page: Path, profile: Path, limit: float = 120) -> Parts:
    """The page after a browser has loaded it and run whatever scripts it runs.

    Raises:
        subprocess.TimeoutExpired: after `limit` seconds; a dialog waits for an answer that nobody gives.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-extensions",
               "--virtual-time-budget=4000", "--dump-dom", f"--user-data-dir={profile}"]  # fmt: skip
    command = [str(BROWSER), *options, f"file://{quote(str(page))}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as browser:
        try:
            shown, errors = browser.communicate(timeout=limit)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)
    assert browser.returncode == 0, errors.decode(errors="replace")[-2000:]
    return Parts(shown.decode())


def title_of(parts: Parts, page: Path) -> str:
    """The first text of the page, that of its title."""
    assert "title" in [name for name, _ in parts.elements], page
    return next(text for text in parts.texts if text.strip()).strip()


@needs_browser
def test_the_texts_are_hostile(server: Server, tmp_path: Path) -> None:
    """As markup, in a page without a policy, they change the title, request what they name and open dialogs."""
    wanted = {"script": 0, "closed": 1, "comment": 2, "error": 3, "svg": 7, "sheet": 14, "refresh": 16}
    texts = hostile_texts(server.address)
    for path, number in wanted.items():
        page = tmp_path / f"{path}.html"
        text = texts[number].replace("alert(1)", "1")
        page.write_text(f"<!doctype html><title>untouched</title><body>{text}", encoding="utf-8")
        server.asked.clear()
        parts = opened(page, tmp_path / "profile")
        assert f"/{path}" in server.asked, path
        if path != "refresh":  # which left the page
            assert title_of(parts, page) == ("owned" if "owned" in text else "untouched"), path
    page.write_text("<script>alert(1)</script>")
    with pytest.raises(subprocess.TimeoutExpired):
        opened(page, tmp_path / "profile", limit=5)


@needs_browser
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_runs_and_requests_nothing(
    shorter: dict[str, Path], server: Server, tmp_path: Path, kind: str
) -> None:
    server.asked.clear()
    parts = opened(shorter[kind], tmp_path / "profile")
    assert not server.asked
    before = Parts(shorter[kind].read_bytes().decode().replace("\r\n", "\n"))  # as a browser reads it
    assert title_of(parts, shorter[kind]) == title_of(before, shorter[kind])
    # a browser adds bodies of tables; everything else is as it was written
    shown, written = ([one for one in several.elements if one[0] != "tbody"] for several in (parts, before))
    assert shown == written


@needs_browser
def test_the_policy_holds_where_markup_gets_into_a_page(
    shorter: dict[str, Path], server: Server, tmp_path: Path
) -> None:
    texts = hostile_texts(server.address)
    page = tmp_path / "page.html"
    written = shorter["capfilt"].read_bytes().decode()
    for number in (0, 3, 7, 12, 13, 14, 17, 18):  # of scripts, images, frames, objects, style sheets, forms, videos
        text = texts[number]
        content = written[: written.index("<h2>")] + text + "</body></html>"
        page.write_text(content, encoding="utf-8")
        server.asked.clear()
        title = title_of(opened(page, tmp_path / "profile"), page)
        assert title == "CapFilt: what was kept" and not server.asked, (number, text)
