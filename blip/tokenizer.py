"""Text to token ids and back: WordPiece as in BERT (lower-cased), with BLIP's two extra tokens [DEC] and [ENC]."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from blip.errors import InputError, MissingFile
from blip.files import ReadError, json_text, parse_json, read_text, write_whole
from blip.hub.repository import fetch_tokenizer

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# [DEC] is the first token of the decoder, [ENC] of the image-grounded encoder. The published code appends them in
# this order, so that they are 30522 and 30523 for bert-base-uncased and the released weights fit.
BLIP_SPECIAL = ["[DEC]", "[ENC]"]
REQUIRED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
MAX_FILE = 1 << 28  # bytes
# Steps of a tokenizer of BERT's family. Those of others end the process where their settings are damaged, or make
# texts of any length of a short one.
STEPS = {
    "model": ("WordPiece",),
    "normalizer": ("BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip"),
    "pre_tokenizer": ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits"),
    "post_processor": ("TemplateProcessing", "BertProcessing"),
    "decoder": ("WordPiece",),
}
SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")  # the steps of one of type "Sequence"
MAX_CHARS = 1000  # of a word; the time to divide one grows with its square
PROBE = "a Lesion of 0.5 mm, na\u00efve \u2603 \u4e2d\u6587"  # also signs that most vocabularies lack
# BERT's published decoding closes these blanks in the whole text, in this order. The decoder of the `tokenizers`
# library applies the same rules to one token at a time, where those that span several tokens never match.
CLOSED_UP = ((" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


@dataclass
class Specials:
    """Ids of the tokens that models place themselves: [PAD], [ENC] and [DEC]."""

    pad: int
    enc: int
    dec: int


class Tokenizer:
    """A `tokenizers` tokenizer that frames every text as [CLS] ... [SEP].

    Text never becomes a special token: "[ENC]" in a caption is encoded as ordinary characters.
    Encoding uses one thread, so that loader workers can be forked after it was used. It is pickled as its JSON form.
    """

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "this tokenizer"):
        """Prepares `backend` in place; `source` names it in errors.

        Raises:
            InputError: [PAD], [UNK], [CLS] or [SEP] is missing.
        """
        self._use(backend, source)

    def _use(self, backend: tokenizers.Tokenizer, source: str) -> None:
        """Adds the special tokens to `backend` and reads their ids; the rest of the constructor and of unpickling."""
        vocab = backend.get_vocab()
        missing = [token for token in REQUIRED if token not in vocab]
        if missing:
            raise InputError(f"{source} has no token {', '.join(missing)}: use a vocabulary of the BERT family")
        _check_ids(vocab, source)
        backend.no_padding()
        backend.no_truncation()
        if backend.decoder is None:
            backend.decoder = decoders.WordPiece()
        known = [token for token in BERT_SPECIAL if token in vocab]
        backend.add_special_tokens(known + BLIP_SPECIAL)
        backend.encode_special_tokens = True
        self._backend, self._source = backend, source
        with _errors(source):
            backend.decode(backend.encode(PROBE, add_special_tokens=False).ids)
        vocab = backend.get_vocab()
        self.pad_id, self.cls_id, self.sep_id = vocab["[PAD]"], vocab["[CLS]"], vocab["[SEP]"]
        self.dec_id, self.enc_id = vocab["[DEC]"], vocab["[ENC]"]
        self._unknown_id = vocab["[UNK]"]
        decoder = backend.decoder
        self._closes_blanks = isinstance(decoder, decoders.WordPiece) and decoder.cleanup
        self.size = max(vocab.values()) + 1

    @classmethod
    def from_vocab(cls, path: str | Path) -> "Tokenizer":
        """Reads a BERT `vocab.txt`: one token a line, its id is its line number from 0."""
        tokens = _text(path).rstrip("\r\n").split("\n")
        vocab: dict[str, int] = {}
        for number, token in enumerate(tokens):
            token = token.rstrip("\r")
            if token in vocab:
                raise InputError(f"{path}, line {number + 1}: token {token!r} is also on line {vocab[token] + 1}")
            vocab[token] = number
        if "[UNK]" not in vocab:
            raise InputError(f"{path} has no token [UNK]: use a vocabulary of the BERT family, one token a line")
        return cls(_bert(models.WordPiece(vocab, unk_token="[UNK]")), str(path))

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads the JSON form of the `tokenizers` library, as `save` writes it."""
        text = _text(path)
        try:
            content: dict[str, Any] = parse_json(text, dict[str, Any], path)
        except ReadError as error:
            raise InputError(f"{path} is not a JSON file of the tokenizers library: {error.problem}") from error
        _check_steps(content, str(path))
        with _errors(f"{path} is not a JSON file of the tokenizers library"):
            backend = tokenizers.Tokenizer.from_str(text)
        return cls(backend, str(path))

    @classmethod
    def from_hub(cls, name: str) -> "Tokenizer":
        """Reads the tokenizer of a repository of the Hugging Face hub, such as `bert-base-uncased`; it is fetched."""
        file = fetch_tokenizer(f"hub:{name}")
        return cls.from_file(file) if file.suffix == ".json" else cls.from_vocab(file)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int = 30524) -> "Tokenizer":
        """Learns a WordPiece vocabulary of at most `vocab_size` ids, special tokens included, from captions."""
        if vocab_size <= len(BERT_SPECIAL) + len(BLIP_SPECIAL):
            raise InputError(f"vocab_size is {vocab_size}: the special tokens alone take 7")
        backend = _bert(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size - len(BLIP_SPECIAL), special_tokens=BERT_SPECIAL, show_progress=False
        )
        backend.train_from_iterator(captions, trainer)
        return cls(backend)

    def encode(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        """Ids [CLS] ... [SEP] of each text, at most `max_tokens` (2 or more), [SEP] last also where a text is cut."""
        if max_tokens < 2:
            raise InputError(f"max_tokens is {max_tokens}: [CLS] and [SEP] alone take 2")
        return [[self.cls_id, *self._pieces(text)[: max_tokens - 2], self.sep_id] for text in texts]

    def count(self, texts: list[str]) -> list[int]:
        """Number of ids of each text if nothing were cut, [CLS] and [SEP] included."""
        return [len(self._pieces(text)) + 2 for text in texts]

    def decode(self, ids: list[int]) -> str:
        """Text of ids: special tokens left out, word pieces joined, blanks closed up before punctuation.

        Also round apostrophes and before contractions, as in the published decoding: "crohn's", not "crohn ' s".
        """
        return self._text_of([int(i) for i in ids])

    def _text_of(self, ids: list[int]) -> str:
        text = self._backend.decode(ids, skip_special_tokens=True)
        if self._closes_blanks:
            for apart, joined in CLOSED_UP:
                text = text.replace(apart, joined)
        return text

    def written(self, text: str) -> str:
        """The text that a model writes when it generates exactly the tokens of `text`.

        It is `decode` of `encode`: "0.5 mm" becomes "0. 5 mm". A text with an unknown token cannot be written and is
        returned as it is.
        """
        pieces = self._pieces(text)
        return text if self._unknown_id in pieces else self._text_of(pieces)

    def token(self, number: int) -> str:
        """The word piece with this id."""
        return self._backend.id_to_token(number) or ""

    def words(self, text: str) -> list[tuple[str, int]]:
        """The words of a text with their original spelling, each with the number of its tokens."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        words: list[tuple[str, int]] = []
        last = None
        for number, (start, end) in zip(encoded.word_ids, encoded.offsets, strict=True):
            if number == last and words:
                word, count = words[-1]
                words[-1] = (word + text[start:end], count + 1)
            else:
                words.append((text[start:end], 1))
            last = number
        return words

    def save(self, path: str | Path) -> None:
        """Writes the JSON form, which `from_file` reads."""
        write_whole(path, json_text(parse_json(self._backend.to_str(), dict[str, Any], path), indent=None).rstrip("\n"))

    def vocabulary(self) -> dict[str, int]:
        """Every token, special tokens included, with its id."""
        return self._backend.get_vocab()

    @property
    def specials(self) -> Specials:
        """The ids that a model places itself."""
        return Specials(self.pad_id, self.enc_id, self.dec_id)

    def _pieces(self, text: str) -> list[int]:
        # one text at a time: `encode_batch` starts a thread pool that does not survive a fork
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _usable(error, self._source) from error

    def __getstate__(self) -> str:
        return self._backend.to_str()

    def __setstate__(self, state: str) -> None:
        # the JSON form lacks `encode_special_tokens`, which has to be set again
        self._use(tokenizers.Tokenizer.from_str(state), "this tokenizer")


def load_tokenizer(source: str) -> Tokenizer:
    """`vocab.txt` or another `.txt`, a `.json` of the tokenizers library, or `hub:NAME`, which downloads."""
    if source.startswith("hub:"):
        return Tokenizer.from_hub(source.removeprefix("hub:"))
    if source.endswith(".txt"):
        return Tokenizer.from_vocab(source)
    if source.endswith(".json"):
        return Tokenizer.from_file(source)
    raise InputError(
        f"tokenizer is {source!r}; it can be a vocabulary (vocab.txt), a tokenizer file (tokenizer.json) "
        f"or hub:NAME, such as hub:bert-base-uncased, which is downloaded"
    )


def blip_cleaning(text: str, max_words: int = 30) -> str:
    """The published preprocessing of captions: lower case, some punctuation to blanks, at most `max_words` words.

    It turns "0.5 mm" into "0 5 mm": for comparison with published numbers, not for medical text.
    """
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:max_words])


def _bert(model: models.WordPiece) -> tokenizers.Tokenizer:
    """BERT's uncased chain around a WordPiece model: lower case, accents off, split at blanks and punctuation."""
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _text(path: str | Path) -> str:
    if not Path(path).exists():
        raise MissingFile(f"no tokenizer file {path}")
    try:
        return read_text(path, MAX_FILE)
    except ReadError as error:
        raise InputError(f"{path} is not a tokenizer file: {error.problem}") from error


def _check_steps(content: dict[str, Any], source: str) -> None:
    """InputError for a tokenizer of another family than BERT's; what is no tokenizer at all is left to the library."""
    remedy = "use a tokenizer of the BERT family, in the JSON form of the tokenizers library"
    model = content.get("model")
    for part, known in STEPS.items():
        waiting, kinds = [content.get(part)], []
        while waiting:
            step = waiting.pop()
            if isinstance(step, dict) and step.get("type") == "Sequence":
                waiting += [one for name in SEQUENCES if isinstance(step.get(name), list) for one in step[name]]
            elif isinstance(step, dict):
                kinds.append(step.get("type"))
        if other := [kind for kind in kinds if kind not in known]:
            raise InputError(f"{source}: its {part} has a step of type {other[0]}; {remedy}")
        if model and not kinds and part in ("normalizer", "pre_tokenizer"):
            raise InputError(f"{source} has no {part}, so that words of texts are not found; {remedy}")
    longest = model.get("max_input_chars_per_word") if isinstance(model, dict) else None
    if isinstance(longest, int) and not 1 <= longest <= MAX_CHARS:
        raise InputError(f"{source}: max_input_chars_per_word is {longest}; it has to be 1 to {MAX_CHARS}")


def _check_ids(vocab: dict[str, int], source: str) -> None:
    """InputError where tokens share an id, or ids are far apart: a model has an embedding for each number below."""
    if len(set(vocab.values())) < len(vocab):
        raise InputError(f"{source} is damaged: several of its tokens have the same id")
    if max(vocab.values()) > 2 * len(vocab) + 1000:
        raise InputError(f"{source} is damaged: {len(vocab)} tokens have ids up to {max(vocab.values())}")


@contextmanager
def _errors(source: str) -> Iterator[None]:
    """Within this block errors of the `tokenizers` library become an InputError that begins with `source`."""
    try:
        yield
    except BaseException as error:
        raise _usable(error, source) from error


def _usable(error: BaseException, source: str) -> BaseException:
    """The InputError for an error of the library: a bare Exception, or where its own code fails a PanicException, which
    is no Exception. Others, such as that of Ctrl-C, are returned as they are."""
    panic = type(error) is Exception or type(error).__name__ == "PanicException"
    return InputError(f"{source}: {error}") if panic or isinstance(error, (ValueError, TypeError)) else error
