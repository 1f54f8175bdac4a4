"""Ranking a list of answers: ours, a tree of tokens on the query axis, against padded answers with repeated states.

    python benchmarks/vqa_rank.py --precision fp32

Four questions about images of 480 px; 500 answers of 4 tokens on average, of which the k = 128 whose first token is
likeliest are scored. Random weights of ViT-B and BERT-base on both sides. The peer is transformers' question encoder
and answer decoder with the published ranking: every answer padded to the longest of the list, question states repeated
for each. What is timed is all after the image encoder; the ranking alone, from the questions' states, is timed too.
Scores and order are compared first.

The list is made up, as long and as alike as VQA-RAD's 391 different answers (BERT's tokens, special ones not counted):
those have 4.5 tokens on average and 23 at most, 58 % begin with a token that no earlier one begins with, and 14 % of
all tokens belong to a beginning that an earlier answer has. Here they have 4 on average and 12 at most, since a longer
one costs the peer alone.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import flops, harness
from benchmarks.peers_tasks import PublishedRank
from blip.models.answer_tree import AnswerTree
from blip.models.ranking import Ranked, rank_answers
from blip.models.vqa import VqaModel
from blip.network.cross_attention import ProjectedKeys
from blip.network.embeddings import TextConfig
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

PAD, ENC, DEC, CLS, SEP = 0, 30523, 30522, 101, 102
QUESTIONS, QUESTION_LENGTHS = 4, [9, 11, 12, 14]  # tokens, special ones included
MEAN_LENGTH, LONGEST = 4, 12
# VQA-RAD's answers of 1 to 12 tokens, in per cent
LENGTHS = [14, 18, 19, 15, 10.5, 5, 4.5, 3.5, 2.5, 2.5, 2.5, 1.5]
BEGIN_ALIKE, AND_GO_ON_ALIKE = 0.42, 0.32  # share of answers, and the chance of each further token


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig
    answers: int
    k: int


def sizes(name: str) -> Size:
    if name == "tiny":
        text = TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0)
        return Size(ViTConfig(32, 8, 64, 2, 4), text, answers=40, k=12)
    width, depth, heads, patch = VIT_SIZES[name]
    return Size(ViTConfig(480, patch, width, depth, heads), TextConfig(image_width=width, dropout=0.0), 500, 128)


def make_answers(count: int, seed: int = 0) -> list[list[int]]:
    """Different answers of MEAN_LENGTH tokens on average, to the token."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS).multinomial(count, replacement=True, generator=g) + 1
    while (excess := int(lengths.sum()) - MEAN_LENGTH * count) != 0:
        step = 1 if excess < 0 else -1
        places = ((lengths + step >= 1) & (lengths + step <= LONGEST)).nonzero().squeeze(1)
        lengths[places[torch.randint(len(places), (), generator=g)]] += step
    answers: list[list[int]] = []
    for length in lengths.tolist():
        alike: list[int] = []
        if answers and length > 1 and torch.rand((), generator=g) < BEGIN_ALIKE / (1 - LENGTHS[0] / 100):
            earlier, taken = answers[int(torch.randint(len(answers), (), generator=g))], 1
            while torch.rand((), generator=g) < AND_GO_ON_ALIKE:
                taken += 1
            alike = earlier[: min(taken, length - 1)]
        answers.append(alike + torch.randint(1000, 30522, (length - len(alike),), generator=g).tolist())
    return answers


