"""Scores of generated captions. Some need Java or model files; where these are absent, the score is left out.

BLEU, ROUGE-L and CIDEr come from pycocoevalcap's scorers (`pip install -e '.[captions]'`), METEOR from its jar, on
captions split into words by Stanford's PTB tokenizer where `java` is on the PATH and by `split_words` where it is not.
ROUGE-1 and BERTScore read captions as ImageCLEFmedical prepares them. Nothing is ever downloaded.

N images, R repeats of the bootstrap, P pairs of a batch, T tokens, D width.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blip.errors import BlipError
from blip.evaluation.bootstrap import Floats, Interval, Statistic, bootstrap, bootstrap_sums
from blip.evaluation.caption_words import Missing, clean_for_imageclef, need_java, tokenize

DEFAULT = ("BLEU", "ROUGE-L", "CIDEr", "METEOR", "SPICE", "ROUGE-1", "BERTScore")


class CaptionScoreError(BlipError):
    """Captions and references that do not fit together, or a score that does not exist."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores by name, those of each image (N,), the reason for each absent score, and how captions were split."""

    scores: dict[str, Interval]
    per_image: dict[str, Floats]
    notes: dict[str, str]
    tokenizer: str


@dataclass(frozen=True)
class Captions:
    """One generated caption an image and all its references: as written, and as words joined by blanks."""

    generated: list[str]
    references: list[list[str]]
    split_generated: list[str]
    split_references: list[list[str]]
    bert_score: tuple[Path | None, int | None]  # the model's folder and layer

    def numbered(self) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """References and generated captions as pycocoevalcap takes them."""
        return dict(enumerate(self.split_references)), {i: [text] for i, text in enumerate(self.split_generated)}


@dataclass(frozen=True)
class Sampling:
    """The groups of the images, which intervals respect, and the seed of the bootstrap."""

    groups: Sequence[Hashable] | None
    seed: int

    def mean(self, values: Floats, shares: bool | None) -> Interval:
        return bootstrap(values, self.groups, seed=self.seed, shares=shares)

    def of_sums(self, columns: Floats, statistic: Statistic) -> Interval:
        return bootstrap_sums(columns, statistic, self.groups, seed=self.seed)


Scored = dict[str, tuple[Interval, Floats]]  # name -> the score with its interval, each image's (N,)


def score_captions(
    generated: Sequence[str],
    references: Sequence[Sequence[str]],
    groups: Sequence[Hashable] | None = None,
    *,
    names: Sequence[str] = DEFAULT,
    bert_score_model: str | Path | None = None,
    bert_score_layer: int | None = None,
    seed: int = 0,
) -> CaptionScores:
    """All scores that this machine can compute, each with a 95 % interval over images.

    Args:
        generated: (N,) one caption an image. An empty one scores zero.
        references: (N,) lists of at least one caption that is not blank.
        groups: (N,) article or patient of each image, see `blip.evaluation.bootstrap.bootstrap`.
        names: which of `DEFAULT`. BLEU gives BLEU-1 to BLEU-4; BERTScore gives BERTScore-R (recall) and -F1.
        bert_score_model: folder with a transformers model and its tokenizer.
        bert_score_layer: the layer compared, counted from 1; the last unless given. The bert_score package takes 40 of
            deberta-xlarge-mnli (ImageCLEFmedical's), 17 of roberta-large, 9 of bert-base-uncased.

    `Interval.mean` is the value that papers report: BLEU and METEOR come from counts summed over the set, not from a
    mean over images, and their intervals resample these counts; the intervals of CIDEr keep the word weights of the
    whole set. A score that cannot be computed is absent from `scores` and explained in `notes`; the others are kept.

    Raises:
        CaptionScoreError: lists that differ in length, an image without reference, an unknown name.
    """
    if unknown := set(names) - set(SCORERS):
        raise CaptionScoreError(f"unknown scores {', '.join(sorted(unknown))}; there are {', '.join(SCORERS)}")
    texts, kept = _checked(generated, references)
    if groups is not None and len(groups) != len(texts):
        raise CaptionScoreError(f"{len(texts)} captions but {len(groups)} groups: each image needs one")
    words, tokenizer = tokenize([*texts, *(text for several in kept for text in several)])
    rest = iter(words[len(texts) :])
    split_references = [[next(rest) for _ in several] for several in kept]
    model = (None if bert_score_model is None else Path(bert_score_model), bert_score_layer)
    captions = Captions(texts, kept, words[: len(texts)], split_references, model)
    sampling = Sampling(groups, seed)
    scored: Scored = {}
    notes: dict[str, str] = {}
    for name in names:
        try:
            scored |= SCORERS[name](captions, sampling)
        except Missing as reason:
            notes[name] = str(reason)
        except ModuleNotFoundError as error:
            notes[name] = f"needs {error.name}: pip install -e '.[captions,huggingface]'"
        except Exception as error:  # other programs can fail in any way; the other scores are still wanted
            notes[name] = f"failed: {type(error).__name__}: {error}"
    if "CIDEr" in scored and len(texts) == 1:
        notes["CIDEr"] = "0 by definition: with one image no word is rarer than another"
    scores = {name: interval for name, (interval, _) in scored.items()}
    return CaptionScores(scores, {name: values for name, (_, values) in scored.items()}, notes, tokenizer)


