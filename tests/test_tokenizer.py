"""Token ids are those of BERT, whatever characters a caption holds."""

import json
import pickle
import random
from pathlib import Path

import pytest
import tokenizers
from helpers.real_files import VOCABULARY, need, read, texts

from blip.evaluation import answers
from blip.tokenizer import BERT_SPECIAL, Tokenizer, blip_cleaning, load_tokenizer

CAPTIONS = ["axial ct of the liver", "chest x-ray, 5 mm nodule", "normal brain mri"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=200)


@pytest.mark.golden
def test_ids_of_bert(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_vocab(golden_dir / "vocab.txt")
    assert tokenizer.encode(golden["texts"], 100) == golden["ids"]
    assert tokenizer.count(golden["texts"]) == [len(ids) for ids in golden["ids"]]
    assert (tokenizer.dec_id, tokenizer.enc_id) == (golden["bos"], golden["enc"])
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (golden["pad"], golden["cls"], golden["sep"])
    assert tokenizer.size == golden["size"]


@pytest.mark.real_data
def test_bert_base_uncased_has_the_released_ids(data_dir: Path) -> None:
    tokenizer = load_tokenizer(str(need(data_dir, VOCABULARY)))
    assert (tokenizer.dec_id, tokenizer.enc_id, tokenizer.size) == (30522, 30523, 30524)
    # ids of BERT's published tokenizer
    assert tokenizer.encode(["a picture of "], 30) == [[101, 1037, 3861, 1997, 102]]


def test_frame_and_truncation(tokenizer: Tokenizer) -> None:
    whole, cut = tokenizer.encode(["axial ct of the liver"], 30)[0], tokenizer.encode(["axial ct of the liver"], 4)[0]
    assert whole[0] == cut[0] == tokenizer.cls_id
    assert whole[-1] == cut[-1] == tokenizer.sep_id
    assert len(cut) == 4
    assert cut[1:3] == whole[1:3]
    assert tokenizer.count(["axial ct of the liver"]) == [len(whole)]
    assert tokenizer.encode([""], 30) == [[tokenizer.cls_id, tokenizer.sep_id]]
    with pytest.raises(ValueError, match="max_tokens is 1"):
        tokenizer.encode(["x"], 1)


@pytest.mark.parametrize("word", ["[ENC]", "[DEC]", "[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]"])
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, word: str, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "t.json")
    for each in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), Tokenizer.from_file(tmp_path / "t.json")):
        ids = each.encode([f"ct {word} liver"], 30)[0][1:-1]
        special = {each.pad_id, each.cls_id, each.sep_id, each.dec_id, each.enc_id}
        assert not special & set(ids)
        # brackets and letters are pieces of their own, so there is more than one id between the two words
        assert len(ids) > len(each.encode(["ct liver"], 30)[0][1:-1]) + 1


def test_decode(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["Chest X-ray, 5 mm nodule"], 30)[0]
    text = tokenizer.decode([tokenizer.dec_id, *ids, tokenizer.pad_id])
    assert text == "chest x - ray, 5 mm nodule"


WORDS = [
    "crohn",
    "don",
    "isn",
    "i",
    "we",
    "s",
    "t",
    "m",
    "n",
    "ve",
    "re",
    "n't",
    "'",
    "'s",
    "-",
    ".",
    ",",
    "?",
    "!",
    "5",
]


def closed_up(text: str) -> str:
    """BERT's published rules, in their order."""
    for mark in ".?!,":
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {ending}", ending)
    return text