class Run:
    """Both sides on the same weights, image states, questions and answers."""

    def __init__(self, args: argparse.Namespace, size: Size):
        self.args, self.k = args, size.k
        device = args.device
        self.model = VqaModel(size.vit, size.text, Specials(PAD, ENC, DEC)).to(device).eval()
        self.peer = PublishedRank(self.model).to(device)
        self.lengths = torch.tensor(QUESTION_LENGTHS)
        ids = torch.randint(1000, 30522, (QUESTIONS, max(QUESTION_LENGTHS)))
        ids[:, 0] = ENC
        ids[torch.arange(QUESTIONS), self.lengths - 1] = SEP
        ids[torch.arange(ids.shape[1]) >= self.lengths[:, None]] = PAD
        self.ids = ids.to(device)
        self.mask = (self.ids != PAD).long()
        answers = make_answers(size.answers)
        self.tree = AnswerTree(answers, DEC, SEP)
        framed = [[DEC, *answer, SEP] for answer in answers]
        longest = max(len(f) for f in framed)
        self.answers = torch.tensor([f + [PAD] * (longest - len(f)) for f in framed], device=device)
        with torch.no_grad(), harness.precision(args):
            images = torch.randn(QUESTIONS, 3, size.vit.image_size, size.vit.image_size, device=device)
            self.image_states = self.model.image_encoder(images)
            self.states = self.read()

    def read(self) -> Tensor:
        keys = self.model.text_encoder.keys_or_states(self.image_states, tokens=self.ids.shape[1])
        return self.model.question_states(keys, self.ids, self.lengths)

    def ours_rank(self) -> Ranked:
        with torch.no_grad(), harness.precision(self.args):
            keys = self.model.answer_keys(self.states, self.lengths)
            return self.rank(keys)

    def ours_after(self) -> Ranked:
        with torch.no_grad(), harness.precision(self.args):
            states = self.read()
            keys = self.model.answer_keys(states, self.lengths)
            return self.rank(keys)

    def rank(self, keys: ProjectedKeys) -> Ranked:
        return rank_answers(
            self.model.text_decoder, keys, self.tree, k=self.k, label_smoothing=self.model.label_smoothing
        )

    def theirs_rank(self, states: Tensor | None = None) -> tuple[Tensor, Tensor]:
        states = self.states if states is None else states
        with torch.no_grad(), harness.precision(self.args):
            # one question at a time, without its padding: transformers 5 ignores the mask of its cross-attention
            parts = [
                self.peer.rank(states[b : b + 1, :length], self.answers, self.k)
                for b, length in enumerate(QUESTION_LENGTHS)
            ]
        return torch.cat([chosen for chosen, _ in parts]), torch.cat([scores for _, scores in parts])

    def theirs_after(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), harness.precision(self.args):
            states = self.peer.question_states(self.ids, self.mask, self.image_states)
        return self.theirs_rank(states)


def measure(args: argparse.Namespace) -> dict:
    size = sizes(args.size)
    run = Run(args, size)
    ours = run.ours_after()
    agreement = compare(ours, *run.theirs_after())
    print(json.dumps(agreement), flush=True)
    calls = {f"{who}_{part}": getattr(run, f"{who}_{part}") for part in ("rank", "after") for who in ("theirs", "ours")}
    seconds = harness.alternate(calls, args.repeats, harness.clock(args.device), warm_up=False)
    median = harness.medians(seconds)

    nodes = [run.tree.nodes_of(chosen).numel() - 1 for chosen in ours.answers]  # [DEC] is counted apart
    longest = run.answers.shape[1]
    gflop = {
        "ours_rank": sum(
            flops.rank_tree(size.text, nodes=n, question=length)
            for n, length in zip(nodes, QUESTION_LENGTHS, strict=True)
        ),
        "theirs_rank": sum(
            flops.rank_padded(size.text, k=size.k, longest=longest, question=length) for length in QUESTION_LENGTHS
        ),
    }
    gflop["ours_after"] = gflop["ours_rank"] + flops.read_questions(size.vit, size.text, QUESTION_LENGTHS, keys=False)
    gflop["theirs_after"] = gflop["theirs_rank"] + flops.read_questions(
        size.vit, size.text, [max(QUESTION_LENGTHS)] * QUESTIONS, keys=True
    )
    gflop = {name: value / 1e9 for name, value in gflop.items()}
    return {
        "ratio": median["theirs_after"] / median["ours_after"],
        "ratio_ranking_alone": median["theirs_rank"] / median["ours_rank"],
        "agreement": agreement,
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        **harness.rates(args, gflop, median),
        "questions": QUESTIONS,
        "answers": {"count": size.answers, "k": size.k, "mean_tokens": MEAN_LENGTH, "padded_to": longest},
        "nodes_a_question": nodes,
        "nodes_of_the_list": len(run.tree.tokens),
    }


def compare(ours: Ranked, chosen: Tensor, scores: Tensor) -> dict:
    """Scores by both of the answers that both chose: answers of one first token are equally likely to be chosen."""
    largest, both, same_best = 0.0, 0, 0
    for row in range(len(chosen)):
        own = dict(zip(ours.answers[row].tolist(), ours.scores[row].tolist(), strict=True))
        theirs = dict(zip(chosen[row].tolist(), scores[row].tolist(), strict=True))
        shared = own.keys() & theirs.keys()
        both += len(shared)
        largest = max(largest, *(abs(own[a] - theirs[a]) for a in shared))
        same_best += max(shared, key=own.__getitem__) == max(shared, key=theirs.__getitem__)
    return {"answers": chosen.numel(), "chosen_by_both": both, "largest_difference": largest, "same_best": same_best}


def main() -> None:
    args = harness.options(__doc__, repeats=3).parse_args()
    harness.start(args)
    harness.report(args, "vqa_rank", measure(args))


if __name__ == "__main__":
    main()
