"""Facts about cross-attention over a data set: where each head attends, how sharply, and which heads do the same.

`attention_sums.py` has the formulas. Attention tells where a head reads, not what its result does to the output.

Shapes: R texts, T rows of queries (tokens, or the queries of BLIP-2), H heads of width d, 1+N keys (CLS and N patches
in a grid of h*w), C classes of words, Q queries of BLIP-2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip.errors import InputError
from blip.files import whole_file
from blip.inference.inputs import Images, Texts, as_list, batches_of
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.inference.scoring import check_texts
from blip.interpret.attention_sums import HeadSums
from blip.interpret.causes.labelled import Labelled
from blip.interpret.explain import word_spans
from blip.interpret.objectives import Objective, completed_answers, completed_captions, explained
from blip.interpret.pictures import needs_matplotlib
from blip.interpret.points import attentions, layers_of
from blip.interpret.query_flow import QueryFlow, flow_through
from blip.interpret.recording import Trace
from blip.interpret.trace import trace
from blip.models.decoding import Decoding

OTHER_WORDS, END = "other words", "[SEP]"
DIMS = {2: ("layer", "head"), 3: ("layer", "head", "other"), 5: ("class", "layer", "head", "y", "x")}
Classes = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class AttentionFacts:
    """What `attention_facts` returns; every field is an array with names.

    Args:
        entropy: (layer, head), bits: 0 where a head attends to one key; notes have the most, log2(1+N).
        on_cls: (layer, head), the share of attention on CLS, which is of no place in the image.
        maps: (class, layer, head, y, x), the average attention to each patch; NaN for a class that a layer never has.
        agreement: (layer, head, other), 1 where two heads attend to the same keys, 0 to none in common.
        similarity: (layer, head, other), linear CKA of what two heads read: 1 where one is a rotation of the other.
        redundancy: (layer, head), the largest similarity with another head of the layer.
        flow: of BLIP-2 whose Q-Former reads the text, see `query_flow`; else None.
    """

    entropy: Labelled
    on_cls: Labelled
    maps: Labelled
    agreement: Labelled
    similarity: Labelled
    redundancy: Labelled
    flow: QueryFlow | None = None

    def __str__(self) -> str:
        return "\n\n".join(str(getattr(self, f.name)) for f in fields(self) if f.name != "flow")

    def picture(self, path: str | Path) -> None:
        """The average maps as PNG, a row for each class and a column for each head; each map has its own scale.

        Raises:
            PictureError: matplotlib is not installed.
        """
        needs_matplotlib()
        from matplotlib.figure import Figure

        classes, layers, heads = (self.maps.coords[dim] for dim in ("class", "layer", "head"))
        columns = [(layer, head) for layer in layers for head in heads]
        size = 1.3 * len(columns) + 1.2, 1.3 * len(classes) + 0.6
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(classes), len(columns), squeeze=False)
        for row, name in enumerate(classes):
            for column, (layer, head) in enumerate(columns):
                axis = axes[row][column]
                values = self.maps.select(**{"class": name}, layer=layer, head=head).values
                axis.set_xticks([])
                axis.set_yticks([])
                if row == 0:
                    bits = float(self.entropy.select(layer=layer, head=head).values)
                    axis.set_title(f"{layer.split('.')[-2]}.{head}  {bits:.1f} bit", fontsize=8)
                if column == 0:
                    axis.set_ylabel(name, fontsize=8)
                if not np.isnan(values).any():
                    axis.imshow(values, cmap="inferno", vmin=0, interpolation="nearest")
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=70)


def attention_facts(
    m: Predictor,
    images: Images,
    texts: Texts = "",
    *,
    task: str = "",
    answers: Texts = "",
    classes: Classes | None = None,
    batch_size: int = 16,
) -> AttentionFacts:
    """Facts about every head that attends to images, over many pairs of image and text.

    Args:
        m: what `blip.load` returns.
        images: paths, PIL images or a list of them.
        texts: as many; to match, captions (the model's own where empty), or questions.
        task: match, caption or answer; the usual one of the checkpoint's task unless given.
        answers: to questions; the model's own unless given.
        classes: words by class, `{"side": ["left", "right"], ...}`, whose maps are averaged; the others are one class.
            Of BLIP-2 the rows are its queries, and the classes are those of the flow.
        batch_size: pairs at once.

    Raises:
        InputError: numbers of images and texts differ, a text is empty, a word is in two classes, or a class is none.
        TraceError: the checkpoint has no attention from texts to images.

    Example:
        >>> m = blip.load("checkpoint")
        >>> facts = blip.attention_facts(m, ["chest.png", "normal.png"], ["small left effusion", "normal chest"],
        ...                              classes={"side": ["left", "right"]})
        >>> facts.entropy.select(layer="text.0.cross").values.shape  # one number for each head
        (2,)
        >>> facts.maps.coords["class"]
        ['[ENC]', 'side', 'other words', '[SEP]']
        >>> facts.picture("heads.png")
    """  # fmt: skip
    objective = explained(m, task)
    if objective.of_image:
        raise InputError("attention of the image alone has no words: task can be match, caption or answer")
    pictures, words, replies = _given(m, objective, images, texts, answers=answers)
    names = _class_names(objective, classes or {})
    layers = _crossing(m, objective)
    sums = {layer: HeadSums() for layer in layers}
    flow = flow_through(m, objective, names)
    points = [f"{layer}.{point}" for layer in layers for point in ("pattern", "z")] + (flow.points if flow else [])
    for numbers in batches_of(list(range(len(words))), batch_size):
        some = [words[i] for i in numbers]
        with torch.no_grad(), trace(m, points) as t:
            objective.scores(m, [pictures[i] for i in numbers], some, answers=[replies[i] for i in numbers])
        needed = flow or not objective.of_queries
        classes_of = _one_hot(m, some, names, classes or {}) if needed else torch.zeros(0)  # (R, T, C)
        if flow:
            flow.add(t, classes_of)
        for layer in layers:
            sums[layer].add(t.pattern(layer), t[f"{layer}.z"], None if objective.of_queries else classes_of)
    if objective.of_queries:
        names = [f"query {number + 1}" for number in range(t.pattern(layers[0]).shape[2])]
    return _facts(t, sums, names, flow)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def _crossing(m: Predictor, objective: Objective) -> list[str]:
    """The attentions to images of the stack that an objective runs."""
    of_stack = [(name, layer) for name, layer in layers_of(m.model) if name.startswith(objective.stack + ".")]
    return [f"{name}.cross" for name, layer in of_stack if "cross" in attentions(layer)]


def _given(
    m: Predictor, objective: Objective, images: Images, texts: Texts, *, answers: Texts
) -> tuple[list, list[str], list[str]]:
    """Images, texts and answers, as many each."""
    pictures, words, replies = as_list(images), as_list(texts), as_list(answers)
    if len(words) == 1 or not any(words):
        words = words[:1] * len(pictures)
    if len(pictures) != len(words) or not pictures:
        raise InputError(f"{len(pictures)} images and {len(words)} texts: give as many")
    if objective.writes_texts:
        words = completed_captions(m, pictures, words, Decoding())
    check_texts(m, words, longest=objective.longest(m))
    if not objective.has_answers:
        return pictures, words, [""] * len(words)
    replies = replies * len(words) if len(replies) == 1 else replies
    if len(replies) != len(words):
        raise InputError(f"{len(words)} questions and {len(replies)} answers: give as many")
    return pictures, words, completed_answers(m, pictures, words, answers=replies)


def _class_names(objective: Objective, classes: Classes) -> list[str]:
    own = ["[ENC]" if objective.has_enc else "[DEC]", OTHER_WORDS, END]
    for name, members in classes.items():
        if isinstance(members, str):
            raise InputError(f"the class {name!r} is a string: give a list of words, such as [{members!r}]")
        if name in own:
            raise InputError(f"a class cannot be called {name!r}: there is one of that name")
    words = [word.lower() for members in classes.values() for word in members]
    if twice := [word for word in words if words.count(word) > 1]:
        raise InputError(f"the word {twice[0]!r} is in two classes, or twice in one")
    return [own[0], *classes, *own[1:]]


def _one_hot(m: Predictor, texts: Sequence[str], names: list[str], classes: Classes) -> Tensor:
    """(R, T, C): the class of each token, of all pieces of a word that of the word; none of padding."""
    class_of = {word.lower(): name for name, members in classes.items() for word in members}
    counts = token_counts(m, texts)
    found = torch.zeros(len(texts), max(counts), len(names))
    for row, text in enumerate(texts):
        found[row, 0, 0] = found[row, counts[row] - 1, -1] = 1
        for word, span in word_spans(m, text):
            found[row, span, names.index(class_of.get(word.lower(), OTHER_WORDS))] = 1
    return found


# ---- results ---------------------------------------------------------------------------------------------------------


def _facts(t: Trace, sums: Mapping[str, HeadSums], names: list[str], flow: QueryFlow | None) -> AttentionFacts:
    if t.grid is None:
        raise InputError("no image passed through the model")
    height, width = t.grid
    patches = next(iter(sums.values())).maps().shape[2]
    if patches != height * width:
        raise InputError(
            f"an attention with {patches + 1} keys does not attend to the patches of one picture: give each picture of "
            "a study as an image of its own"
        )
    each = list(sums.values())
    entropy = np.stack([one.mean("entropy") for one in each])  # (layers, H)
    similarity = np.stack([one.similarity() for one in each])  # (layers, H, H)
    maps = np.stack([one.maps() for one in each], axis=1)  # (C, layers, H, N)
    heads = [str(head) for head in range(entropy.shape[1])]
    coords = {"class": names, "layer": list(sums), "head": heads, "other": heads}
    coords |= {"y": [str(y) for y in range(height)], "x": [str(x) for x in range(width)]}

    def labelled(values: NDArray, name: str, unit: str = "", **notes: float) -> Labelled:
        dims = DIMS[values.ndim]
        return Labelled(values, dims, {dim: coords[dim] for dim in dims}, name, unit, notes)

    return AttentionFacts(
        entropy=labelled(entropy, "entropy", "bits", most=float(np.log2(1 + patches))),
        on_cls=labelled(np.stack([one.mean("on_cls") for one in each]), "attention to CLS", "share"),
        maps=labelled(maps.reshape(*maps.shape[:3], height, width), "attention", "share"),
        agreement=labelled(np.stack([one.mean("agreement") for one in each]), "agreement"),
        similarity=labelled(similarity, "similarity", "CKA"),
        redundancy=labelled(np.where(np.eye(len(heads)), 0.0, similarity).max(axis=2), "redundancy", "largest CKA"),
        flow=flow,
    )
