"""Tokenizer files that are damaged, or of another family: a message with the file, also where the library panics."""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from blip.errors import InputError
from blip.tokenizer import Tokenizer, load_tokenizer

SOUND = json.loads(Tokenizer.train(["a large lesion in the left lung", "0.5 mm"], 60)._backend.to_str())


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}


def entry(*place: Any, value: Any) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        *way, last = place
        for key in way:
            content = content[key]
        content[last] = value(content[last]) if callable(value) else value

    return change


def without(*tokens: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["model"]["vocab"] = {word: n for word, n in content["model"]["vocab"].items() if word not in tokens}
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in tokens]

    return change


CHANGED = {
    "no vocabulary": (entry("model", "vocab", value={}), "WordPiece|no token"),
    "unknown token is unknown": (entry("model", "unk_token", value="[WHAT]"), "Missing .UNK. token"),
    "no [PAD]": (without("[PAD]"), r"has no token \[PAD\]"),
    "no [CLS] and [SEP]": (without("[CLS]", "[SEP]"), r"has no token \[CLS\], \[SEP\]"),
    "two of one id": (entry("model", "vocab", value=lambda words: {**words, "new": 6}), "same id"),
    "an id of 4 billion": (entry("model", "vocab", value=lambda words: {**words, "new": 4 * 10**9}), "ids up to 4000"),
    "an id of a million": (entry("model", "vocab", value=lambda words: {**words, "new": 10**6}), "ids up to 1000000"),
    "a negative id": (entry("model", "vocab", value=lambda words: {**words, "new": -1}), "tokenizers library"),
    "an unknown model": (entry("model", value={"type": "Other"}), "tokenizers library"),
    "no model": (entry("model", value=None), "tokenizers library"),
    "added tokens are text": (entry("added_tokens", value="x"), "tokenizers library"),
    "of SentencePiece": (
        entry("normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "Precompiled",
    ),
    "length of zero": (entry("pre_tokenizer", value={"type": "FixedLength", "length": 0}), "FixedLength"),
    "a decoder that panics": (
        entry("decoder", value={"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}), "decoder .* Strip",
    ),
    "a pattern that is none": (
        entry("normalizer", value={"type": "Replace", "pattern": {"Regex": "("}, "content": ""}), "type Replace",
    ),
    "a text that grows": (entry("normalizer", value={"type": "Sequence", "normalizers": [GROWING] * 3}), "Replace"),
    "steps within steps": (
        entry("pre_tokenizer", value={"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [
            {"type": "Whitespace"}, {"type": "Metaspace"}]}]}), "pre_tokenizer .* Metaspace",
    ),
    "no type": (entry("normalizer", value={"lowercase": True}), "normalizer .* None"),
    "no normaliser": (entry("normalizer", value=None), "has no normalizer"),
    "an empty sequence": (entry("pre_tokenizer", value={"type": "Sequence", "pretokenizers": []}), "no pre_tokenizer"),
    "another model": (entry("model", "type", value="WordLevel"), "model .* WordLevel"),
    "no word is short enough": (entry("model", "max_input_chars_per_word", value=0), "max_input_chars_per_word is 0"),
    "words of any length": (entry("model", "max_input_chars_per_word", value=10**9), "max_input_chars_per_word"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGED)
def test_entries_that_are_wrong(kind: str, tmp_path: Path) -> None:
    change, message = CHANGED[kind]
    content = deepcopy(SOUND)
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"tokenizer\.json.*({message})"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_an_escaped_kind_is_refused(tmp_path: Path) -> None:
    """The name of the kind is not found by a search in the text."""
    content = json.dumps({**SOUND, "pre_tokenizer": {"type": "FixedLength", "length": 0}})
    (tmp_path / "tokenizer.json").write_text(content.replace("FixedLength", "\\u0046ixedLength"))
    with pytest.raises(InputError, match=r"tokenizer\.json: its pre_tokenizer has a step of type FixedLength"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_other_steps_of_the_family_are_read(tmp_path: Path) -> None:
    steps = [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]
    content = {**SOUND, "normalizer": {"type": "Sequence", "normalizers": steps}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "sound.json").write_text(json.dumps(SOUND))
    read, sound = (load_tokenizer(str(tmp_path / name)) for name in ("tokenizer.json", "sound.json"))
    assert read.encode(["A Large lesion"], 20) == sound.encode(["A Large lesion"], 20)


BERT = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
FILES = {
    "tokenizer.json": ["", "[]", "null", "[" * 100_000, '{"version": ' + "9" * 5000 + "}", '{"model": {}, "model": {}}',
                       b"\xff\xfe{}", b"\0" * 90, bytes(range(256))],
    "vocab.txt": ["", "a\nb", "[UNK]", "[UNK]\n[CLS]\n[SEP]", BERT + "a\na", BERT + "\n\na", b"\xff\xfe\n",
                  bytes(range(256))],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, contents in FILES.items() for one in contents])
def test_files_that_are_no_tokenizers(name: str, content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=name) as caught:
        load_tokenizer(str(tmp_path / name))
    assert len(str(caught.value)) < 500


def test_pipes_and_folders(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "vocab.txt")
    (tmp_path / "tokenizer.json").mkdir()
    for name, problem in (("vocab.txt", "not a regular file"), ("tokenizer.json", "is a folder")):
        with pytest.raises(InputError, match=problem):
            load_tokenizer(str(tmp_path / name))


def test_a_text_that_cannot_be_encoded() -> None:
    words = Tokenizer.train(["a"], 40)
    with pytest.raises(InputError, match=r"^this tokenizer: "):
        words.encode(["a \ud800"], 9)
