"""Caption scores against plain code and pycocoevalcap, also on machines without Java, the package or a model."""

import itertools
import json
import math
import os
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from blip.evaluation import bootstrap, caption_words, captions
from blip.evaluation.caption_words import split_words
from blip.evaluation.captions import CaptionScoreError, CaptionScores, score_captions

GENERATED = [
    "Axial CT of the chest shows a mass in the left lung.",
    "chest x-ray",
    "",
    "MRI (T2-weighted) of the brain, 3.5 cm lesion",
    "MRI of the brain with a lesion in the left lobe",
]
REFERENCES = [
    ["Axial CT of the chest showing a left lung mass", "CT: a mass in the left lung"],
    ["Chest x-ray showing clear lungs."],
    ["an ultrasound of the liver"],
    ["T2-weighted MRI of the brain with a lesion of 3.5 cm (arrow)", "MRI of the brain"],
    ["MRI of the brain with a lesion in the left lobe"],
]
needs_coco = pytest.mark.skipif(
    find_spec("pycocoevalcap") is None,
    reason="pycocoevalcap is not installed: pip install -e '.[captions]'",
)
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="java is not on the PATH")


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_words.shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def with_java() -> CaptionScores:
    """Everything that this machine can do: METEOR, which loads for seconds, starts once for the whole file."""
    line_end = GENERATED[0].replace(" shows", "\nshows")  # must not become two captions on the way through Java
    return score_captions([line_end, *GENERATED[1:]], REFERENCES)


def words(texts: list[list[str]]) -> list[list[list[str]]]:
    return [[split_words(text).split() for text in several] for several in texts]


def ngrams(tokens: list[str], order: int) -> Counter:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def naive_bleu(generated: list[list[str]], references: list[list[list[str]]], order: int) -> float:
    """Papineni et al. 2002: clipped precisions of the corpus, their geometric mean, the brevity penalty."""
    logs, length, wanted = [], 0, 0
    for n in range(1, order + 1):
        matched = total = 0
        for caption, several in zip(generated, references, strict=True):
            for gram, count in ngrams(caption, n).items():
                matched += min(count, max(ngrams(reference, n)[gram] for reference in several))
                total += count
        if not matched:
            return 0.0
        logs.append(math.log(matched / total))
    for caption, several in zip(generated, references, strict=True):
        length += len(caption)
        wanted += min((abs(len(reference) - len(caption)), len(reference)) for reference in several)[1]
    return math.exp(sum(logs) / order) * (1.0 if length >= wanted else math.exp(1 - wanted / length))


def naive_rouge_l(caption: list[str], references: list[list[str]]) -> float:
    """Longest common subsequence over all subsequences of the caption; COCO's beta of 1.2 and its two maxima."""
    precision = recall = 0.0
    for reference in references:
        longest = 0
        for size in range(len(caption) + 1):
            for part in itertools.combinations(caption, size):
                rest = iter(reference)
                if all(word in rest for word in part):
                    longest = size
        precision, recall = max(precision, longest / max(1, len(caption))), max(recall, longest / len(reference))
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision else 0.0


@needs_coco
def test_bleu_against_naive_code(no_java: None) -> None:
    result = score_captions(GENERATED, REFERENCES, names=["BLEU"])
    generated, references = [several[0] for several in words([[text] for text in GENERATED])], words(REFERENCES)
    for order in (1, 2, 3, 4):
        name = f"BLEU-{order}"
        assert result.scores[name].mean == pytest.approx(naive_bleu(generated, references, order), abs=1e-6)
        alone = [naive_bleu([g], [r], order) if g else 0.0 for g, r in zip(generated, references, strict=True)]
        # pycocoevalcap's small constants leave a trace where an order has no match or no n-gram
        assert result.per_image[name] == pytest.approx(alone, abs=2e-2)
        assert result.per_image[name][2] == 0.0
        assert result.scores[name].low <= result.scores[name].mean <= result.scores[name].high


