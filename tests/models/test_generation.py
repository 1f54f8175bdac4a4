"""Decoding against slow, plain code and against `generate` of transformers; every wrong option has its message."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from helpers.tiny import spread, tiny_model, tiny_text, tiny_vit
from torch import Tensor
from torch.testing import assert_close

pytest.importorskip("transformers")

from benchmarks.peers_tasks import captioner
from blip.errors import InputError
from blip.hardware.profile import PROFILES
from blip.models import decoding
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding, Generated, Step, uniforms_of
from blip.models.generation import generate
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import DecoderStep
from blip.network.packing import Rows

PAD, END, ENC, DEC, WORDS = 0, 2, 23, 22, 24
CPU = torch.device("cpu")


def build(seed: int, end_bias: float = 0.0, width: float = 0.5) -> CaptionModel:
    """Weights large enough for texts to differ; `end_bias` makes ends likelier, so that texts end early."""
    torch.manual_seed(seed)
    text = tiny_text(vocab_size=WORDS, width=24, heads=2, hidden=32, max_positions=40, image_width=12)
    model = spread(tiny_model("caption", tiny_vit(image_size=16, width=12, depth=1, heads=2), text), std=width)
    with torch.no_grad():
        model.text_decoder.head.bias[END] += end_bias
        model.text_decoder.head.bias[PAD] -= 1000  # transformers ends a text at padding's id by no other means
    return model.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16)


@torch.no_grad()
def keys_of(model: CaptionModel, images: Tensor) -> ProjectedKeys:
    return model.text_decoder.image_keys(model.image_encoder(images))


class Uncached:
    """A step that keeps no cache: it reads each text anew, alone, with its image's keys."""

    def __init__(self, model: CaptionModel, keys: ProjectedKeys):
        self.decoder, self.keys = model.text_decoder, keys
        self.texts: Tensor | None = None
        self.images = torch.arange(len(keys))

    def __call__(self, ids: Tensor) -> Tensor:
        self.texts = ids if self.texts is None else torch.cat([self.texts, ids], dim=1)
        logits = []
        for text, image in zip(self.texts, self.images, strict=True):
            rows = Rows(torch.tensor([len(text)]), len(text), CPU)
            states = self.decoder(text[None], rows, self.keys.select(image[None]))
            logits.append(self.decoder.head(states)[-1])
        return torch.stack(logits)

    def select(self, rows: Tensor, per_image: int = 1) -> None:
        assert self.texts is not None
        self.texts, self.images = self.texts[rows], self.images[rows]


def same(one: Generated, other: Generated) -> None:
    assert one.ids.tolist() == other.ids.tolist()
    assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-5)
    assert_close(one.scores, other.scores, rtol=0, atol=1e-5)


WAYS = {
    "greedy": Decoding(max_new_tokens=9),
    "beams": Decoding(beams=3, max_new_tokens=9, num_return=2),
    "beams, whole": Decoding(beams=4, max_new_tokens=9, length_norm="whole", length_penalty=0.5),
    "beams, long": Decoding(beams=2, max_new_tokens=9, length_penalty=4.0),  # what is done could be beaten later
    "sampled": Decoding(sample=True, max_new_tokens=9, num_return=3, top_p=0.9, top_k=12, temperature=1.3),
    "constrained": Decoding(beams=2, max_new_tokens=9, min_new_tokens=3, repetition_penalty=1.4, no_repeat_ngram=2),
}


@pytest.mark.parametrize("end_bias", [0.0, 6.0])
@pytest.mark.parametrize("name", WAYS)
def test_cached_equals_uncached(name: str, end_bias: float) -> None:
    how, model, first = WAYS[name], build(1, end_bias), torch.tensor([[DEC, 5]] * 6)
    keys = keys_of(model, pictures(6))
    runs = [
        generate(step, first, how, end_id=END, pad_id=PAD, uniforms=uniforms_of(range(6), how))
        for step in (DecoderStep(model.text_decoder, keys), Uncached(model, keys))
    ]
    same(*runs)


