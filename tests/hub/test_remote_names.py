"""What a name of weights stands for, and which names are refused."""

from pathlib import Path

import pytest

from blip.errors import InputError
from blip.hub.names import Address, HubName, parse, unpinned

SHA = "a" * 64
COMMIT = "b" * 40


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("hub:lab/model", HubName("lab/model")),
        ("hub:bert-base-uncased", HubName("bert-base-uncased")),
        ("hub:lab/model@main", HubName("lab/model")),
        ("hub:lab/model@v1.0", HubName("lab/model", "v1.0")),
        ("hub:lab/model@refs/pr/7", HubName("lab/model", "refs/pr/7")),
        ("lab/model", HubName("lab/model", bare=True)),
        (f"lab/model@{COMMIT}", HubName("lab/model", COMMIT, bare=True)),
        ("https://a.org/b/model*_base.pth", Address("https://a.org/b/model*_base.pth")),
        (f"http://a.org/model.pth#sha256={SHA.upper()}", Address("http://a.org/model.pth", SHA)),
        ("http://127.0.0.1:80/model.pth", Address("http://127.0.0.1:80/model.pth")),
        ("model", None),
        ("model.pth", None),
        ("weights/model.pth", None),
        ("./lab/model", None),
        ("/lab/model", None),
        ("../lab", None),
        ("a/b/c", None),
        ("runs/demo", None),  # there is a folder `runs`: a mistyped path
        ("lab/there", None),
        ("", None),
    ],
)
def test_meanings(name: str, meaning: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    if name == "lab/there":
        Path(name).mkdir(parents=True)
    assert parse(name) == meaning


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:", "no name of a repository"),
        ("hub:../../etc", "no name of a repository"),
        ("hub:lab/a--b", "no name of a repository"),
        ("hub:lab/model/../x", "no name of a repository"),
        ("hub:lab/model@", "no revision"),
        ("hub:lab/model@../../x", "no revision"),
        ("http://a.org/model.pth", "without encryption"),
        ("HTTP://a.org/model.pth", "without encryption"),
        ("https:///model.pth", "no address"),
        ("https://user:secret@a.org/model.pth", "no address"),
        ("https://a.org:99999/model.pth", "no address"),
        ("https://a.org/model.pth#sha256=12", "64 hexadecimal digits"),
        ("https://a.org/model.pth#frag", "64 hexadecimal digits"),
        ("ftp://a.org/model.pth", "weights are read from https"),
        ("s3://bucket/model.pth", "weights are read from https"),
    ],
)
def test_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(name)


def test_names_without_their_pins() -> None:
    assert unpinned(f"hub:lab/model@{COMMIT}") == "hub:lab/model" == unpinned("hub:lab/model@main")
    assert unpinned("hub:lab/model@v1") == "hub:lab/model@v1"
    assert unpinned(f"https://a.org/model.pth#sha256={SHA}") == "https://a.org/model.pth"
    assert unpinned("model.pth") == "model.pth"