@needs_coco
def test_bleu_interval_resamples_the_counts(no_java: None) -> None:
    """Three images of one group and one of another: the interval's ends are BLEU of sets that can be written down."""
    generated = ["a b c d", "a b", "a x", "a b c x e"]
    references = [["a b c d e"], ["a b"], ["a b c"], ["a b c d e"]]
    result = score_captions(generated, references, groups=["p", "p", "p", "q"], names=["BLEU"])
    possible = []
    for sets in itertools.product([[0, 1, 2], [3]], repeat=2):
        rows = [i for several in sets for i in several]
        possible.append(naive_bleu([generated[i].split() for i in rows], words([references[i] for i in rows]), 1))
    assert result.scores["BLEU-1"].low == pytest.approx(min(possible), abs=1e-6)
    assert result.scores["BLEU-1"].high == pytest.approx(max(possible), abs=1e-6)


@needs_coco
def test_rouge_l_against_all_subsequences(no_java: None) -> None:
    result = score_captions(GENERATED, REFERENCES, names=["ROUGE-L"])
    expected = [
        naive_rouge_l(split_words(caption).split(), several)
        for caption, several in zip(GENERATED, words(REFERENCES), strict=True)
    ]
    assert result.per_image["ROUGE-L"] == pytest.approx(expected)
    assert result.scores["ROUGE-L"] == bootstrap.bootstrap(result.per_image["ROUGE-L"])


@needs_coco
def test_cider_against_naive_code(no_java: None) -> None:
    """CIDEr-D (Vedantam et al. 2015): clipped tf-idf cosine by order, Gaussian penalty of the length, times ten."""
    result = score_captions(GENERATED, REFERENCES, names=["CIDEr"])
    references = words(REFERENCES)
    for i, (caption, several) in enumerate(zip(GENERATED, references, strict=True)):
        mine, total = split_words(caption).split(), 0.0
        for reference in several:
            for n in (1, 2, 3, 4):

                def vector(tokens: list[str], n: int = n) -> dict:
                    seen = {g: sum(any(ngrams(r, n)[g] for r in s) for s in references) for g in ngrams(tokens, n)}
                    return {g: c * math.log(len(references) / max(1, seen[g])) for g, c in ngrams(tokens, n).items()}

                a, b = vector(mine), vector(reference)
                norm = math.hypot(*a.values()) * math.hypot(*b.values())
                product = sum(min(a[g], b.get(g, 0.0)) * b.get(g, 0.0) for g in a)
                # pycocoevalcap measures length in bigrams
                gap = max(0, len(mine) - 1) - (len(reference) - 1)
                total += (product / norm if norm else 0.0) * math.exp(-(gap**2) / (2 * 6.0**2)) / 4 / len(several)
        assert result.per_image["CIDEr"][i] == pytest.approx(10 * total)
    one = score_captions(GENERATED[:1], REFERENCES[:1], names=["CIDEr"])
    assert one.scores["CIDEr"].mean == 0.0 and "one image" in one.notes["CIDEr"]


def test_rouge_1_by_hand() -> None:
    assert caption_words.clean_for_imageclef("A 3.5 mm X-ray, (T2)!") == "a numbernumber mm xray tnumber"
    # shared: mass, of, number, mm; 5 words against 6
    assert captions.rouge_1("Mass of 12 mm, left", ["a mass of 7 mm seen"]) == pytest.approx(2 * 4 / (5 + 6))
    assert captions.rouge_1("the the the", ["the cat"]) == pytest.approx(2 * 1 / (3 + 2))
    assert captions.rouge_1("liver", ["the brain", "liver"]) == 1.0
    assert captions.rouge_1("", ["liver"]) == 0.0


def test_split_words_by_hand() -> None:
    text = "The patient\u2019s x-ray (A), 0.5 mm; doesn't show 50% C5/C6\u2014\u201cmass\u201d: 1,000 r.u.l."
    assert split_words(text).split() == [
        *("the", "patient", "'s", "x-ray", "-lrb-", "a", "-rrb-", "0.5", "mm", "does", "n't", "show", "50", "%"),
        *("c5/c6", "mass", "1,000", "r.u.l."),
    ]
    assert split_words(" ... ") == ""


