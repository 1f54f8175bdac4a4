"""BLIP-2's first stage with the published code's checkpoints returns the published code's numbers."""

from pathlib import Path

import pytest
import torch
from helpers.golden_blip2 import FEATURES, LATER, LOGITS, WEIGHTS, Golden2, is_keys_bias, of_published, ours_of
from helpers.golden_numbers import close
from torch import Tensor
from torch.nn import functional as F

from blip.evaluation.retrieval import Texts, evaluate_retrieval
from blip.models.blip2 import Blip2Model, positives_among
from blip.models.decoding import Decoding
from blip.models.momentum import cosines, unit_features
from blip.models.scorers import scorer_of
from blip.network.packing import Rows

pytestmark = pytest.mark.golden


class ArgMax:
    """In place of the draw of hard negatives; keeps what it chose, texts first."""

    def __init__(self) -> None:
        self.chosen: list[list[int]] = []

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        best = weights.argmax(dim=1)
        self.chosen.append(best.tolist())
        return best, weights.sum(dim=1) > 0


def check_gradients(golden: Golden2, model: Blip2Model, prefix: str) -> None:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = [name for name in golden.numbers if name.startswith(prefix) and not is_keys_bias(name)]
    assert names
    for name in names:
        found, expected = of_published(name.removeprefix(prefix), gradients), golden.numbers[name]
        assert (found - expected).norm() <= LATER * expected.norm(), name


def check_weights(model: Blip2Model, expected: dict[str, Tensor]) -> None:
    """`expected` by the published names."""
    found, compared = dict(model.named_parameters()), 0
    for name, tensor in expected.items():
        if not is_keys_bias(name):
            error = (of_published(name, found) - tensor).norm()
            assert error <= WEIGHTS * tensor.norm(), f"{name}: {error / tensor.norm():.1e}"
            compared += 1
    assert compared > 5


def same_captions(golden: Golden2, chosen: list[int], expected: list[int]) -> bool:
    """Whether hard texts are the expected ones, or others with the same caption."""
    captions = golden.settings["captions"]
    return [captions[i] for i in chosen] == [captions[i] for i in expected]


def train(golden: Golden2, losses: str = "losses", *, frozen: bool, both_sides: bool = False) -> Blip2Model:
    """The three steps of the numbers: every loss, negative and first gradient."""
    model, settings = golden.model(), golden.settings
    if frozen:
        model.image_encoder.requires_grad_(False)
        model.image_encoder.norm.requires_grad_(True)
    optimizer = golden.optimizer(model, uniform=losses == "losses_uniform_decay")
    ids, lengths = golden.ids()
    positives = None
    if "image_ids" in settings:
        images = torch.tensor(settings["image_ids"])
        positives = positives_among(torch.arange(len(ids)), images)
    for step, expected in enumerate(settings[losses]):
        draw = ArgMax()
        images, gathered = golden.numbers[f"image{step}"], {"gather_gradients": both_sides}
        out = model(images, ids, lengths, positives=positives, draw=draw, **gathered)
        found = torch.stack([out.itc, out.itm, out.lm])
        close(found, torch.tensor(expected), FEATURES if step == 0 else LATER)
        if losses == "losses":
            assert draw.chosen[1] == settings["negative_images"][step]
            assert same_captions(golden, draw.chosen[0], settings["negative_texts"][step])
        optimizer.zero_grad()
        found.sum().backward()
        if step == 0:
            check_gradients(golden, model, "grad0_both_sides." if both_sides else "grad0.")
            if "itm_logits0" in golden.numbers:
                close(out.match_logits, golden.numbers["itm_logits0"], LOGITS)
        optimizer.step()
    return model


@pytest.mark.usefixtures("packed")
def test_pretraining(golden2_dir: Path) -> None:
    golden = Golden2(golden2_dir, "pretrain")
    model = train(golden, frozen=True)
    after = torch.load(golden2_dir / "pretrain_after.pth", weights_only=True)["model"]
    check_weights(model, {name: x for name, x in after.items() if ours_in(name, model)})
    tower = {name: x for name, x in golden.tensors.items() if name.startswith("image_encoder.blocks")}
    for name, tensor in tower.items():
        assert torch.equal(model.get_parameter(name), tensor), name


