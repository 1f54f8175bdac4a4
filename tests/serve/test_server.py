"""`blip serve` as a whole, without a browser: questions, batches, bad requests, many at once, memory, the end."""

import base64
import csv
import io
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from helpers.dicom import write_scans, written
from helpers.random_checkpoints import ANSWERS, all_checkpoints, noise_images
from helpers.running import code_and_text
from helpers.serving import API, Page, Server, first_cells, texts_of
from helpers.videos import write_video

import blip
from blip.data.image_bytes import ImageLimits
from blip.serve.cli import examples_of
from blip.serve.handlers import Handlers
from blip.serve.limits import Limits
from blip.serve.uploads import Uploads

pytest.importorskip("gradio", minversion="6.20", reason="the page is made with gradio: pip install -e '.[serve]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    (folder / "images").mkdir()
    noise_images(folder / "images")
    return folder


@pytest.fixture(scope="module")
def checkpoints(folder: Path) -> dict[str, Path]:
    return all_checkpoints(folder)


@pytest.fixture(scope="module")
def server(folder: Path, checkpoints: dict[str, Path]) -> Iterator[Server]:
    """All models, and the images as examples."""
    with Server(*checkpoints.values(), "--images", folder / "images", folder=folder / "temporary") as server:
        yield server


@pytest.fixture
def page(server: Server) -> Page:
    return Page(server.address)


# ---- what the page does ----------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_predictor(page: Page, folder: Path, checkpoints: dict[str, Path]) -> None:
    image = folder / "images" / "a.png"
    shown = page.open(image)
    assert "a.png" in shown and "50 x 40 pixels" in shown and 'src="data:image/jpeg;base64,' in shown
    result = page.ask("vqa", "is there a lesion")
    (expected,) = blip.load(checkpoints["vqa"]).answer(str(image), "is there a lesion")
    assert first_cells(result) == [text for text, _ in expected.candidates[:5]]
    assert f"{100 * expected.probability:.1f} %" in result and "Not for clinical use" in result


def test_an_example_of_the_folder(page: Page, folder: Path) -> None:
    assert "d.png" in page.call("example", "c/d.png", "", "")[0]
    assert first_cells(page.ask("vqa", "is there a lesion"))
    for other in ("../vqa.vocab.txt", "/etc/passwd", str(folder / "images" / "a.png"), None, ["a.png"]):
        assert "there is no such image" in page.call("example", other, "", "")[0]


def test_captions_matches_and_verdicts(page: Page, folder: Path) -> None:
    page.open(folder / "images" / "a.png")
    assert len(first_cells(page.call("caption", "caption", 3)[0])) == 3
    matched = page.call("match", "retrieval", "normal\n\nis there a large lesion")[0]
    assert first_cells(matched) == ["normal", "is there a large lesion"] and "Cosine" in matched
    (record,) = page.upload(folder / "images" / "b.jpg")
    assert "b.jpg" in page.call("open_second", record)[1]
    assert sorted(first_cells(page.call("judge", "nlvr", "a lesion in the left lung")[0])) == ["false", "true"]


def test_several_files_are_one_item(page: Page, folder: Path, checkpoints: dict[str, Path]) -> None:
    files = [folder / "images" / name for name in ("a.png", "b.jpg")]
    shown = page.open(*files)
    assert "a.png and 1 more" in shown and shown.count("data:image/jpeg") == 2 and "2 pictures of one item" in shown
    study = blip.Study([str(file) for file in files])
    (expected,) = blip.load(checkpoints["vqa"]).answer(study, "is there a lesion")
    result = page.ask("vqa", "is there a lesion")
    assert first_cells(result) == [text for text, _ in expected.candidates[:5]]
    assert f"{100 * expected.probability:.1f} %" in result
    (text,) = blip.load(checkpoints["caption"]).write(study)[0]
    assert first_cells(page.call("caption", "caption", 1)[0]) == [text.text]
    probability = float(blip.load(checkpoints["retrieval"]).match_probability(study, "normal"))
    assert f"{100 * probability:.1f} %" in page.call("match", "retrieval", "normal")[0]
    maps = page.call("explain", "vqa", "is there a lesion", "answer", "relevance", "0")[0]
    assert maps.count("data:image/jpeg") == 5  # of the whole text and of each word
    assert "a.png and 1 more has 2 pictures" in page.call("judge", "nlvr", "a lesion")[0]
    shown = page.open(files[0], ("broken.png", b"no image"))
    assert "broken.png cannot be read" in shown and "Traceback" not in shown
    assert "at most 100 are read at once" in page.open(*[("x.png", b"x")] * 101)
    assert first_cells(page.ask("vqa", "is there a lesion")) == [text for text, _ in expected.candidates[:5]]


def test_series_are_volumes_with_windows_and_parts(page: Page, folder: Path, checkpoints: dict[str, Path]) -> None:
    pytest.importorskip("pydicom")
    scans = folder / "scans"
    scans.mkdir()
    write_scans(scans)
    files = [scans / "ct" / f"{place}.dcm" for place in (3, 0, 4, 2, 1)]
    shown = page.open(*files, window="bone")
    assert "5 slices or frames of one scan" in shown and shown.count("data:image/jpeg") == 5
    m = blip.load(checkpoints["retrieval"])

    def expected(reference: str, **view: str) -> str:
        m.limits = ImageLimits(**view)
        return f"{100 * float(m.match_probability(f'{scans}/{reference}', 'normal')):.1f} %"

    assert expected("ct/", window="bone") in page.call("match", "retrieval", "normal")[0]
    assert page.call("view", "40/400", "slices=2")[0].count("data:image/jpeg") == 2
    assert expected("ct/#slices=2", window="40/400") in page.call("match", "retrieval", "normal")[0]
    assert page.call("view", "the file's own", "slice=3")[0].count("data:image/jpeg") == 1
    assert expected("ct/#slice=3") in page.call("match", "retrieval", "normal")[0]
    for window, parts, message in (
        ("bones", "", "the window &#39;bones&#39; is none of lung"),
        ("", "slices=0", "slices is &#39;0&#39;; it has to be a whole number from 1"),
        ("", "slice=9", "there is no slice 9: the series has 5"),
        ("", "axis=axial", "axis has no meaning here"),
        ("", "/../../x", "&#39;/../../x&#39; is no option of a scan"),
        ("", "frames=3", "is no option of a scan (did you mean &#39;frame&#39;?): there can be frame=N"),
        ([3], {}, "data:image/jpeg"),
    ):
        assert message in page.call("view", window, parts)[0], (window, parts)
    page.reload()
    assert "there is no image: choose one first" in page.call("view", "lung", "")[0]
    views = [("front.dcm", written(np.zeros((8, 9), np.uint8), SeriesInstanceUID="1.2")), files[0]]
    assert "2 pictures of one item" in page.open(*views)  # of two series, in the order of their files


def test_videos_are_items_of_frames(page: Page, folder: Path, checkpoints: dict[str, Path]) -> None:
    clip = write_video(folder / "clip.mp4", 20)
    assert "5 frames of one video" in page.open(clip, parts="frames=5")
    m = blip.load(checkpoints["vqa"])
    (expected,) = m.answer(f"{clip}#frames=5", "is there a lesion")
    assert f"{100 * expected.probability:.1f} %" in page.ask("vqa", "is there a lesion")
    maps = page.call("explain", "vqa", "is there a lesion", "answer", "relevance", "0")[0]
    assert maps.count("data:image/jpeg") == 5  # of the whole text and of each word
    assert "clip.mp4 has 5 pictures" in page.call("judge", "nlvr", "a lesion")[0]
    rows = table_of(page.call("batch", "vqa", page.upload(clip), "answer", "is there a lesion")[1])
    (expected,) = m.answer(str(clip), "is there a lesion")
    assert rows[1][:3] == ["clip.mp4", "is there a lesion", expected.text]
    assert float(rows[1][3]) == pytest.approx(expected.probability, abs=1e-4)


def test_a_series_in_the_folder_of_images(folder: Path) -> None:
    place = folder / "examples"
    place.mkdir()
    write_scans(place)
    noise_images(place)
    found = examples_of(str(place))
    assert found["ct/ (volume)"] == place / "ct" and "ct.dcm" in found and "ct/0.dcm" not in found and "a.png" in found
    handlers = Handlers({}, found, Uploads(folder / "none", Limits()), Limits())
    assert handlers.example("ct/ (volume)", "", "slices=3", "page").count("data:image/jpeg") == 3
    assert handlers.uploads.of("page").name == "ct/ (volume)"


@pytest.mark.parametrize("method", ["gradcam", "raw", "relevance", "rollout"])
def test_maps_have_a_picture_for_each_word(page: Page, folder: Path, method: str) -> None:
    page.open(folder / "images" / "a.png")
    result = page.call("explain", "vqa", "is there a lesion", "answer", method, "0")[0]
    assert re.findall(r"<label[^>]*>(.*?)</label>", result) == ["whole text", "is", "there", "a", "lesion"]
    pictures = re.findall(r'alt="([^"]*)" src="data:image/jpeg;base64,([^"]+)"', result)
    assert [alt for alt, _ in pictures][-1] == "Map of lesion over the image"
    assert len({data for _, data in pictures}) > 2, "words have maps of their own"


def test_the_missing_image_of_two_is_named(page: Page, folder: Path) -> None:
    page.reload()
    page.open(folder / "images" / "a.png")
    assert "there is no second image" in page.call("judge", "nlvr", "a lesion in the left lung")[0]


@pytest.mark.parametrize("model", ["vqa", "nlvr"])
def test_maps_of_the_image_alone_need_no_text(page: Page, folder: Path, model: str) -> None:
    page.open(folder / "images" / "a.png")
    result = page.call("explain", model, "is ignored", "image", "relevance", "1")[0]
    assert "The image alone, without a text" in result and "rollout, all layers</p>" in result
    assert re.findall(r"<label[^>]*>(.*?)</label>", result) == ["image"]


def test_a_caption_is_written_where_none_is_given(page: Page, folder: Path) -> None:
    page.open(folder / "images" / "a.png")
    result = page.call("explain", "caption", "", "caption", "relevance", "the middle one")[0]
    assert "<fieldset" in result
    assert "question is empty" in page.call("explain", "vqa", "", "answer", "relevance", "1")[0]


def table_of(result: str) -> list[list[str]]:
    data = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', result)
    assert data
    return list(csv.reader(io.StringIO(base64.b64decode(data[1]).decode("utf-8-sig"), newline="")))


def test_a_batch_becomes_a_table(page: Page, folder: Path, server: Server) -> None:
    images = [folder / "images" / "a.png", ("=cmd|x.png", (folder / "images" / "b.jpg").read_bytes())]
    files = page.upload(*images, ("broken.png", b"\x89PNG\r\n\x1a\nbroken"))
    result = page.call("batch", "vqa", files, "answer", "is there a lesion\nnormal")[1]
    rows = table_of(result)
    assert rows[0] == ["image", "question", "answer", "probability", "note"] and len(rows) == 5
    assert [row[0] for row in rows[1:]] == ["a.png", "a.png", "'=cmd|x.png", "'=cmd|x.png"]
    assert {row[2] for row in rows[1:]} <= set(ANSWERS) and rows[1][-1] == "not for clinical use"
    assert "broken.png cannot be read" in texts_of(result)
    assert not server.files(), "uploads are removed"
    captions = page.call("batch", "caption", page.upload(images[0]), "caption", "")[1]
    assert table_of(captions)[0][:2] == ["image", "caption"]


# ---- what people get wrong -------------------------------------------------------------------------------------------

WRONG: list[tuple[str, tuple[str, bytes], str]] = [
    ("no image", ("x.png", b"hello"), "x.png cannot be read: not an image, or a broken one"),
    ("cut", ("x.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"), "x.png cannot be read"),
    ("empty", ("x.png", b""), "cannot be read: the file is empty"),
    ("DICOM", ("x.dcm", bytes(128) + b"DICM" + bytes(99)), "a DICOM file"),
    ("hostile name", ("<img src=x onerror=alert(1)>.png", b"hello"), "&lt;img src=x onerror=alert(1)&gt;.png cannot"),
    ("folder in the name", ("../../x.png", b"hello"), "x.png cannot be read"),
]


@pytest.mark.parametrize("file, message", [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_broken_files_are_named(page: Page, server: Server, file: tuple[str, bytes], message: str) -> None:
    shown = page.open(file)
    assert message in shown and 'role="alert"' in shown
    assert "Traceback" not in shown and str(server.folder) not in shown and "<img" not in shown
    assert not server.files()


def test_requests_that_cannot_be_answered_get_a_sentence(page: Page, folder: Path, server: Server) -> None:
    assert "there is no image: choose one first" in page.ask("vqa", "is there a lesion")
    page.open(folder / "images" / "a.png")
    assert "question is empty" in page.ask("vqa", " ")
    assert "tokens, the model reads" in page.ask("vqa", "lesion " * 200)
    assert "cannot do this: it matches images and texts" in page.ask("retrieval", "is there a lesion")
    assert "there is no text" in page.call("match", "retrieval", "\n \n")[0]
    assert "at most 20 are read" in page.call("match", "retrieval", "a lesion\n" * 21)[0]
    assert "has no maps of" in page.call("explain", "caption", "a", "answer", "raw", "0")[0]
    assert "choose the files first" in page.call("batch", "vqa", None, "answer", "is there a lesion")[1]
    for strange in (None, 5, ["is", "there"], {"a": 1}):
        assert "question is empty" in page.ask("vqa", strange)  # type: ignore[arg-type]
        assert "no such model" in page.ask(strange, "is there a lesion")  # type: ignore[arg-type]
        assert strange is None or "method is" in page.call("explain", "vqa", "a", "answer", strange, strange)[0]
        assert 'role="' in page.call("caption", "caption", strange)[0]
    assert not server.errors


def test_a_broken_file_keeps_the_last_image(page: Page, folder: Path) -> None:
    page.open(folder / "images" / "a.png")
    page.open(("x.png", b"hello"))
    assert first_cells(page.ask("vqa", "is there a lesion"))


def test_pages_do_not_see_each_other(server: Server, page: Page, folder: Path) -> None:
    page.open(folder / "images" / "a.png")
    assert "choose one first" in Page(server.address).ask("vqa", "is there a lesion")


# ---- what nobody may have --------------------------------------------------------------------------------------------


def test_no_file_of_the_server_can_be_fetched(page: Page, server: Server, folder: Path) -> None:
    (record,) = page.upload(folder / "images" / "a.png")
    for path in ("/etc/passwd", str(folder / "images" / "a.png"), str(blip.__file__), record["path"]):
        for route in ("/file=", f"{API}/file=", "/file/", f"{API}/file/", f"{API}/proxy=", "/static/..", "/assets/.."):
            answer = page.client.get(f"{route}{path}")
            assert answer.status_code == 404, (route, path)
    for route in ("/monitoring", f"{API}/runs", f"{API}/run/ask", "/docs", "/openapi.json", f"{API}/openapi.json"):
        assert page.client.get(route).status_code == 404, route
        assert page.client.post(route, json={}).status_code == 404, route


def test_only_uploads_are_read(page: Page, folder: Path) -> None:
    outside = folder / "images" / "a.png"
    for path in (str(outside), "http://127.0.0.1:1/x.png", "/etc/passwd", "../a.png"):
        record = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            page.call("open", record)
    assert outside.exists()


def test_the_page_tells_no_path_and_names_no_other_address(server: Server, page: Page, folder: Path) -> None:
    for route in ("/", "/config", f"{API}/info", "/theme.css"):
        text = page.client.get(route).text
        assert str(folder) not in text and str(Path(blip.__file__).parent) not in text, route
    assert not re.findall(r"fonts\.g|@import", page.client.get("/theme.css").text)
    policy = page.client.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def test_foreign_hosts_and_large_requests_are_refused(page: Page) -> None:
    assert page.client.get("/", headers={"host": "evil.example"}).status_code == 421
    assert page.client.post(f"{API}/queue/join", content=b"[" + b"0," * (1 << 20) + b"0]").status_code == 413
    assert "x.png has 22,020,096 bytes; at most 20,971,520" in page.open(("x.png", bytes(21 << 20)))
    too_large = [("files", ("x.png", bytes(207 << 20)))]
    assert page.client.post(f"{API}/upload", files=too_large).status_code == 413


def test_a_password_is_needed_elsewhere(folder: Path, checkpoints: dict[str, Path]) -> None:
    code, text = code_and_text("serve", checkpoints["vqa"], "--host", "0.0.0.0")
    assert code == 1 and "give --auth USER:FILE" in text
    arguments = (checkpoints["vqa"], "--auth", "doctor:env:PAGE_PASSWORD")
    with Server(*arguments, folder=folder / "locked", env={"PAGE_PASSWORD": "correct horse"}) as locked:
        command = Path(f"/proc/{locked.program.process.pid}/cmdline").read_bytes()
        assert b"correct horse" not in command
        client = httpx.Client(base_url=locked.address, timeout=60)
        assert client.get("/config").status_code == 401
        body = {"data": ["vqa", "x"], "fn_index": 0, "session_hash": "a"}
        assert client.post(f"{API}/queue/join", json=body).status_code == 401
        wrong = client.post("/login", data={"username": "doctor", "password": "wrong"})
        assert wrong.status_code in (400, 401)
        client.post("/login", data={"username": "doctor", "password": "correct horse"}).raise_for_status()
        shown = Page(locked.address, client).open(folder / "images" / "a.png")
        assert "a.png" in shown
        codes = [client.post("/login", data={"username": "doctor", "password": "x"}).status_code for _ in range(25)]
        assert codes[-1] == 429


# ---- many, and for long ----------------------------------------------------------------------------------------------


def test_twenty_questions_at_once(server: Server, folder: Path) -> None:
    pages = [Page(server.address) for _ in range(20)]
    for page in pages:
        page.open(folder / "images" / "a.png")
    together = threading.Barrier(len(pages))

    def ask(page: Page) -> str:
        together.wait()
        return page.ask("vqa", "is there a large lesion in the left lung")

    with ThreadPoolExecutor(len(pages)) as threads:
        results = list(threads.map(ask, pages))
    assert len(set(results)) == 1 and len(first_cells(results[0])) == 5
    assert not server.errors


def test_memory_is_flat(server: Server, folder: Path) -> None:
    """The first hundred requests fill what is kept of the last pages; the next four hundred add nothing."""
    after = {}
    page = Page(server.address)
    for number in range(1, 501):
        if number % 5 == 1:
            page.reload()
            page.open(folder / "images" / "a.png")
        assert "<table>" in page.ask("vqa", "is there a lesion")
        after[number] = server.memory()
    assert after[500] - after[100] < 40, "MiB"


def test_an_interrupt_ends_it_at_once_and_leaves_nothing(folder: Path, checkpoints: dict[str, Path]) -> None:
    with Server(checkpoints["vqa"], folder=folder / "ended") as server:
        page = Page(server.address)
        page.upload(folder / "images" / "a.png")
        assert server.files() == ["a.png"], "no request has read it yet"
        with page.client.stream("GET", f"{API}/heartbeat/abc"):  # a page is open
            assert server.interrupt() < 10
        assert server.program.poll() == 0 and not server.errors
        assert not os.listdir(server.folder)


def test_a_port_in_use_is_named(server: Server, checkpoints: dict[str, Path]) -> None:
    code, text = code_and_text("serve", checkpoints["vqa"], "--port", server.address.rpartition(":")[2])
    assert code == 1 and "--port takes another" in text