@needs_coco
@needs_java
def test_words_are_those_of_pycocoevalcap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The jar called directly gives what the package's wrapper gives, whatever the locale; `split_words` is near."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [*GENERATED, *(text for several in REFERENCES for text in several), "...", ""]
    try:
        theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    except OSError as error:  # it writes into its own folder
        pytest.skip(f"pycocoevalcap's folder cannot be written: {error}")
    ours, how = caption_words.tokenize(texts)
    assert how == "PTB (Java)"
    assert ours == [theirs[i][0] for i in range(len(texts))]
    assert [split_words(text) for text in texts] == ours
    mixed = "a lesion of 2 1/2 cm and 10 3/4 mm"  # Stanford's tokenizer makes one word of a mixed fraction
    theirs = PTBTokenizer().tokenize({0: [{"caption": mixed}]})
    assert caption_words.tokenize([mixed])[0] == theirs[0]
    assert "2\u00a01/2" in theirs[0][0].split(" ")
    monkeypatch.setenv("LC_ALL", "C")
    assert caption_words.tokenize(["5 \u00b5m \u03b2-amyloid stra\u00dfe"])[0] == [
        "5 \u00b5m \u03b2-amyloid stra\u00dfe"
    ]


@pytest.mark.slow
@needs_coco
@needs_java
def test_meteor_is_that_of_pycocoevalcap(with_java: CaptionScores) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    split, _ = caption_words.tokenize([*GENERATED, *(text for several in REFERENCES for text in several)])
    rest = iter(split[len(GENERATED) :])
    references = {i: [next(rest) for _ in several] for i, several in enumerate(REFERENCES)}
    score, images = Meteor().compute_score(references, {i: [split[i]] for i in range(len(GENERATED))})
    interval = with_java.scores["METEOR"]
    assert interval.mean == pytest.approx(score)
    assert with_java.per_image["METEOR"] == pytest.approx(images)
    assert with_java.per_image["METEOR"][2] == 0.0 and images[4] > 0.9
    assert interval.low < interval.mean < interval.high and interval.count == 5


@pytest.mark.slow
@needs_coco
@needs_java
def test_spice_without_its_files_is_a_note(with_java: CaptionScores) -> None:
    if "SPICE" in with_java.scores:
        pytest.skip("SPICE's files are on this disk")
    assert "stanford-corenlp-3.6.0.jar" in with_java.notes["SPICE"]
    assert with_java.tokenizer == "PTB (Java)"


@needs_coco
def test_without_java(no_java: None) -> None:
    result = score_captions(GENERATED, REFERENCES)
    expected = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "ROUGE-1"}
    assert set(result.scores) == set(result.per_image) == expected
    assert set(result.notes) == {"METEOR", "SPICE", "BERTScore"}
    assert "java" in result.notes["METEOR"] and "java" in result.tokenizer
    assert all(len(values) == 5 and values[2] == 0.0 for values in result.per_image.values())
    assert json.loads(json.dumps(bootstrap.as_json(result)))["scores"]["CIDEr"]["count"] == 5


@needs_coco
def test_a_java_that_fails_loses_no_other_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    result = score_captions(GENERATED, REFERENCES)
    assert {"BLEU-4", "ROUGE-L", "CIDEr", "ROUGE-1"} <= set(result.scores)
    assert "METEOR" in result.notes and result.tokenizer.startswith("split_words")


@needs_coco
def test_a_scorer_that_fails_loses_no_other_score(no_java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.cider.cider import Cider

    def fail(*_: object) -> None:
        raise ZeroDivisionError("as a test")

    monkeypatch.setattr(Cider, "compute_score", fail)
    result = score_captions(GENERATED, REFERENCES)
    assert result.notes["CIDEr"] == "failed: ZeroDivisionError: as a test"
    assert {"BLEU-1", "ROUGE-L", "ROUGE-1"} <= set(result.scores)


def test_without_pycocoevalcap(no_java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoPycocoevalcap(), *sys.meta_path])
    result = score_captions(GENERATED, REFERENCES)
    assert set(result.scores) == {"ROUGE-1"}
    assert all("pip install -e '.[captions" in result.notes[name] for name in ("BLEU", "ROUGE-L", "CIDEr"))