def _checked(generated: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Captions with single blanks (a line end inside one would shift Java's lines), without blank references."""
    if isinstance(generated, str) or len(generated) != len(references) or not generated:
        raise CaptionScoreError(f"{len(generated)} captions and references of {len(references)} images: one list each")
    kept = []
    for i, (caption, several) in enumerate(zip(generated, references, strict=True)):
        if isinstance(several, str) or not all(isinstance(text, str) for text in [caption, *several]):
            raise CaptionScoreError(f"image {i}: needs one text as caption and a list of texts as references")
        kept.append([" ".join(text.split()) for text in several if text.strip()])
        if not kept[-1]:
            raise CaptionScoreError(f"image {i} has no reference caption: give it one or leave it out")
    return [" ".join(text.split()) for text in generated], kept


# ---- scorers: each gives its scores or raises --------------------------------------------------------------------


def _mean(
    captions: Captions, values: Sequence[float] | Floats, sampling: Sampling, *, shares: bool | None = None
) -> tuple[Interval, Floats]:
    """A score that is a mean over images, with zero for an empty caption; `shares` as in `bootstrap`."""
    column = np.where([bool(words) for words in captions.split_generated], np.asarray(values, dtype=np.float64), 0.0)
    return sampling.mean(column, shares), column


def corpus_bleu(sums: Floats, order: int) -> Floats:
    """BLEU of summed counts (R, 10): matches of order 1 to 4, n-grams of order 1 to 4, length, reference length.

    The small constants are those of pycocoevalcap, for equal results.
    """
    precisions = (sums[:, :order] + 1e-15) / (sums[:, 4 : 4 + order] + 1e-9)
    ratio = (sums[:, 8] + 1e-15) / (sums[:, 9] + 1e-9)
    return np.exp(np.minimum(0.0, 1 - 1 / ratio)) * precisions.prod(axis=1) ** (1 / order)


def _bleu(captions: Captions, sampling: Sampling) -> Scored:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for text, several in zip(captions.split_generated, captions.split_references, strict=True):
        scorer += (text, several)
    counts = []
    for image in scorer.ctest:
        closest = min((abs(length - image["testlen"]), length) for length in image["reflen"])[1]
        counts.append([*image["correct"], *image["guess"], image["testlen"], closest])
    columns = np.array(counts, dtype=np.float64)  # (N, 10)
    orders = {f"BLEU-{order}": partial(corpus_bleu, order=order) for order in (1, 2, 3, 4)}
    return {name: (sampling.of_sums(columns, statistic), statistic(columns)) for name, statistic in orders.items()}


def _by_pycocoevalcap(captions: Captions, sampling: Sampling, name: str) -> Scored:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge() if name == "ROUGE-L" else Cider()
    values = scorer.compute_score(*captions.numbered())[1]
    return {name: _mean(captions, values, sampling, shares=name == "ROUGE-L")}  # CIDEr goes up to 10


def _meteor(captions: Captions, sampling: Sampling) -> Scored:
    """METEOR 1.5 line by line: SCORE gives 23 counts of an image, EVAL turns counts, which add up, into scores.

    The jar is called directly: the wrapper of pycocoevalcap waits for its own lock for ever after a failure of Java.
    """
    need_java()
    from pycocoevalcap.meteor import meteor

    jar = str(Path(meteor.__file__).with_name(meteor.METEOR_JAR))
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    pipe, silent = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=silent, encoding="utf-8") as process:
        assert process.stdin and process.stdout
        to_java, from_java = process.stdin, process.stdout

        def ask(*fields: str, answers: int = 1) -> list[list[float]]:
            to_java.write(" ||| ".join(fields) + "\n")
            to_java.flush()
            lines = [from_java.readline() for _ in range(answers)]
            if not lines[-1]:
                raise Missing("METEOR's Java stopped; it needs 2 GB of memory")
            return [[float(number) for number in line.split()] for line in lines]

        def evaluate(sums: Floats) -> Floats:
            rows = [" ".join(map(str, row)) for row in sums.tolist()]
            scores = ask("EVAL", *rows, answers=len(rows) + 1)[:-1]  # the last one is of all together
            return np.nan_to_num(np.array(scores)[:, 0])

        images = zip(captions.split_references, captions.split_generated, strict=True)
        texts = ([text.replace("|||", " ") for text in [*several, caption]] for several, caption in images)
        columns = np.array([ask("SCORE", *fields)[0] for fields in texts])  # (N, 23)
        # METEOR adds up no fragment (20) of a match of all words (21, 22) of both captions (0, 1) in one piece
        whole = (columns[:, 20] == 1) & (columns[:, :2] == columns[:, 21:]).all(axis=1)
        columns[:, 20] = np.where(whole, 0, columns[:, 20])
        return {"METEOR": (sampling.of_sums(columns, evaluate), evaluate(columns))}


def _spice(captions: Captions, sampling: Sampling) -> Scored:
    need_java()
    from pycocoevalcap.spice import spice

    folder = Path(spice.__file__).parent / "lib"
    jars = ["stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"]
    if absent := [jar for jar in jars if not (folder / jar).is_file()]:
        raise Missing(f"{' and '.join(absent)} not in {folder}; pycocoevalcap would download them, blip does not")
    images = spice.Spice().compute_score(*captions.numbered())[1]
    return {"SPICE": _mean(captions, np.nan_to_num([image["All"]["f"] for image in images]), sampling)}


def rouge_1(caption: str, references: Sequence[str]) -> float:
    """F1 of single words after ImageCLEFmedical's preparation, the best over references; a word is `[a-z0-9]+`."""
    here, *others = (Counter(re.findall("[a-z0-9]+", clean_for_imageclef(text))) for text in [caption, *references])
    return max(2 * (here & other).total() / max(1, here.total() + other.total()) for other in others)


def _rouge_1(captions: Captions, sampling: Sampling) -> Scored:
    return {"ROUGE-1": _mean(captions, list(map(rouge_1, captions.generated, captions.references)), sampling)}


def _bert_score(captions: Captions, sampling: Sampling) -> Scored:
    """See `bert_score.bert_scores`. Captions are prepared as for ROUGE-1."""
    folder, layer = captions.bert_score
    if folder is None or not folder.is_dir():
        raise Missing("no folder with a model was given" if folder is None else f"{folder} is not a folder")
    from blip.evaluation.bert_score import bert_scores  # torch and transformers, which nothing else here needs

    texts = [clean_for_imageclef(text) for text in captions.generated]
    references = [[clean_for_imageclef(text) for text in several] for several in captions.references]
    best = bert_scores(texts, references, folder, layer)
    return {"BERTScore-R": _mean(captions, best[:, 0], sampling), "BERTScore-F1": _mean(captions, best[:, 1], sampling)}


ROUGE_L, CIDER = partial(_by_pycocoevalcap, name="ROUGE-L"), partial(_by_pycocoevalcap, name="CIDEr")
FUNCTIONS: list[Callable[[Captions, Sampling], Scored]]
FUNCTIONS = [_bleu, ROUGE_L, CIDER, _meteor, _spice, _rouge_1, _bert_score]
SCORERS = dict(zip(DEFAULT, FUNCTIONS, strict=True))