def test_decode_closes_blanks_as_published(tmp_path: Path) -> None:
    """Against the rules, and against those of transformers on the same strings: 20,000 random texts."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"'-.,?!", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    pieces = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *pieces, "crohn", "don", "isn", "we", "ve", "re"]))
    tokenizer = Tokenizer.from_vocab(tmp_path / "vocab.txt")
    published = transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).clean_up_tokenization
    rng = random.Random(0)
    for _ in range(20_000):
        text = "".join(rng.choice([*WORDS, " ", " ", " ' ", "'"]) for _ in range(rng.randint(1, 12)))
        pieces = tokenizer.encode([text], 100)[0][1:-1]
        tokens = [tokenizer.token(i) for i in pieces]
        apart = " ".join(tokens).replace(" ##", "")
        assert tokenizer.decode(pieces) == closed_up(apart) == published(apart), text


@pytest.mark.parametrize("text", ["crohn's disease", "it isn't", "the patients' images", "i'm", "we've 'no' idea"])
def test_apostrophes_survive(text: str) -> None:
    tokenizer = Tokenizer.train([text] * 3, vocab_size=200)
    assert tokenizer.decode(tokenizer.encode([text], 30)[0]) == text.replace("' images", "'images").replace(
        "we've 'no' idea", "we've'no'idea"
    )


def test_other_decoders_keep_their_blanks() -> None:
    """The rules belong to BERT's word pieces; a tokenizer that stores blanks gives them back."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=BERT_SPECIAL, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["the ' s of rock ' n ' roll"], trainer)
    other = Tokenizer(backend)
    assert other.decode(other.encode(["rock ' n ' roll"], 40)[0]) == "rock ' n ' roll"


def test_written() -> None:
    tokenizer = Tokenizer.train(["crohn's disease, 0.5 mm, 10% of l4/l5"] * 3, vocab_size=200)
    for text in ("Crohn's disease", "0.5 mm", "10 %", "l4/l5"):
        assert tokenizer.written(text) == tokenizer.decode(tokenizer.encode([text], 30)[0])
    assert tokenizer.written("0.5  MM") == "0. 5 mm"
    assert tokenizer.written("\u4e00 mm") == "\u4e00 mm", "a text with an unknown token stays as it is"


@pytest.mark.real_data
@pytest.mark.parametrize("trained", [False, True])
def test_every_real_reference_can_be_reached(data_dir: Path, trained: bool) -> None:
    """A token-perfect answer or caption agrees with its reference."""
    everything = sorted(set(texts(data_dir)))
    if trained:
        tokenizer = Tokenizer.train(everything, vocab_size=2000)
    else:
        tokenizer = load_tokenizer(str(need(data_dir, VOCABULARY)))
    references = [str(record["answer"]) for name in ("vqa_rad/qa.json", "vqa_med_2019/qa.json")
                  for record in read(data_dir, name)]  # fmt: skip
    for text in {*everything, *references}:
        generated = tokenizer.decode(tokenizer.encode([text], 1000)[0])
        if answers.normalise_answer(text):
            scores = answers.score_answers([generated], [[text]], [""], written=tokenizer.written)
            assert all(kinds["all"].mean == 1 for kinds in scores.values()), (text, generated)
        assert answers.vqa_accuracy(generated, [text] * 10, tokenizer.written) == 1, (text, generated)


def test_save_pickle_and_vocab_agree(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    texts = [*CAPTIONS, "unseen words in çapitals"]
    ids = tokenizer.encode(texts, 12)
    for other in (load_tokenizer(str(tmp_path / "tokenizer.json")), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode(texts, 12) == ids
        assert (other.size, other.enc_id) == (tokenizer.size, tokenizer.enc_id)


def test_extra_tokens_stay_where_a_vocabulary_has_them(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[ENC]", "[UNK]", "[CLS]", "[SEP]", "liver"]) + "\n")
    tokenizer = Tokenizer.from_vocab(path)
    assert (tokenizer.enc_id, tokenizer.dec_id, tokenizer.size) == (1, 6, 7)


def test_trained_size() -> None:
    tokenizer = Tokenizer.train(CAPTIONS, vocab_size=50)
    assert tokenizer.size <= 50
    assert (tokenizer.dec_id, tokenizer.enc_id) == (tokenizer.size - 2, tokenizer.size - 1)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hub:bert-base-uncased"):
        load_tokenizer("bert-base-uncased")
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        load_tokenizer(str(tmp_path / "absent.txt"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json is not"):
        load_tokenizer(str(tmp_path / "bad.json"))
    (tmp_path / "few.txt").write_text("[UNK]\nliver\n")
    with pytest.raises(ValueError, match=r"few\.txt has no token \[PAD\], \[CLS\], \[SEP\]"):
        load_tokenizer(str(tmp_path / "few.txt"))


def test_published_cleaning() -> None:
    assert blip_cleaning('A "Large" mass:\n0.5 mm (left)') == "a large mass 0 5 mm left"
    assert blip_cleaning("one two three", max_words=2) == "one two"