@torch.no_grad()
def test_images_and_their_texts_drop_out_together() -> None:
    """From two texts each of three images to one each of two of them."""
    model = build(1)
    keys = keys_of(model, pictures())
    steps = [DecoderStep(model.text_decoder, keys), Uncached(model, keys)]
    for step in steps:
        step(torch.full((3, 1), DEC))
        step.select(torch.tensor([0, 0, 1, 1, 2, 2]), 2)
        step(torch.tensor([[5], [6], [7], [8], [9], [10]]))
        step.select(torch.tensor([1, 4]), 1)
    expected = steps[1](torch.tensor([[11], [12]]))
    assert_close(steps[0](torch.tensor([[11], [12]])), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("end_bias", [0.0, 6.0])
@pytest.mark.parametrize("name", WAYS)
def test_a_batch_equals_one_by_one(name: str, end_bias: float) -> None:
    """Texts end at different lengths: nobody's text depends on its neighbours', not even where it is drawn."""
    how, model, images = WAYS[name], build(2, end_bias), pictures(5)
    first, seeds = torch.tensor([[DEC]] * 5), [7, 8, 9, 10, 7]
    whole = model.write(images, first, how, end_id=END, uniforms=uniforms_of(seeds, how))
    each = how.num_return
    for i in range(5):
        own = uniforms_of(seeds[i : i + 1], how)
        alone = model.write(images[i : i + 1], first[:1], how, end_id=END, uniforms=own)
        rows, length = slice(i * each, (i + 1) * each), alone.ids.shape[1]
        assert whole.ids[rows, :length].tolist() == alone.ids.tolist()
        assert (whole.ids[rows, length:] == PAD).all()
        assert_close(whole.scores[rows], alone.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [2, 4, 50])
@pytest.mark.parametrize("end_bias", [0.0, 2.0, 6.0])
@pytest.mark.parametrize("name", WAYS)
def test_checking_for_the_end_every_few_tokens_changes_nothing(
    name: str, end_bias: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where texts that have ended are continued until the next check."""
    how, model, images = WAYS[name], build(3, end_bias), pictures(6)
    first, uniforms = torch.tensor([[DEC, 5]] * 6), uniforms_of(range(6), how)
    expected = model.write(images, first, how, end_id=END, uniforms=uniforms)
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], steps_between_checks=steps))
    same(model.write(images, first, how, end_id=END, uniforms=uniforms), expected)


def generate_each(step_for: Callable[[Tensor], Step], prompts: list[list[int]], how: Decoding) -> Generated:
    """Prompts of any lengths: those of equal length are written together, so that no prompt has padding."""
    groups: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(number)
    rows, parts = [], []
    for members in groups.values():
        ids = torch.tensor([prompts[i] for i in members])
        step = step_for(torch.tensor(members))
        parts.append(generate(step, ids, how, end_id=END, pad_id=PAD, uniforms=uniforms_of(members, how)))
        rows += [i * how.num_return + k for i in members for k in range(how.num_return)]
    longest, order = max(part.ids.shape[1] for part in parts), torch.tensor(rows).argsort()

    def joined(tensors: list[Tensor], fill: float) -> Tensor:
        wide = [torch.nn.functional.pad(t, (0, longest - t.shape[1]), value=fill) for t in tensors]
        return torch.cat(wide)[order]

    return Generated(
        joined([part.ids for part in parts], PAD),
        joined([part.log_probs for part in parts], 0.0),
        torch.cat([part.scores for part in parts])[order],
    )


@pytest.mark.parametrize("name", WAYS)
def test_prompts_of_different_lengths(name: str) -> None:
    how, model = WAYS[name], build(4, 4.0)
    prompts = [[DEC], [DEC, 5, 6], [DEC, 7], [DEC, 8, 9]]
    keys = keys_of(model, pictures(4))

    def step_for(index: Tensor) -> DecoderStep:
        return DecoderStep(model.text_decoder, keys.select(index))

    together = generate_each(step_for, prompts, how)
    assert together.ids.shape[0] == together.scores.shape[0] == 4 * how.num_return
    for number, prompt in enumerate(prompts):
        step, own = step_for(torch.tensor([number])), uniforms_of([number], how)
        alone = generate(step, torch.tensor([prompt]), how, end_id=END, pad_id=PAD, uniforms=own)
        rows, length = slice(number * how.num_return, (number + 1) * how.num_return), alone.ids.shape[1]
        assert together.ids[rows, :length].tolist() == alone.ids.tolist()
        assert (together.ids[rows, length:] == PAD).all()
        assert_close(together.log_probs[rows, :length], alone.log_probs, rtol=0, atol=1e-5)
        assert_close(together.scores[rows], alone.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("beams", "num_return"), [(1, 1), (2, 1), (2, 2), (5, 3)])
def test_beams_and_returned_texts(beams: int, num_return: int) -> None:
    how = Decoding(beams=beams, num_return=num_return, max_new_tokens=6)
    out = build(5).write(pictures(), torch.tensor([[DEC]] * 3), how, end_id=END)
    assert out.ids.shape == out.log_probs.shape == (3 * num_return, out.ids.shape[1])
    scores = out.scores.view(3, num_return)
    assert (scores.diff(dim=1) <= 0).all(), "the best first"
    assert all(len({tuple(row) for row in rows}) == num_return for rows in out.ids.view(3, num_return, -1).tolist())


def test_log_probs_are_those_of_the_model() -> None:
    """Of each token as the model gives it, before any penalty; a beam's score is their mean over the tokens."""
    model, images = build(6, 1.0), pictures()
    keys = keys_of(model, images)
    penalty = {"max_new_tokens": 8, "repetition_penalty": 0.5}  # repeats are likelier, so that penalised tokens occur
    for how in (Decoding(beams=3, max_new_tokens=8), Decoding(beams=3, **penalty), Decoding(**penalty)):
        out = model.write(images, torch.tensor([[DEC]] * 3), how, end_id=END)
        for row in range(3):
            ids = [token for token in out.ids[row].tolist() if token != PAD]
            step = Uncached(model, keys.select(torch.tensor([row])))
            read, expected = [DEC, *ids], []
            for t in range(len(ids)):
                step.texts = torch.tensor([read[:t]]) if t else None
                expected.append(step(torch.tensor([[read[t]]])).log_softmax(dim=1)[0, ids[t]].item())
            assert_close(out.log_probs[row, : len(ids)], torch.tensor(expected), rtol=0, atol=1e-5)
            assert (out.log_probs[row, len(ids) :] == 0).all()
            if how.beams > 1 and how.repetition_penalty != 1:
                continue  # ranked by penalised sums
            divisor = len(ids) if how.beams > 1 else 1
            assert out.scores[row].item() == pytest.approx(sum(expected) / divisor, abs=1e-5)


# ---- sampling --------------------------------------------------------------------------------------------------------


def test_a_seed_repeats_itself() -> None:
    model, images, first = build(7), pictures(), torch.tensor([[DEC]] * 3)
    how = Decoding(sample=True, max_new_tokens=8, num_return=3, top_p=0.95)
    seeds = [[1, 2, 3], [1, 2, 3], [4, 5, 6]]
    runs = [model.write(images, first, how, end_id=END, uniforms=uniforms_of(each, how)).ids for each in seeds]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_sampling_is_greedy(options: dict) -> None:
    model, images, first = build(8, 4.0), pictures(), torch.tensor([[DEC]] * 3)
    sampled = model.write(images, first, Decoding(sample=True, max_new_tokens=9, **options), end_id=END)
    same(sampled, model.write(images, first, Decoding(max_new_tokens=9), end_id=END))


def nucleus(logits: Tensor, top_p: float) -> set[int]:
    """The likeliest tokens, one after the other, until they hold `top_p`."""
    probabilities, chosen, held = logits.softmax(dim=0), set(), 0.0
    for token in sorted(range(len(logits)), key=lambda t: -logits[t].item()):
        if held >= top_p:
            break
        chosen.add(token)
        held += probabilities[token].item()
    return chosen


@pytest.mark.parametrize(
    ("how", "allowed"),
    [
        (Decoding(sample=True, top_p=0.7), lambda logits: nucleus(logits, 0.7)),
        (Decoding(sample=True, top_p=0.5, temperature=2.0), lambda logits: nucleus(logits / 2, 0.5)),
        (Decoding(sample=True, top_k=3), lambda logits: set(logits.topk(3).indices.tolist())),
    ],
)
def test_draws_stay_in_their_set_and_reach_all_of_it(how: Decoding, allowed) -> None:
    logits, steps = torch.randn(4, 12) * 1.5, torch.linspace(0, 1, 401)[:-1]
    torch.manual_seed(0)
    for drawn in (
        [decoding.draw(logits, how) for _ in steps],
        [decoding.draw(logits, how, x.expand(4)) for x in steps],
    ):
        for row in range(4):
            assert {int(tokens[row]) for tokens in drawn} == allowed(logits[row])


@pytest.mark.parametrize("uniforms", [None, torch.rand(20000, generator=torch.Generator().manual_seed(0))])
def test_draws_are_as_frequent_as_likely(uniforms: Tensor | None) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(20000, 1)
    torch.manual_seed(0)
    drawn = decoding.draw(logits, Decoding(sample=True, temperature=0.8), uniforms)
    assert_close(drawn.bincount() / 20000, (logits[0] / 0.8).softmax(dim=0), rtol=0, atol=0.015)


def test_the_ends_of_the_interval_draw_tokens_that_can_be_drawn() -> None:
    """At 0, and at the largest number below 1, whatever rounding does to the sum of the probabilities."""
    logits, how = torch.randn(50, 3000) * 3, Decoding(sample=True, top_p=0.6)
    logits[:, [0, 1, -2, -1]] = -100.0
    for bound in (0.0, 1 - 2**-24):
        drawn = decoding.draw(logits, how, torch.full((50,), bound))
        assert all(int(token) in nucleus(row, 0.6) for row, token in zip(logits, drawn, strict=True))


@pytest.mark.parametrize("uniforms", [True, False])
def test_scores_that_are_not_numbers_are_an_error(uniforms: bool) -> None:
    model, how = build(7), Decoding(sample=True, max_new_tokens=4)
    with torch.no_grad():
        model.text_decoder.head.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="not numbers"):
        model.write(
            pictures(), torch.tensor([[DEC]] * 3), how, end_id=END,
            uniforms=uniforms_of(range(3), how) if uniforms else None,
        )  # fmt: skip


# ---- penalties and bans ----------------------------------------------------------------------------------------------


def naive_constrained(logits: Sequence[float], text: list[int], new: int, how: Decoding) -> list[float]:
    scores = list(logits)
    for token in set(text):
        value = scores[token]
        scores[token] = value * how.repetition_penalty if value < 0 else value / how.repetition_penalty
    size = how.no_repeat_ngram
    for start in range(len(text) - size + 1) if size else []:
        run = text[start : start + size]
        if run[:-1] == text[len(text) - size + 1 :]:
            scores[run[-1]] = float("-inf")
    if new < how.min_new_tokens:
        scores[END] = float("-inf")
    return scores


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.6])
def test_constraints_equal_naive_ones(penalty: float, size: int, length: int) -> None:
    how = Decoding(repetition_penalty=penalty, no_repeat_ngram=size, min_new_tokens=2)
    texts, logits = torch.randint(3, 6, (5, length)), torch.randn(5, 8)  # few words: runs repeat
    for new in (1, 2):
        scores = decoding.constrained(logits, texts, new, decoding=how, end_id=END)
        expected = [naive_constrained(x, t, new, how) for x, t in zip(logits.tolist(), texts.tolist(), strict=True)]
        assert_close(scores, torch.tensor(expected))


