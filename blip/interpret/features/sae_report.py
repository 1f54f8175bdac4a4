"""`blip sae report`: the scores of a sparse autoencoder, and for its features the most active images and words.

Shapes: N tokens of all records, D width, F features.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.html_page import Html, image, page, table, write_page
from blip.inference.predictor import Predictor
from blip.interpret.activations import contents_of
from blip.interpret.explain_files import Wanted
from blip.interpret.features.sae import OF_SHARDS, SaeError, SparseAutoencoder, load_sae
from blip.interpret.features.sae_training import Downstream, downstream
from blip.interpret.features.states import Cached, Tokens

SIDE = 120  # pixels of an image on the page
CHUNK = 4096  # states at once


@dataclass
class Top:
    """A token that activates a feature most: its record, its place in the record, and how much."""

    record: int
    place: int
    code: float


@dataclass
class Feature:
    """A feature: on which share of tokens it is active, its largest tokens, one a record, and words of their texts that
    all texts have less often: (word, share of these texts, share of all)."""

    number: int
    active: float
    top: list[Top] = field(default_factory=list)
    words: list[tuple[str, float, float]] = field(default_factory=list)


def opened(folder: str | Path, shards: str | Path) -> tuple[SparseAutoencoder, dict[str, Any], Cached]:
    """An autoencoder, what is known of it, and activations of the same model, task and data.

    Raises:
        SaeError, ActivationError: one of them is missing, or the activations are others.
    """
    sae, about = load_sae(folder)
    cached = Cached(shards)
    if different := [name for name in OF_SHARDS if about.get(name) != cached.about.get(name)]:
        raise SaeError(f"{shards} has another {different[0]} than the activations on which {folder} was trained")
    cached.matching([about["point"]])
    return sae, about, cached


def check_data(wanted: Sequence[Wanted], cached: Cached, name: str) -> None:
    """SaeError for other records than those of the activations."""
    if contents_of(wanted) != cached.about.get("contents"):
        raise SaeError(
            f"{name} has other records than {cached.folder}: name the data that blip activations read, from the same "
            "folder and without its --limit"
        )


def check_weights(weights: str, cached: Cached, name: str) -> None:
    """SaeError for another checkpoint than that of the activations, by its fingerprint."""
    if weights != cached.about.get("weights"):
        raise SaeError(f"{name} is another checkpoint than that of {cached.folder}: what it loses would mean nothing")


@dataclass(frozen=True)
class Tested:
    """The records on which the model's loss is measured, and what they are, for a table."""

    records: list[Wanted]
    name: str


def tested_records(
    place: str, others: Sequence[Wanted] | None, wanted: Sequence[Wanted], *, about: dict[str, Any], limit: int
) -> Tested:
    """The `others` of a place that the user names, or the held-out ones; of either the first `limit` (0: all)."""
    if others is None:
        return held_out(wanted, about, limit)
    return named(place, others, wanted, about, limit=limit)


def held_out(wanted: Sequence[Wanted], about: dict[str, Any], limit: int) -> Tested:
    """The records that did not train the autoencoder, the first `limit` (0: all); none shares its image with one
    that did.

    Raises:
        SaeError: an autoencoder of an earlier version, which did not keep which records these are.
    """
    if "held_out" not in about:
        raise SaeError(
            "this autoencoder does not tell which records it held out, as earlier versions did not: train it again, or "
            "name other records with --test_data"
        )
    numbers = about["held_out"][: limit or None]
    return Tested(
        [wanted[number] for number in numbers], f"{len(numbers)} of {len(about['held_out'])} held-out records"
    )


def named(
    place: str, records: Sequence[Wanted], wanted: Sequence[Wanted], about: dict[str, Any], *, limit: int
) -> Tested:
    """The first `limit` records (0: all) that the user names, and how many of them have an image of the training."""
    chosen = list(records)[: limit or None]
    of_training = set(range(len(wanted))) - set(about.get("held_out", ()))
    trained = {tuple(map(os.path.realpath, wanted[number].paths)) for number in of_training}
    shared = sum(tuple(map(os.path.realpath, one.paths)) in trained for one in chosen)
    return Tested(chosen, f"{len(chosen)} records of {place}, {shared} of them about images that trained it")


def loss_with(
    m: Predictor,
    sae: SparseAutoencoder,
    about: dict[str, Any],
    *,
    tested: Tested,
    task: str,
    batch_size: int,
) -> Downstream:
    """What the model loses, in `task` or that of the activations; those of the image alone tell none."""
    task = task or (about["task"] if about["task"] != "image" else "")
    first = about.get("pool") == "first"
    return downstream(m, sae, about["point"], wanted=tested.records, task=task, first_only=first, batch_size=batch_size)


@torch.no_grad()
def find_features(sae: SparseAutoencoder, tokens: Tokens, *, count: int, examples: int) -> list[Feature]:
    """The `count` features with the largest sum of codes, each with its largest tokens of different records."""
    (states,) = tokens.states.values()
    kept = min(len(states), 8 * examples)  # several tokens of a record may be among them
    sums, active = torch.zeros(sae.features), torch.zeros(sae.features)
    values, places = torch.zeros(0, sae.features), torch.zeros(0, sae.features, dtype=torch.long)
    for start in range(0, len(states), CHUNK):
        codes = sae.codes(states[start : start + CHUNK])
        sums += codes.sum(dim=0)
        active += (codes > 0).sum(dim=0)
        numbers = torch.arange(start, start + len(codes))[:, None].expand_as(codes)
        values, places = torch.cat([values, codes]), torch.cat([places, numbers])
        values, order = values.topk(min(kept, len(values)), dim=0)
        places = places.gather(0, order)
    features = []
    for number in sums.argsort(descending=True)[:count].tolist():
        feature = Feature(number, float(active[number]) / len(states))
        seen: set[int] = set()
        for code, place in zip(values[:, number].tolist(), places[:, number].tolist(), strict=True):
            record = int(tokens.records[place])
            if code > 0 and record not in seen and len(feature.top) < examples:
                seen.add(record)
                feature.top.append(Top(record, int(tokens.places[place]), code))
        if feature.top:
            features.append(feature)
    return features


