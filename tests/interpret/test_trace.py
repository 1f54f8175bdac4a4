"""Tracing: it reads what the model computed, edits have their described effect, and no hook remains afterwards."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.running import ROOT
from helpers.tiny import specials_of, tiny_model, tiny_text, tiny_vit
from torch import Tensor, nn

import blip
from blip.inference.predictor import Predictor
from blip.inference.scoring import caption_log_probs
from blip.interpret.recording import Trace, TraceError
from blip.models.decoding import Decoding
from blip.models.pretrain import PretrainModel
from blip.network.attention import Attention, attention_pattern
from blip.network.packing import Rows
from blip.train.parallel import checkpoint_activations

VIT = tiny_vit(image_size=16, width=16, heads=2)
TEXT = tiny_text(vocab_size=40, width=24, layers=3, hidden=32, image_width=16)
SPECIALS = specials_of(TEXT)
LENGTHS = torch.tensor([6, 3, 5, 4])


@pytest.fixture
def exact() -> PretrainModel:
    """In float64, so that rounding hides nothing."""
    return tiny_model("pretrain", VIT, TEXT).double().eval()


def inputs(count: int = 4) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 38, (4, 6))
    ids[torch.arange(6) >= LENGTHS[:, None]] = 0
    return torch.randn(count, 3, 16, 16, dtype=torch.float64), ids


def match(model: PretrainModel, images: Tensor, ids: Tensor) -> Tensor:
    from blip.models.matching import match_logits
    from blip.network.packing import with_first

    keys = model.text_encoder.image_keys(model.image_encoder(images))
    ids = with_first(ids, SPECIALS.enc)
    return match_logits(model.text_encoder, model.itm_head, ids, lengths=LENGTHS, keys=keys)[:, 1]


TEXTS = ["head with a small bright round lesion", "chest", "a dark square"]


# ---- what is read ----------------------------------------------------------------------------------------------------


def explicit(run: Callable[[], Tensor], model: nn.Module, attention: Attention) -> tuple[Tensor, Tensor]:
    """The pattern that an attention computes when its soft-max is written out, and autograd's gradient of it."""
    kept = []

    def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = attention.pattern.register_forward_hook(keep)
    model.zero_grad()
    run().sum().backward()
    handle.remove()
    return kept[0].detach(), kept[0].grad


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", ["text.0.self", "text.1.cross", "text.2.cross", "image.1.attn"])
def test_patterns_and_gradients_equal_the_soft_max_written_out(
    exact: PretrainModel, name: str, images: int, packed: bool
) -> None:
    pixels, ids = inputs(images)
    with blip.trace(exact, f"{name}.*", grads=True) as t:
        match(exact, pixels, ids).sum().backward()
    _, layer, part = name.split(".")
    if part == "attn":
        attention = exact.image_encoder.blocks[int(layer)].attention
    else:
        attention = getattr(exact.text_encoder.layers[int(layer)], f"{part}_attention").attention
    pattern, grad = explicit(lambda: match(exact, pixels, ids), exact, attention)
    found, found_grad = t.pattern(name), t.pattern_grad(name)
    real = torch.arange(found.shape[2]) < LENGTHS[:, None] if part != "attn" and found.shape[2] > 1 else None
    if part == "cross" and packed and images == 1 and layer == "1":  # as it lies in memory: no padding, one image
        rows = torch.cat([found[i, :, : LENGTHS[i]] for i in range(4)], dim=1)
        grads = torch.cat([found_grad[i, :, : LENGTHS[i]] for i in range(4)], dim=1)
        found, found_grad, pattern, grad = rows, grads, pattern[0], grad[0]
    elif part == "cross" and images == 1:  # all texts side by side
        pattern, grad = (x.reshape(3, 4, -1, 5).transpose(0, 1) for x in (pattern, grad))
    if real is not None and found.dim() == 4:
        assert (found * ~real[:, None, :, None] == 0).all(), "padded words are empty"
        pattern = pattern * real[:, None, :, None]
    assert (found - pattern).abs().max() < 1e-12
    assert (found_grad - grad).abs().max() < 1e-12
    sums = found.sum(dim=-1)
    assert ((sums - 1).abs() < 1e-12).logical_or(sums == 0).all()