# ---- against transformers --------------------------------------------------------------------------------------------

CASES = [
    {},
    {"length_penalty": 0.5},
    {"length_penalty": 2.0, "num_return": 2},
    {"no_repeat_ngram": 2},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.8, "min_new_tokens": 4},
    {"min_new_tokens": 5, "no_repeat_ngram": 3, "length_penalty": 0.5, "num_return": 2},
]
THEIR_NAMES = {"beams": "num_beams", "no_repeat_ngram": "no_repeat_ngram_size", "num_return": "num_return_sequences"}


def theirs(model: CaptionModel, images: Tensor, prompt: Tensor, how: Decoding) -> tuple[list[list[int]], Tensor | None]:
    """Token ids behind the prompt, and the sequences' scores, by `BlipForConditionalGeneration.generate`."""
    names = ("beams", "min_new_tokens", "max_new_tokens", "length_penalty", "repetition_penalty", "no_repeat_ngram")
    options = {THEIR_NAMES.get(name, name): getattr(how, name) for name in (*names, "num_return")}
    closed = torch.cat([prompt, torch.full((len(prompt), 1), END)], dim=1)  # its generate drops the last token
    out = captioner(model, END).generate(
        images, input_ids=closed, do_sample=False, return_dict_in_generate=True, output_scores=True, **options
    )
    return out.sequences[:, prompt.shape[1] :].tolist(), getattr(out, "sequences_scores", None)