class NoPycocoevalcap:
    """An import system in which the package does not exist."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == "pycocoevalcap":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@needs_coco
def test_empty_and_odd_captions(no_java: None) -> None:
    odd = ["", " \n ", "...", "a\nb\u2028c\rd", "||| a ||| b"]
    result = score_captions(odd, [["a b c d"]] * 5)
    for name, values in result.per_image.items():
        assert np.isfinite(values).all() and (values[:3] == 0.0).all(), name
    assert result.per_image["BLEU-1"][3] == pytest.approx(1.0)
    marks = score_captions(["", "a"], [["..."], ["a"]])  # pycocoevalcap's ROUGE-L finds "" equal to ""
    assert all(values[0] == 0.0 for values in marks.per_image.values())
    nothing = score_captions(["", ""], [["a b"], ["c"]])
    assert all(interval.mean == interval.low == 0.0 for interval in nothing.scores.values())
    assert nothing.scores["CIDEr"].high == 0.0 and 0.5 < nothing.scores["ROUGE-1"].high < 1, "two images prove little"


@pytest.mark.parametrize(
    ("generated", "references", "options", "message"),
    [
        (["a"], [["a"], ["b"]], {}, "1 captions and references of 2 images"),
        ([], [], {}, "0 captions"),
        ("a", [["a"]], {}, "one list each"),
        (["a"], ["a"], {}, "image 0: needs one text as caption and a list"),
        (["a", None], [["a"], ["b"]], {}, "image 1"),
        (["a", "b"], [["a"], ["", " "]], {}, "image 1 has no reference"),
        (["a"], [["a"]], {"groups": [1, 2]}, "1 captions but 2 groups"),
        (["a"], [["a"]], {"names": ["BLEU", "bleu"]}, "unknown scores bleu; there are BLEU, ROUGE-L"),
    ],
)
def test_refuses(generated, references, options: dict, message: str) -> None:
    with pytest.raises(CaptionScoreError, match=message):
        score_captions(generated, references, **options)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a vocabulary of the captions' words, random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("bert")
    texts = [*GENERATED, *(text for several in REFERENCES for text in several)]
    known = sorted({word for text in texts for word in caption_words.clean_for_imageclef(text).split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *known]))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [None, 1])
def test_bert_score_against_a_loop(no_java: None, bert_folder: Path, layer: int | None) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(bert_folder), AutoModel.from_pretrained(bert_folder).eval()

    def vectors(text: str) -> torch.Tensor:
        batch = tokenizer(caption_words.clean_for_imageclef(text), return_tensors="pt")
        with torch.no_grad():
            return model(**batch, output_hidden_states=True).hidden_states[2 if layer is None else layer][0]

    result = score_captions(
        GENERATED, REFERENCES, names=["BERTScore"], bert_score_model=bert_folder, bert_score_layer=layer
    )
    assert not result.notes
    for i, (caption, several) in enumerate(zip(GENERATED, REFERENCES, strict=True)):
        best = (0.0, 0.0)
        for reference in several if caption else []:
            a, b = vectors(caption), vectors(reference)
            cosine = [[torch.cosine_similarity(x, y, dim=0).item() for y in b] for x in a]
            precision = np.mean([max(row) for row in cosine[1:-1]])  # [CLS] and [SEP] are not averaged
            recall = np.mean([max(column) for column in list(zip(*cosine, strict=True))[1:-1]])
            best = max(best, (2 * precision * recall / (precision + recall), recall))
        assert result.per_image["BERTScore-F1"][i] == pytest.approx(best[0], abs=1e-5)
        assert result.per_image["BERTScore-R"][i] == pytest.approx(best[1], abs=1e-5)
    assert result.per_image["BERTScore-F1"][4] == pytest.approx(1.0, abs=1e-5)  # equal captions


def test_bert_score_without_a_model_is_a_note(no_java: None, tmp_path: Path) -> None:
    def note(**options: object) -> str:
        return score_captions(GENERATED, REFERENCES, names=["BERTScore"], **options).notes["BERTScore"]

    assert "no folder" in note()
    assert "not a folder" in note(bert_score_model=tmp_path / "absent")
    assert "failed" in note(bert_score_model=tmp_path)