def ours_in(name: str, model: Blip2Model) -> bool:
    """Whether a tensor of a published file is a parameter, neither a buffer nor a copy."""
    try:
        return ours_of(name) in dict(model.named_parameters())
    except KeyError:
        return False


@pytest.mark.parametrize("losses", ["losses_uniform_decay", "losses_gradient_through_both_sides"])
def test_other_ways_to_pretrain(golden2_dir: Path, losses: str) -> None:
    train(Golden2(golden2_dir, "pretrain"), losses, frozen=True, both_sides="both" in losses)


def test_retrieval_training(golden2_dir: Path) -> None:
    """Pairs with equal image ids are positives, the tower is trained, images are larger."""
    golden = Golden2(golden2_dir, "retrieval")
    model = train(golden, frozen=False)
    prefix = "after."
    check_weights(model, {n.removeprefix(prefix): x for n, x in golden.numbers.items() if n.startswith(prefix)})


def test_every_parameter_that_is_trained_has_a_gradient_in_the_numbers(golden2_dir: Path) -> None:
    golden = Golden2(golden2_dir, "pretrain")
    names = {ours_of(name.removeprefix("grad0.")) for name in golden.numbers if name.startswith("grad0.")}
    trained = {name for name, _ in golden.model().named_parameters()}
    trained = {name for name in trained if not name.startswith("image_encoder.") or ".norm." in name}
    assert names == {name for name in trained if "blocks" not in name}


def test_sizes_are_those_of_the_numbers(golden2_dir: Path) -> None:
    golden = Golden2(golden2_dir, "pretrain")
    q, vit = golden.meta["qformer"], golden.meta["vit"]
    sizes = golden.model().qformer.config
    assert (sizes.vocab_size, sizes.image_width) == (golden.meta["bert_vocab"], vit["width"])
    assert (sizes.queries, sizes.cross_every, sizes.text) == (q["query_tokens"], q["cross_attention_freq"], True)


@torch.no_grad()
def test_features(golden2_dir: Path, packed: bool) -> None:
    golden = Golden2(golden2_dir, "pretrain")
    model, numbers = golden.model(), golden.numbers
    encoder, before = model.image_encoder, []
    encoder.norm.register_forward_pre_hook(lambda _, given: before.append(given[0]))
    states = encoder(numbers["image0"])
    close(before[0], numbers["vit_states"], FEATURES)
    close(states, numbers["image_states"], FEATURES)
    keys = model.qformer.image_keys(states)
    read = model.qformer.look(keys)
    close(read.states, numbers["extract.image.image_embeds"], FEATURES)
    features = unit_features(model.image_proj, read.states)
    close(features, numbers["image_feat"], FEATURES)
    close(features, numbers["extract.image.image_embeds_proj"], FEATURES)
    close(model.encode_image(numbers["image0"]), numbers["image_feat"], FEATURES)

    ids, lengths = golden.ids()
    longest, mask = ids.shape[1], numbers["text_mask"].bool()
    assert torch.equal(ids, numbers["text_ids"][:, :longest]) and torch.equal(mask.sum(dim=1), lengths)
    rows = Rows(lengths, longest, ids.device, packed=packed)
    texts = rows.unpack(model.qformer.text(ids, rows))
    close(texts[:, 0], numbers["text_cls"], FEATURES)
    close(model.encode_text(ids, lengths), numbers["text_feat"], FEATURES)


@torch.no_grad()
def test_extracted_texts(golden2_dir: Path) -> None:
    """That mode of the published code cuts no text."""
    golden = Golden2(golden2_dir, "pretrain")
    model, numbers = golden.model(), golden.numbers
    ids, lengths = golden.ids(golden.meta["qformer"]["max_positions"])
    rows = Rows(lengths, ids.shape[1], ids.device)
    expected, real = numbers["extract.text.text_embeds"], torch.arange(ids.shape[1]) < lengths[:, None]
    states = rows.unpack(model.qformer.text(ids, rows))
    close(states[real], expected[real], FEATURES)
    projected = unit_features(model.text_proj, states)
    close(projected[real], numbers["extract.text.text_embeds_proj"][real], FEATURES)
    keys = model.qformer.image_keys(model.image_encoder(numbers["image0"]))
    close(model.qformer.match(ids, rows, keys), numbers["extract.multimodal.multimodal_embeds"], FEATURES)