def trimmed(rows: list[list[int]]) -> list[list[int]]:
    return [row[: row.index(END) + 1] if END in row else [t for t in row if t != PAD] for row in rows]


@pytest.mark.parametrize("prompt", [[DEC], [DEC, 5, 6]], ids=["no prompt", "prompt"])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_transformers_writes_the_same(case: dict, beams: int, prompt: list[int]) -> None:
    if beams == 1 and ("num_return" in case or "length_penalty" in case):
        pytest.skip("for beams alone")
    lengths = set()
    for seed, end_bias in [(11, 0.0), (12, 3.0), (13, 6.0), (14, 9.0)]:
        model, images = build(seed, end_bias), pictures()
        first = torch.tensor([prompt] * 3)
        how = Decoding(beams=beams, max_new_tokens=10, **case)
        ours = model.write(images, first, how, end_id=END)
        ids, scores = theirs(model, images, first, how)
        assert trimmed(ours.ids.tolist()) == trimmed(ids)
        if beams > 1:
            assert scores is not None
            assert_close(ours.scores, scores, rtol=1e-5, atol=1e-5)
        lengths |= {len(row) for row in trimmed(ids)}
    assert len(lengths) > 1, "some text must end early in this test"


# ---- options ---------------------------------------------------------------------------------------------------------

