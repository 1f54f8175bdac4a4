"""The parts of `blip serve` by themselves: uploads, passwords, names, results, the worker, the guard."""

import asyncio
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blip.errors import BlipError, InputError
from blip.serve.abilities import Scored
from blip.serve.cli import examples_of
from blip.serve.guard import LOGINS, Guard
from blip.serve.handlers import Handlers
from blip.serve.items import Item, Picture
from blip.serve.limits import Limits
from blip.serve.passwords import passwords
from blip.serve.results import scores, table
from blip.serve.served import named
from blip.serve.site import Site, check
from blip.serve.uploads import Uploads, shown_name
from blip.serve.worker import BusyError, Worker

# ---- results of images -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", ["", "second", None])
def test_no_result_of_an_image_that_was_replaced_meanwhile(tmp_path: Path, slot: str | None) -> None:
    """Whoever has chosen the next image does not read the answer about the last one beside it."""
    pytest.importorskip("gradio", minversion="6.20")
    from blip.serve.parts import of_images

    uploads = Uploads(tmp_path, Limits())
    uploads.keep("page", Item((Picture("first.png", b"1"),)))
    handlers = cast(Handlers, SimpleNamespace(uploads=uploads))

    def answer(page: str) -> str:
        uploads.keep("another page", Item((Picture("other.png", b"3"),)))
        if slot is not None:
            uploads.keep(page, Item((Picture("second.png", b"2"),)), slot)
        return "an answer"

    shown = of_images(handlers, answer)(SimpleNamespace(session_hash="page"))
    assert ("another image was chosen" in shown) == (slot is not None)
    assert ("an answer" in shown) == (slot is None)


# ---- uploads ---------------------------------------------------------------------------------------------------------


def uploaded(folder: Path, name: str = "x.png", data: bytes = b"data") -> dict[str, Any]:
    place = folder / "0123abcd"
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(data)
    return {"path": str(place / name), "orig_name": name}


def test_an_upload_is_removed_once_it_is_read(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Limits())
    assert uploads.read(uploaded(tmp_path)) == Picture("x.png", b"data")
    assert not list(tmp_path.iterdir())


