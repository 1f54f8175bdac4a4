"""Files of addresses: resumed, checked, kept, and refused with a message; all against a server of the tests."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.hub_server import HubServer

from blip.checkpoints import download
from blip.errors import InputError
from blip.hub.names import Address, RemoteError

CONTENT = os.urandom(1 << 20)
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("BLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(download, "FIRST_DELAY", 0.0)
    with HubServer() as server:
        yield server


@pytest.fixture
def address(hub: HubServer, tmp_path: Path) -> Address:
    (tmp_path / "file").write_bytes(CONTENT)
    return Address(hub.add_file("BLIP/model*_base.pth", tmp_path / "file"))


def test_a_file_is_fetched_once_and_named_with_its_hash(
    hub: HubServer, address: Address, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path, sha256 = download.fetch(address)
    assert (path.read_bytes(), sha256, path.name) == (CONTENT, SHA, "model__base.pth")
    assert path.is_relative_to(tmp_path / "cache") and SHA in capsys.readouterr().err
    assert download.fetch(address) == download.fetch(Address(address.url, SHA)) == (path, SHA)
    assert len(hub.asked) == 1
    path.write_bytes(CONTENT[:-1] + b"?")  # changed in the cache: fetched anew
    assert download.fetch(address)[0].read_bytes() == CONTENT
    os.utime(path)  # touched, and the same
    download.fetch(address)
    assert len(hub.asked) == 2


def test_a_cut_connection_is_resumed(hub: HubServer, address: Address) -> None:
    hub.fail("model", "cut", times=3)
    assert download.fetch(address)[0].read_bytes() == CONTENT
    starts = [int(head["range"].removeprefix("bytes=").rstrip("-")) for head in hub.headers[1:]]
    assert starts == [len(CONTENT) // 2, len(CONTENT) * 3 // 4, len(CONTENT) * 7 // 8]


def test_a_later_process_continues(hub: HubServer, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fail("model", "cut", times=1)
    hub.fail("model", "none", times=download.TRIES)
    with pytest.raises(RemoteError, match=r"524,288 bytes have arrived and are kept: start the command again"):
        download.fetch(address)
    assert download.fetch(address)[0].read_bytes() == CONTENT
    assert hub.headers[-1]["range"] == "bytes=524288-"


def test_a_part_of_an_older_file_is_not_continued(hub: HubServer, address: Address, tmp_path: Path) -> None:
    hub.fail("model", "cut", times=1)
    hub.fail("model", "none", times=download.TRIES)
    with pytest.raises(RemoteError):
        download.fetch(address)
    (tmp_path / "file").write_bytes(newer := os.urandom(1 << 20))
    hub.add_file("BLIP/model*_base.pth", tmp_path / "file")
    assert download.fetch(address)[0].read_bytes() == newer


@pytest.mark.parametrize("kind", ["wrong-range", "no-range", "416", "503"])
def test_servers_that_cannot_continue(hub: HubServer, address: Address, kind: str) -> None:
    hub.fail("model", "cut", times=1)
    hub.fail("model", kind, times=1)
    assert download.fetch(address)[0].read_bytes() == CONTENT


@pytest.mark.parametrize("answered", [True, False])
def test_the_wrong_bytes_are_refused(hub: HubServer, address: Address, answered: bool) -> None:
    wanted = Address(address.url, SHA)
    hub.fail("model", "wrong") if answered else hub.add_file("BLIP/model*_base.pth", Path(__file__))
    with pytest.raises(RemoteError, match=f"is another file than before: its sha256 is [0-9a-f]+, expected was {SHA}"):
        download.fetch(wanted)
    assert not list(download.cache().rglob("*.pth")) and not list(download.cache().rglob("*.partial"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("401", r"answers 401: it asks for a password: download the file with a browser"),
        ("403", r"answers 403: access is forbidden"),
        ("404", r"answers 404: there is no such file; like these"),
        ("410", r"answers 410"),
        ("416", r"could not be fetched \(the server refuses to continue \(416\)\)"),
        ("500", r"could not be fetched \(the server answers 500\)"),
        ("none", r"could not be fetched \(RemoteProtocolError: .*start the command again, or fetch"),
    ],
)
def test_refusals(hub: HubServer, address: Address, kind: str, message: str) -> None:
    hub.fail("model", kind)
    with pytest.raises(RemoteError, match=message):
        download.fetch(address, similar=lambda name: "; like these")


def test_no_server(hub: HubServer) -> None:
    with pytest.raises(RemoteError, match=r"could not be fetched \(ConnectError"):
        download.fetch(Address("http://127.0.0.1:9/model.pth"))


def test_offline(hub: HubServer, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RemoteError, match=r"is not in .*, and HF_HUB_OFFLINE is set"):
        download.fetch(address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    path, _ = download.fetch(address)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download.fetch(address)[0] == path


def test_redirections(hub: HubServer, address: Address) -> None:
    hub.redirections["/files/here.pth"] = "/files/BLIP/model*_base.pth"
    hub.redirections["/files/plain.pth"] = "http://example.org/model.pth"
    hub.redirections["/files/round.pth"] = "/files/round.pth"
    assert download.fetch(Address(f"{hub.url}/files/here.pth"))[0].read_bytes() == CONTENT
    with pytest.raises(InputError, match=r"http://example.org/model.pth is sent without encryption"):
        download.fetch(Address(f"{hub.url}/files/plain.pth"))
    with pytest.raises(RemoteError, match="more than 5 redirections"):
        download.fetch(Address(f"{hub.url}/files/round.pth"))


def test_what_is_no_file_of_weights(hub: HubServer, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"page.html does not"):
        download.fetch(Address(f"{hub.url}/page.html"))
    hub.heads["Content-Type"] = "text/html; charset=utf-8"
    with pytest.raises(RemoteError, match="is a web page"):
        download.fetch(address)
    hub.heads.clear()
    monkeypatch.setattr("blip.checkpoints.exchange.MAX_BYTES", 1000)
    with pytest.raises(RemoteError, match=r"has 1,048,576 bytes; at most 1,000"):
        download.fetch(address)


def test_a_stated_md5_is_compared(hub: HubServer, address: Address) -> None:
    hub.heads["x-goog-hash"] = "crc32c=AAAAAA==,md5=1B2M2Y8AsgTpgAmY7PhCfg=="
    with pytest.raises(RemoteError, match="its MD5 is not the stated one"):
        download.fetch(address)


def test_of_many_at_once_one_fetches(hub: HubServer, address: Address) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(download.fetch, [address] * 4))
    assert set(found) == {found[0]} and len(hub.asked) == 1


def test_no_token_is_sent(hub: HubServer, address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download.fetch(address)
    assert "hf_secret" not in json.dumps(hub.headers)