BAD = [
    ({"beams": 0}, "beams is 0, it must be 1 or more"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0, it must be 1 or more"),
    ({"num_return": 0}, "num_return is 0, it must be 1 or more"),
    ({"temperature": 0.0}, "temperature is 0.0, it must be above 0"),
    ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0, it must be above 0"),
    ({"top_p": 0.0}, "top_p is 0.0, it must be above 0 and at most 1"),
    ({"top_p": 1.1}, "top_p is 1.1, it must be above 0 and at most 1"),
    ({"top_k": -1}, "top_k, no_repeat_ngram and min_new_tokens must be 0 or more"),
    ({"no_repeat_ngram": -2}, "top_k, no_repeat_ngram and min_new_tokens must be 0 or more"),
    ({"min_new_tokens": -1}, "top_k, no_repeat_ngram and min_new_tokens must be 0 or more"),
    ({"min_new_tokens": 31}, "min_new_tokens 31 is above max_new_tokens 30"),
    ({"length_norm": "half"}, "length_norm is 'half', it can be generated, whole or whole_blip2"),
    ({"sample": True, "beams": 2}, "sample and beams exclude each other"),
    ({"num_return": 2}, "num_return is 2 with 1 beams: sample, or search with more beams"),
    ({"beams": 2, "num_return": 3}, "num_return is 3 with 2 beams"),
    ({"beams": 0, "top_p": 2.0}, "beams is 0, it must be 1 or more; top_p is 2.0"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda x: str(x)[:40])
def test_bad_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        Decoding(**options)
    assert message in str(error.value)


def test_more_beams_than_words() -> None:
    model = build(9)
    with pytest.raises(ValueError, match="13 beams need a vocabulary of 26 tokens or more"):
        model.write(pictures(), torch.tensor([[DEC]] * 3), Decoding(beams=13), end_id=END)
