"""Takes the screenshots of the documentation, in a headless Chromium.

python docs/make_screenshots.py --answerer runs/vqa_phantoms/best --run runs/caption_phantoms

It needs `playwright`, PyAV and a Chromium, and runs on phantoms by configs/vqa_phantoms.yaml and
configs/caption_phantoms.yaml. Each function of PAGES takes those of one command; to add a command, add its function.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import typer
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from blip.data.phantom_studies import draw_video

ASSETS = Path(__file__).resolve().parent / "assets"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
NAMES = ("serve_ask.png", "serve_maps.png", "serve_video.png", "report.png", "show.png")
SIZE = {"width": 1200, "height": 800}


def main(
    answerer: Annotated[str, typer.Option(help="a checkpoint that answers questions")] = "runs/vqa_phantoms/best",
    image: Annotated[Path, typer.Option(help="an image to ask about")] = Path("runs/demo/data/test/images/000011.png"),
    question: Annotated[str, typer.Option(help="a question about it")] = "what part of the body is shown?",
    run: Annotated[Path, typer.Option(help="a run of fine-tuning that has ended")] = Path("runs/caption_phantoms"),
    out: Annotated[Path, typer.Option(help="folder to write")] = ASSETS,
) -> None:
    """Takes all screenshots."""
    browser_file = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_file, args=OPTIONS)
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        for take in PAGES:
            take(page, out, answerer=answerer, image=image, question=question, run=run)
        browser.close()
    for name in NAMES:  # 256 colours: below 250 KB each
        Image.open(out / name).convert("RGB").quantize(256).save(out / name, optimize=True)


def serve(page: Page, out: Path, *, answerer: str, image: Path, question: str, **_: Any) -> None:
    """`blip serve`: the answers to a question, the map of its last word, and the frames of a video."""
    with served(answerer) as address, tempfile.TemporaryDirectory() as folder:
        page.goto(address)
        page.set_input_files("#open input[type=file]", image)
        page.locator("#open-preview img").wait_for()
        page.get_by_label("Question about the image").fill(question)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator(".blip-result:visible").wait_for()
        page.screenshot(path=out / "serve_ask.png", full_page=True, animations="disabled")
        page.get_by_role("tab", name="Maps").click()
        page.get_by_role("button", name="Draw the maps").click()
        words = page.locator(".blip-words:visible")
        words.wait_for()
        words.locator("label").nth(-2).click()  # the last one is the question mark
        page.screenshot(path=out / "serve_maps.png", full_page=True, animations="disabled")
        page.set_input_files("#open input[type=file]", a_video(Path(folder)))
        page.locator("#open-preview img").nth(7).wait_for()
        page.get_by_role("tab", name="Ask").click()
        page.get_by_role("button", name="Scans").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator(".blip-result:visible").wait_for()
        page.screenshot(path=out / "serve_video.png", full_page=True, animations="disabled")


def report(page: Page, out: Path, *, run: Path, **_: Any) -> None:
    """`blip report`: what the run did in words, and its losses."""
    page.set_viewport_size({"width": 1200, "height": 1150})
    page.goto(made("report", run, "report.html"))
    page.screenshot(path=out / "report.png", animations="disabled")


def show(page: Page, out: Path, *, run: Path, **_: Any) -> None:
    """`blip show`: captions of the validation, the worst first."""
    page.set_viewport_size({"width": 1200, "height": 760})
    page.goto(made("show", run, "show.html", "--sort", "worst", "--limit", "12"))
    page.screenshot(path=out / "show.png", animations="disabled")


PAGES: tuple[Callable[..., None], ...] = (serve, report, show)


def a_video(folder: Path) -> Path:
    """A video of phantoms in which a lesion changes."""
    _, pictures = draw_video(np.random.default_rng(1), 96, 40)
    path = folder / "phantom.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = pictures[0].size
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(picture.convert("RGB"))))
        container.mux(stream.encode())
    return path


def made(verb: str, run: Path, name: str, *options: str) -> str:
    """The address of a page that a verb makes of a run, in a temporary folder."""
    path = Path(tempfile.mkdtemp()) / name
    subprocess.run([sys.executable, "-m", "blip", verb, run, "--out", path, *options], check=True)
    return path.as_uri()


@contextmanager
def served(checkpoint: str) -> Iterator[str]:
    """A running `blip serve` -> its address."""
    command = [sys.executable, "-m", "blip", "serve", checkpoint, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            lines: Any = server.stdout
            yield next(found[1] for line in lines if (found := re.search(r"open (http://\S+) in", line)))
        finally:
            server.terminate()


if __name__ == "__main__":
    typer.run(main)