def add_words(features: Sequence[Feature], wanted: Sequence[Wanted], count: int = 4) -> None:
    """The words that the texts of a feature's records have more often than all texts have."""
    words = [set(one.text.split()) for one in wanted]
    everywhere = Counter(word for several in words for word in several)
    for feature in features:
        here = Counter(word for top in feature.top for word in words[top.record])
        shares = {word: (n / len(feature.top), everywhere[word] / len(words)) for word, n in here.items()}
        largest = sorted(shares, key=lambda word: shares[word][1] - shares[word][0])[:count]
        feature.words = [(word, *shares[word]) for word in largest if shares[word][0] > shares[word][1]]


def write_gallery(
    m: Predictor,
    features: Sequence[Feature],
    out: Path,
    *,
    wanted: Sequence[Wanted],
    about: dict[str, Any],
    lost: Downstream | None,
    tested: str = "",
) -> None:
    """Writes the page. A box marks the patch of an image, a mark the token of a text that activates the feature.

    `tested` tells on which records the loss was measured.
    """
    point = about["point"]
    of_image, limits = point.startswith("image."), m.limits
    grid = m.model.image_encoder.config.image_size // m.model.image_encoder.config.patch
    shown = []
    for feature in features:
        examples = []
        for top in feature.top:
            one = wanted[top.record]
            picture = _picture(one.image, (top.place - 1, grid) if of_image and top.place > 0 else None, limits)
            before, word, after = ("", "", one.text) if of_image else _marked(m, one.text, top.place, about)
            examples.append({"picture": picture, "before": before, "word": word, "after": after, "code": top.code})
        words = ", ".join(f"{word} ({share:.0%}, of all {of_all:.0%})" for word, share, of_all in feature.words)
        shown.append({"number": feature.number, "active": feature.active, "words": words, "examples": examples})
    title = f"Features of {point}"
    content = page(
        "interpret/features/sae.html",
        title=title,
        heading=title,
        scores=table(score_rows(about, lost, tested)),
        features=shown,
    )
    write_page(out, content)


def score_rows(about: dict[str, Any], lost: Downstream | None, tested: str = "") -> list[tuple[str, str]]:
    """What is known of an autoencoder, for a page and the terminal; `tested` as in `write_gallery`."""
    quality = about["quality"]
    rows = [
        ("features", f"{about['features']}, {about['kind']}"),
        ("variance explained", f"{quality['explained']:.1%} of {quality['states']} held-out states"),
        ("active features a state", f"{quality['active']:.1f}"),
        ("features that no held-out state activates", f"{quality['dead']:.1%}"),
        ("revived in training", str(about["revived"])),
    ]
    if lost is not None:
        share = lost.recovered
        rows += [
            ("loss measured on", tested),
            (f"loss of the model ({lost.task})", f"{lost.original:.4f} nats a record"),
            ("with the autoencoder's states", f"{lost.spliced:.4f}"),
            ("with the mean state", f"{lost.mean_state:.4f}"),
            (
                "loss recovered",
                f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%}) of {share.count} records that could be read",
            ),
        ]
    return rows


def as_json(
    features: Sequence[Feature], about: dict[str, Any], lost: Downstream | None, *, tested: str = ""
) -> dict[str, Any]:
    """Everything that the page shows, without pictures."""
    downstream = None if lost is None else {"measured_on": tested, **asdict(lost)}
    return {"sae": about, "downstream": downstream, "features": [asdict(one) for one in features]}


def _picture(path: Path, patch: tuple[int, int] | None, limits: ImageLimits = LIMITS) -> Html | str:
    """An image with a box around patch (number, patches a side), or why there is none."""
    try:
        opened = open_image(path, limits).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except UnreadableImage as problem:
        return str(problem)
    if patch is not None:
        number, grid = patch
        side = SIDE / grid
        left, top = number % grid * side, number // grid * side
        ImageDraw.Draw(opened).rectangle((left, top, left + side - 1, top + side - 1), outline=(255, 60, 60), width=2)
    return image(opened, "JPEG", 85, alt=path.name)


def _marked(m: Predictor, text: str, place: int, about: dict[str, Any]) -> tuple[str, str, str]:
    """A text before, at and after the token at a place; the first token of a text is the model's own."""
    ids, point = m.ids([text], m.positions)[0][0].tolist(), about["point"]
    if point.startswith(("qformer.", "queries")) and not point.endswith(".mlp"):  # queries stand before the text
        queries = m.model.qformer.config.queries
        if place < queries:
            return "", f"query {place + 1} of {queries}", f"with: {text}"
        place -= queries
    if place >= len(ids):
        return text, "", ""
    first = {"decoder": "[DEC]", "text": "[ENC]"}.get(point.split(".")[0], "[CLS]")
    names = [first, *(m.tokenizer.token(number) for number in ids[1:])]
    return _joined(names[:place]), _joined(names[place : place + 1]), _joined(names[place + 1 :])


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces).replace(" ##", "")