def test_masked_keys_are_zero(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    with blip.trace(exact, "text.0.self.pattern") as t:
        match(exact, pixels, ids)
    for row, length in enumerate(LENGTHS):
        assert (t.pattern("text.0.self")[row, :, :, length:] == 0).all()


@pytest.mark.parametrize("name", ["text.0.cross.pattern", "text.1.self.pattern", "image.0.attn.pattern"])
def test_gradients_of_patterns_agree_with_finite_differences(exact: PretrainModel, name: str) -> None:
    pixels, ids = inputs()
    with blip.trace(exact, name, grads=True) as t:
        match(exact, pixels, ids).sum().backward()
    grad = t.grad(name)
    place = (1, 2, 1, 2) if "text" in name else (1, 1, 1, 2)

    def with_more(step: float) -> float:
        def edit(pattern: Tensor) -> Tensor:
            pattern = pattern.clone()
            pattern[place] += step
            return pattern

        with torch.no_grad(), blip.trace(exact, edit={name: edit}):
            return float(match(exact, pixels, ids).sum())

    step = 1e-4
    slope = (with_more(step) - with_more(-step)) / (2 * step)
    assert slope == pytest.approx(float(grad[place]), rel=1e-6)


def test_names_and_shapes_of_every_point(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, "*", grads=True) as t:
        model.match_logits(pictures, TEXTS)[:, 1].sum().backward()
    tokens, patches, width, heads = int(model.ids(TEXTS)[1].max()), 4, 32, 2
    shapes = {
        "image.0.in": (3, 1 + patches, width),
        "image.1.attn.pattern": (3, heads, 1 + patches, 1 + patches),
        "image.1.mlp": (3, 1 + patches, width),
        "text.0.in": (3, tokens, width),
        "text.0.self.z": (3, heads, tokens, width // heads),
        "text.0.cross.k": (3, heads, 1 + patches, width // heads),
        "text.0.cross.pattern": (3, heads, tokens, 1 + patches),
        "text.0.out": (3, tokens, width),
        "text.1.in": (3, tokens, width),
        "text.1.mlp": (3, 1, width),  # [ENC] alone
        "text.1.cross.pattern": (3, heads, 1, 1 + patches),
    }
    for name, shape in shapes.items():
        assert t[name].shape == shape == t.grad(name).shape, name
    assert t.grid == (2, 2)
    read = [name for name in blip.names(model) if not name.startswith("decoder")]
    assert all(t[name].isfinite().all() for name in read)
    assert (t["text.0.out"][1, 4:] == 0).all()  # padding


def test_decoder_and_encoder_share_modules_but_not_names(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, ["text.0.cross.*", "decoder.0.cross.*"]) as t:
        caption_log_probs(model, pictures, TEXTS)
    assert len(t.all("decoder.0.cross.z")) == 1
    with pytest.raises(TraceError, match=r"nothing passed through text\.0\.cross\.z"):
        t["text.0.cross.z"]


def test_writing_step_by_step(model: Predictor, pictures: list[Path]) -> None:
    how = Decoding(max_new_tokens=5, min_new_tokens=5)
    plain = model.write(pictures, decoding=how)
    with blip.trace(model, ["decoder.0.self.pattern", "decoder.1.cross.pattern", "decoder.1.out"]) as t:
        traced = model.write(pictures, decoding=how)
    assert [x[0].tokens for x in plain] == [x[0].tokens for x in traced]
    steps = t.all("decoder.0.self.pattern")
    first = steps[0].shape[2]
    assert [x.shape[3] for x in steps] == list(range(first, first + 5))
    assert all(torch.allclose(x.sum(-1), torch.ones(())) for x in t.all("decoder.1.cross.pattern"))
    with pytest.raises(TraceError, match="5 passes went through"):
        t["decoder.1.out"]


def test_training_pass_with_texts_that_look_at_other_images(exact: PretrainModel) -> None:
    from blip.models.matching import HardNegatives, match_with_negatives

    pixels, ids = inputs()
    hard = torch.tensor([1, 2, 3, 0])
    with blip.trace(exact, "text.0.cross.*") as t:
        keys = exact.text_encoder.image_keys(exact.image_encoder(pixels))
        exists = torch.ones(4, dtype=torch.bool)
        negatives = HardNegatives(text=hard, image=hard, has_text=exists, has_image=exists)
        match_with_negatives(exact.text_encoder, exact.itm_head, ids, lengths=LENGTHS, keys=keys, negatives=negatives)
    found = t.pattern("text.0.cross")  # own and hard text of each image, then each text with its hard image
    assert found.shape == (12, 3, 6, 5)
    keys_of = torch.cat([keys.layers[0][0].repeat_interleave(2, dim=0), keys.layers[0][0][hard]])
    expected = attention_pattern(t["text.0.cross.q"], keys_of)
    lengths = torch.cat([torch.stack([LENGTHS, LENGTHS[hard]], dim=1).flatten(), LENGTHS])
    real = (torch.arange(6) < lengths[:, None])[:, None, :, None]
    assert torch.allclose(found, expected * real, atol=1e-12)


def test_questions_and_pairs_of_images() -> None:
    ids = torch.randint(1, 38, (2, 5))
    lengths = torch.tensor([5, 5])
    vqa = tiny_model("vqa", VIT, TEXT).eval()
    with blip.trace(vqa, ["text.1.cross.pattern", "decoder.1.cross.pattern"]) as t:
        keys = vqa.question_keys(torch.randn(2, 3, 16, 16), ids, lengths)
        vqa.answer(keys, Decoding(max_new_tokens=2, min_new_tokens=2), end_id=2)
    assert t.pattern("text.1.cross").shape == (2, 3, 5, 5)
    assert t.all("decoder.1.cross.pattern")[1].shape == (2, 3, 1, 5)  # the question's tokens

    nlvr = tiny_model("nlvr", VIT, TEXT).eval()
    with blip.trace(nlvr, "text.0.cross.*") as t:
        nlvr(torch.randn(2, 2, 3, 16, 16), ids, lengths)
    assert t.pattern("text.0.cross.first").shape == t.pattern("text.0.cross.second").shape == (2, 3, 5, 5)
    assert not torch.equal(t.pattern("text.0.cross.first"), t.pattern("text.0.cross.second"))


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize(
    "name",
    [
        "image.0.out",
        "image.1.attn.z",
        "text.0.in",
        "text.0.cross.z",
        "text.1.self.q",
        "text.1.mlp",
        "text.0.self.pattern",
        "text.0.cross.pattern",
        "text.2.out",
    ],
)
def test_an_edit_that_returns_what_it_got_changes_nothing(exact: PretrainModel, name: str, images: int) -> None:
    pixels, ids = inputs(images)
    with torch.no_grad():
        plain = match(exact, pixels, ids)
        with blip.trace(exact, edit={name: lambda x: x.clone()}):
            same = match(exact, pixels, ids)
        with blip.trace(exact, edit={name: lambda x: x * torch.rand_like(x)}):
            other = match(exact, pixels, ids)
    assert (plain - same).abs().max() < 1e-12
    assert (plain - other).abs().max() > 1e-7


def test_zeroing_every_head_removes_the_image(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    with torch.no_grad(), blip.trace(exact, edit={"text.*.cross.z": blip.zero_head(0, 1, 2)}):
        a = match(exact, pixels, ids)
        b = match(exact, torch.randn_like(pixels), ids)
    assert torch.equal(a, b)


def test_patching_a_layer_gives_the_other_images_score(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    other = torch.randn_like(pixels)
    with torch.no_grad():
        with blip.trace(exact, "image.1.out") as t:
            expected = match(exact, other, ids)
        with blip.trace(exact, edit={"image.1.out": blip.patch_from(t, "image.1.out")}):
            assert torch.equal(match(exact, pixels, ids), expected)
        with blip.trace(exact, edit={"image.1.out": blip.patch_from(t, "image.1.out", tokens=[0])}):
            assert not torch.equal(match(exact, pixels, ids), expected)


def test_mlp_is_what_is_added(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    layer = exact.text_encoder.layers[0].feed_forward
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    rows = Rows(LENGTHS, 6, ids.device)
    with torch.no_grad(), blip.trace(exact, ["text.0.mlp", "text.0.out"]) as t:
        match(exact, pixels, ids)
    handle.remove()
    expected = rows.unpack(layer.norm(seen[0] + rows.pack(t["text.0.mlp"])))
    assert (expected - t["text.0.out"]).abs().max() < 1e-12


def test_an_ablated_head_has_no_gradient(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    edit = {"text.0.cross.z": blip.zero_head(0)}
    with blip.trace(exact, "text.0.cross.*", edit, grads=True) as t:
        t.backward(match(exact, pixels, ids))
    with blip.trace(exact, "text.0.cross.*", {**edit, "text.0.cross.pattern": torch.clone}, grads=True) as written_out:
        written_out.backward(match(exact, pixels, ids))
    grad = t.pattern_grad("text.0.cross")
    assert (grad[:, 0] == 0).all() and (grad[:, 1] != 0).any()
    assert (grad - written_out.pattern_grad("text.0.cross")).abs().max() < 1e-12


def test_dropped_patterns_have_no_gradient_to_give() -> None:
    model = tiny_model("pretrain", VIT, replace(TEXT, dropout=0.5)).double().train()
    pixels, ids = inputs()
    with blip.trace(model, "text.0.cross.*", grads=True) as t:
        t.backward(match(model, pixels, ids))
    with pytest.raises(TraceError, match="dropout was on"):
        t.pattern_grad("text.0.cross")


@pytest.mark.parametrize("images", [1, 4])
def test_writing_in_place_is_lost_everywhere(exact: PretrainModel, images: int) -> None:
    def in_place(x: Tensor) -> None:
        x.zero_()

    pixels, ids = inputs(images)
    with torch.no_grad():
        plain = match(exact, pixels, ids)
        for name in ("text.0.cross.z", "text.0.in", "text.1.self.z", "image.0.out"):
            with blip.trace(exact, edit={name: in_place}):
                assert torch.equal(match(exact, pixels, ids), plain)


def test_edits_of_one_point_follow_one_another(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    edits = {"text.0.cross.z": blip.zero_head(0), "text.*.cross.z": blip.zero_head(1)}
    with torch.no_grad(), blip.trace(exact, "text.0.cross.z", edits) as t:
        match(exact, pixels, ids)
    z = t["text.0.cross.z"]
    assert (z[:, :2] == 0).all() and (z[:, 2] != 0).any()


def test_a_trace_keeps_what_was_asked(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, "text.0.self.q") as t:
        model.match_logits(pictures, TEXTS)
    ((call,),) = t._calls["text.0.self"]
    assert call.tensors.keys() == {"q"} and isinstance(call.layer_pass, int)


# ---- nothing stays behind --------------------------------------------------------------------------------------------


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_stays_behind_after_an_exception(model: Predictor, pictures: list[Path]) -> None:
    plain = model.match_logits(pictures, TEXTS)

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    with (
        pytest.raises(RuntimeError, match="on purpose"),
        blip.trace(model, "*", edit={"text.1.out": fails}, grads=True),
    ):
        model.match_logits(pictures, TEXTS)
    assert hooks(model.model) == 0 and not model.differentiable
    again = model.match_logits(pictures, TEXTS)
    assert torch.equal(plain, again) and not again.requires_grad


def test_reading_changes_no_bit_and_no_key(model: Predictor, pictures: list[Path]) -> None:
    keys = list(model.model.state_dict())
    assert not any(f".{tap}." in key for key in keys for tap in ("pattern", "attention.q", "attention.z"))
    plain = model.match_logits(pictures, TEXTS), model.encode_image(pictures)
    with blip.trace(model, "*"):
        traced = model.match_logits(pictures, TEXTS), model.encode_image(pictures)
    assert list(model.model.state_dict()) == keys
    assert all(torch.equal(a, b) for a, b in zip(plain, traced, strict=True))


def test_backward_leaves_parameters_alone(model: Predictor, pictures: list[Path]) -> None:
    model.model.zero_grad()
    with blip.trace(model, "text.0.cross.*", grads=True) as t:
        t.backward(model.match_logits(pictures, TEXTS)[:, 1])
    assert all(p.grad is None for p in model.model.parameters())
    assert t.pattern_grad("text.0.cross").abs().sum() > 0


def test_recomputation_of_activations_is_off_inside(exact: PretrainModel) -> None:
    blocks = [*exact.image_encoder.blocks, *exact.text_encoder.layers]
    checkpoint_activations(blocks, "torch", torch.device("cpu"), precision="fp32")
    wrapped = [block.forward for block in blocks]
    pixels, ids = inputs()
    with blip.trace(exact, "text.0.cross.*", grads=True) as t:
        match(exact, pixels, ids).sum().backward()
    assert len(t.all("text.0.cross.z")) == 1  # a recomputed pass would count twice
    assert [block.forward for block in blocks] == wrapped


@pytest.mark.slow
def test_compiled_models_run_eagerly_inside_and_compile_whole(exact: PretrainModel) -> None:
    pixels, ids = inputs()
    compiled = torch.compile(exact.image_encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        plain = compiled(pixels)
        with blip.trace(exact, "image.1.out") as t:
            compiled(pixels)
        assert t["image.1.out"].shape == plain.shape
        for block in exact.image_encoder.blocks:
            block.compile(backend="aot_eager", fullgraph=True)
        exact.image_encoder(pixels)
        with blip.trace(exact, "image.*.attn.pattern") as t:
            exact.image_encoder(pixels)
    assert t.pattern("image.0.attn").shape == (4, 2, 5, 5)
    rows = Rows(LENGTHS, 6, ids.device, packed=False)

    def whole() -> Tensor:
        keys = exact.text_encoder.image_keys(exact.image_encoder(pixels))
        return exact.text_encoder.multimodal(ids, rows, keys, first_only=True)

    with torch.no_grad():
        assert (torch.compile(whole, fullgraph=True, backend="aot_eager")() - whole()).abs().max() < 1e-12


# ---- lenses ----------------------------------------------------------------------------------------------------------


def test_logit_lens_ends_with_the_models_own_words(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, "decoder.*.out") as t:
        each = caption_log_probs(model, pictures, TEXTS)
    lens = blip.logit_lens(t)
    assert list(lens) == ["decoder.0.out", "decoder.1.out"]
    ids, _ = model.ids(TEXTS)
    own = lens["decoder.1.out"][:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert torch.allclose(torch.where(each == 0, 0.0, own), each, atol=1e-5)


def test_patch_lens_and_rollout(model: Predictor, pictures: list[Path]) -> None:
    seen = blip.patch_lens(model, pictures, TEXTS[:2])
    assert seen.shape == (3, 2, 2, 2) and seen.abs().max() <= 1 + 1e-5
    with blip.trace(model, "image.*.attn.*") as t:
        model.encode_image(pictures)
    rolled = blip.attention_rollout(t)
    assert torch.allclose(rolled.sum(-1), torch.ones(()), atol=1e-5)


# ---- bad input -------------------------------------------------------------------------------------------------------


def traced(model: Predictor, pictures: list[Path], **wish: object) -> Trace:
    with blip.trace(model, **wish) as t:  # type: ignore[arg-type]
        model.match_logits(pictures, TEXTS)
    return t


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"points": "text.1.crss.q"}, r"no point .* 'text.1.crss.q'; nearest: text\.1\.cross\.q"),
        ({"points": "text.7.*"}, r"text\.0 to text\.1"),
        ({"edit": {"nowhere": lambda x: x}}, "no point of this model"),
        ({"edit": {"text.0.cross.z": lambda x: x[:, :1]}}, r"returned \(3, 1, .*has to be a tensor of \(3, 2"),
        ({"edit": {"text.0.out": lambda x: 3}}, "returned int"),
        ({"edit": {"text.0.cross.z": blip.zero_head(5)}}, "no head 5: this attention has 2"),
        ({"edit": {"text.0.out": blip.zero_head(0)}}, "which have heads"),
    ],
)
def test_impossible_wishes(model: Predictor, pictures: list[Path], wish: dict, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        traced(model, pictures, **wish)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda t: t["text.0.mlp"], "was not traced"),
        (lambda t: t["text.0.cross.v"], "was not traced"),
        (lambda t: t["text.0.mpl"], "nearest: text.0.mlp"),
        (lambda t: t.grad("text.0.out"), "gradients were not kept"),
        (lambda t: blip.logit_lens(t), "was not traced"),
    ],
)
def test_impossible_reading(model: Predictor, pictures: list[Path], read: Callable, message: str) -> None:
    t = traced(model, pictures, points=["text.0.out", "text.0.cross.q"])
    with pytest.raises(TraceError, match=message):
        read(t)


def test_gradient_that_never_came(model: Predictor, pictures: list[Path]) -> None:
    with pytest.raises(TraceError, match="no gradient has reached"):
        traced(model, pictures, points="text.0.out", grads=True).grad("text.0.out")


# ---- the notebook ----------------------------------------------------------------------------------------------------


def test_notebook_runs(
    tiny_checkpoint: Path,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "runs/demo/run/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/demo/run/checkpoints/latest").symlink_to(tiny_checkpoint)
    (tmp_path / "runs/demo/data").mkdir()
    (tmp_path / "runs/demo/data/test").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "internals.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(sources) == 7
    scope: dict = {}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number + 1}", "exec"), scope)
    assert "% of held-out images" in capsys.readouterr().out