@torch.no_grad()
def test_next_tokens(golden2_dir: Path, packed: bool) -> None:
    golden = Golden2(golden2_dir, "pretrain")
    model, numbers = golden.model(), golden.numbers
    ids, lengths = golden.ids()
    scorer = scorer_of(model)
    rows = Rows(lengths, ids.shape[1], ids.device, packed=packed)
    logits = scorer.next_tokens(ids, rows, scorer.see(model.image_encoder(numbers["image0"])))
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    close(rows.unpack(logits)[real], numbers["lm_logits0"][:, : ids.shape[1]][real], LOGITS)


@torch.no_grad()
def test_matching(golden2_dir: Path) -> None:
    """Every caption beside every image, whose keys are projected once."""
    golden = Golden2(golden2_dir, "itm", weights="pretrain")
    images = Golden2(golden2_dir, "pretrain").numbers
    model, numbers = golden.model(), golden.numbers
    ids, lengths = Golden2(golden2_dir, "pretrain").ids()
    states = model.image_encoder(images["image0"])
    count = len(states)
    logits = model.match_logits(ids.repeat(count, 1), lengths.repeat(count), model.qformer.image_keys(states))
    logits = logits.unflatten(0, (count, len(ids)))
    close(logits, numbers["itm_logits"], FEATURES)
    close(logits.softmax(dim=2)[..., 1], numbers["itm_probability"], FEATURES)
    close(logits[..., 1], images["compute_itm"], FEATURES)
    close(cosines(model.encode_image(images["image0"]), model.encode_text(ids, lengths)), numbers["itc"], FEATURES)


def test_ranking(golden2_dir: Path) -> None:
    golden = Golden2(golden2_dir, "retrieval")
    model, pixels = golden.model(), golden.numbers["image0"]
    ids, lengths = golden.ids(golden.settings["evaluation_text_length"])
    texts = Texts(ids, lengths, [[i] for i in range(len(ids))])
    found = evaluate_retrieval(
        model, lambda batches: (pixels[list(numbers)] for numbers in batches), len(pixels), texts=texts,
        device=pixels.device, k=golden.settings["k_test"], batch_size=4,
    )  # fmt: skip
    for ranking, expected in (
        (found.image_to_text, golden.numbers["eval_i2t"]),
        (found.text_to_image, golden.numbers["eval_t2i"]),
    ):
        scores = torch.full_like(expected, -100.0).scatter(1, ranking.candidates, ranking.scores)
        close(scores, expected, FEATURES)


def test_captions(golden2_dir: Path) -> None:
    """Beams and the likeliest token, as a batch and one by one."""
    golden = Golden2(golden2_dir, "pretrain")
    model, tokenizer, images = golden.model(), golden.tokenizer, golden.numbers["image0"]
    prompt = torch.full((len(images), 1), tokenizer.dec_id)
    for expected in golden.settings["generate"]:
        options = {**golden.settings["generate_defaults"], **expected["args"]}
        decoding = Decoding(
            beams=options["num_beams"],
            max_new_tokens=options["max_length"] - 1,  # published lengths count [DEC]
            min_new_tokens=max(0, options["min_length"] - 1),
            length_norm="whole",
        )
        written = model.write(images, prompt, decoding, end_id=tokenizer.sep_id)
        ids, wanted = torch.cat([prompt, written.ids], dim=1), torch.tensor(expected["ids"])
        width = max(ids.shape[1], wanted.shape[1])
        ids, wanted = (F.pad(x, (0, width - x.shape[1]), value=tokenizer.pad_id) for x in (ids, wanted))
        assert torch.equal(ids, wanted)
        assert [tokenizer.decode(row) for row in written.ids.tolist()] == expected["texts"]
        for i in range(len(images)):
            alone = model.write(images[i : i + 1], prompt[:1], decoding, end_id=tokenizer.sep_id).ids[0]
            assert torch.equal(alone, written.ids[i, : len(alone)])