def test_an_upload_that_is_too_large_is_removed_too(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Limits(max_image_mb=1))
    with pytest.raises(InputError, match=r"x.png has 1,048,577 bytes; at most 1,048,576"):
        uploads.read(uploaded(tmp_path, data=bytes((1 << 20) + 1)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["OUTSIDE", "LINK", "relative.png", "", "/etc/passwd"])
def test_nothing_outside_the_folder_is_read_or_removed(tmp_path: Path, path: str) -> None:
    outside, folder = tmp_path / "outside.png", tmp_path / "uploads"
    outside.write_bytes(b"secret")
    folder.mkdir()
    (folder / "link.png").symlink_to(outside)
    given = {"OUTSIDE": str(outside), "LINK": str(folder / "link.png")}.get(path, path)
    uploads = Uploads(folder, Limits())
    with pytest.raises(InputError, match="was not uploaded here"):
        uploads.read({"path": given, "orig_name": "x.png"})
    uploads.forget([{"path": given}])
    assert outside.read_bytes() == b"secret"


def test_images_are_kept_by_page_and_dropped(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Limits(memory_mb=2))
    half = bytes(1 << 19)
    for page in "abcd":
        uploads.keep(page, Item((Picture(page, half),)))
    assert uploads.of("a").name == "a"
    uploads.keep("e", Item((Picture("e", half),)))
    with pytest.raises(InputError, match="choose one first"):  # the one that was not used for longest
        uploads.of("b")
    assert [uploads.of(page).name for page in "acde"] == list("acde")
    uploads.keep("a", Item((Picture("right", half),)), "second")
    uploads.drop("a")
    for slot in ("", "second"):
        with pytest.raises(InputError):
            uploads.of("a", slot)


def test_what_nobody_uses_is_swept(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path, Limits(keep_seconds=0.05))
    uploads.keep("a", Item((Picture("a", b"1"),)))
    uploaded(tmp_path)
    assert uploads.on_disk() == 4
    uploads.sweep()
    assert uploads.of("a") and uploads.on_disk() == 4
    time.sleep(0.1)
    uploads.sweep(abandoned=0.05)
    assert uploads.on_disk() == 0
    with pytest.raises(InputError):
        uploads.of("a")


def test_names_of_files_are_without_folders_and_can_be_shown() -> None:
    assert shown_name("../../etc/x.png") == shown_name(r"C:\Users\x.png") == shown_name("x.png") == "x.png"
    assert shown_name("a\nb\u202egnp.exe") == r"a\x0ab\u202egnp.exe"
    assert len(shown_name("x" * 500 + ".png")) <= 80 and shown_name("x" * 500 + ".png").endswith("xxxx.png")
    assert shown_name("..") and shown_name("")


# ---- passwords, names ------------------------------------------------------------------------------------------------


def test_passwords_come_from_files_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password.txt").write_text("correct horse\nsecond line\n")
    monkeypatch.setenv("PAGE_PASSWORD", "battery staple")
    given = [f"doctor:{tmp_path / 'password.txt'}", "nurse:env:PAGE_PASSWORD"]
    assert passwords(given) == [("doctor", "correct horse"), ("nurse", "battery staple")]


@pytest.mark.parametrize("given, message", [
    ("doctor", "USER:FILE or USER:env:VARIABLE"),
    (":x", "USER:FILE or USER:env:VARIABLE"),
    ("doctor:env:PAGE_NOTHING", "no environment variable PAGE_NOTHING"),
    ("doctor:env:PAGE_SHORT", "password of doctor is shorter than 8"),
    ("doctor:FOLDER/none.txt", "none.txt: No such file"),
    ("doctor:FOLDER", "is a folder"),
])  # fmt: skip
def test_passwords_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.setenv("PAGE_SHORT", "geheim")
    with pytest.raises(BlipError, match=message) as error:
        passwords([given.replace("FOLDER", str(tmp_path))])
    assert "geheim" not in str(error.value)


def test_a_server_for_others_needs_a_password() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(InputError, match="--auth"):
            check(Site(host))
        check(Site(host, users=[("doctor", "correct horse")]))
    for host in ("127.0.0.1", "localhost", "::1"):
        check(Site(host))
    assert "horse" not in repr(Site(users=[("doctor", "correct horse")]))


@pytest.mark.parametrize("given, name", [
    ("runs/vqa_rad/best", "vqa_rad"), ("/data/secret/runs/a/checkpoints/latest/", "a"), ("x/model_base.pth",
    "model_base.pth"), ("Chest X-ray=runs/a/best", "Chest X-ray"), ("hub:Salesforce/blip-vqa-base", "blip-vqa-base"),
    ("runs/demo/run/checkpoints/step-00000012", "demo"), (".", "model"),
    ("Base=https://example.org/model.pth?version=2", "Base"),
])  # fmt: skip
def test_names_of_models_are_those_of_their_runs(given: str, name: str) -> None:
    assert named(given) == (name, given.removeprefix(f"{name}="))


def test_an_address_is_not_taken_for_a_name() -> None:
    address = "https://example.org/model.pth?version=2"
    assert named(address) == ("model.pth?version=2", address)


def test_examples_lie_inside_their_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "images", tmp_path / "secret.png"
    (inside / "below").mkdir(parents=True)
    outside.write_bytes(b"x")
    (inside / "below" / "a.png").write_bytes(b"x")
    (inside / "link.png").symlink_to(outside)
    assert list(examples_of(str(inside))) == ["below/a.png"]
    assert examples_of("") == {}


# ---- results ---------------------------------------------------------------------------------------------------------


def test_texts_are_text_and_tables_hold_no_formula() -> None:
    hostile = '<img src=x onerror="alert(1)">'
    shown = scores(hostile, [Scored(hostile, 0.5)], column=hostile, about=hostile, given=hostile)
    assert "<img" not in shown and shown.count("&lt;img") == 6
    rows = [{"image": hostile, "answer": "=1+1", "probability": 0.25}]
    shown = table(rows, 1, [hostile])
    assert "<img" not in shown and "0.2500" in shown


# ---- the worker ------------------------------------------------------------------------------------------------------


def test_calls_run_one_after_the_other_in_one_thread() -> None:
    worker, running, most, names = Worker("x"), [0], [0], set()

    def call() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        names.add(threading.current_thread().name)
        time.sleep(0.01)
        running[0] -= 1

    threads = [threading.Thread(target=worker.call, args=(call, 10)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and len(names) == 1
    with pytest.raises(InputError, match="wrong"):
        worker.call(lambda: (_ for _ in ()).throw(InputError("wrong")), 10)
    with pytest.raises(TimeoutError, match="own"):
        worker.call(lambda: (_ for _ in ()).throw(TimeoutError("own")), 10)


def test_a_call_that_waited_too_long_never_begins() -> None:
    worker, release, begun = Worker("x"), threading.Event(), []
    first = threading.Thread(target=worker.call, args=(release.wait, 10))
    first.start()
    with pytest.raises(BusyError, match="did not answer within 0 seconds"):
        worker.call(lambda: begun.append(1), 0.05)
    release.set()
    first.join()
    assert worker.call(lambda: 7, 10) == 7 and not begun


# ---- the guard -------------------------------------------------------------------------------------------------------


def answered(
    guard: Guard, path: str, *parts: bytes, method: str = "GET", host: str = "localhost:7860", length: str = ""
) -> tuple[int, bytes]:
    """Status and body of a request whose body comes in parts."""
    headers = [(b"host", host.encode()), *([(b"content-length", length.encode())] if length else [])]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict] = []

    async def receive() -> dict:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body of the request, or with an error where that ends early, as web frameworks do."""
    body, more = b"", True
    try:
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        status = 200
    except Exception:
        status, body = 500, b"an error"
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    limits = Limits(max_upload_mb=1, max_files=1)
    return Guard(echo, tmp_path, limits, local=True, on_disk=lambda: 0)


@pytest.mark.parametrize("path", [
    "/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1", "/monitoring", "/docs",
    "/gradio_api/runs", "/static/../../etc/passwd", "/assets/..", "/gradio_api/stream/a/b/c/playlist-file", "/x",
    "/gradio_api/file/etc/passwd", "/custom_component/a/b/c/d", "/gradio_api/vibe-code", "/gradio_api/deep_link",
])  # fmt: skip
def test_other_routes_are_not_there(guard: Guard, path: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert answered(guard, path, method=method)[0] == 404
    assert answered(guard, "/")[0] == answered(guard, "/assets/index.js")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:7860", "[::1]:7860", "127.8.8.8"])
def test_this_computer_has_several_names(guard: Guard, host: str) -> None:
    assert answered(guard, "/", host=host)[0] == 200


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "192.168.0.7", "127.0.0.1.nip.io"])
def test_a_foreign_name_is_refused_where_nobody_logs_in(guard: Guard, host: str) -> None:
    assert answered(guard, "/", host=host)[0] == 421
    guard.local = False
    assert answered(guard, "/", host=host)[0] == 200


def test_bodies_are_limited_however_they_come(guard: Guard) -> None:
    join, upload = "/gradio_api/queue/join", "/gradio_api/upload"
    assert answered(guard, join, b'{"data"', b": [1]}", method="POST") == (200, b'{"data": [1]}')
    assert answered(guard, join, b"[" + b"0," * (1 << 19), b"0]", method="POST")[0] == 413
    assert answered(guard, join, b"[]", method="POST", length=str(2 << 20))[0] == 413
    assert answered(guard, join, b"[]", method="POST", length="-1")[0] == 413
    assert answered(guard, upload, bytes(1 << 20), method="POST")[0] == 200
    status, body = answered(guard, upload, bytes(1 << 20), bytes(1 << 20), method="POST")
    assert status == 413 and body.startswith(b"the request is larger than 1 MiB")
    guard.on_disk = lambda: 1 << 30
    assert answered(guard, upload, b"x", method="POST")[0] == 503


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1/x", "", "x.png", "../x", "INSIDE/../../x", 5, ["a"]])
def test_no_request_names_another_file(guard: Guard, tmp_path: Path, path: object) -> None:
    join = "/gradio_api/queue/join"
    given = str(path).replace("INSIDE", str(tmp_path)) if isinstance(path, str) else path
    for data in ({"path": given}, [[{"a": {"path": given}}]]):
        assert answered(guard, join, json.dumps({"data": data}).encode(), method="POST")[0] == 403
    escaped = json.dumps({"data": {"path": given}}).replace("path", "p\\u0061th")
    assert answered(guard, join, escaped.encode(), method="POST")[0] == 403
    inside = json.dumps({"data": [{"path": str(tmp_path / "0" / "x.png"), "url": "http://127.0.0.1/x"}, None]})
    assert answered(guard, join, inside.encode(), method="POST")[0] == 200
    assert answered(guard, join, b"{" * 10, method="POST")[0] == 400


def test_attempts_to_log_in_are_counted(guard: Guard) -> None:
    codes = [answered(guard, "/login", b"x", method="POST")[0] for _ in range(LOGINS + 3)]
    assert codes == [200] * LOGINS + [429] * 3


def test_every_answer_has_the_policy(guard: Guard) -> None:
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    for path in ("/", "/monitoring"):
        scope = {"type": "http", "path": path, "method": "GET", "headers": [(b"host", b"localhost")]}
        asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    for start in (one for one in sent if one["type"] == "http.response.start"):
        headers = dict(start["headers"])
        assert b"default-src 'self'" in headers[b"content-security-policy"]
        assert headers[b"cache-control"] == b"no-store" and headers[b"x-content-type-options"] == b"nosniff"
