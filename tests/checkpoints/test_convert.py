"""Conversion: round trips are exact, foreign classes give the same numbers, wrong files are refused with a message."""

from pathlib import Path

import pytest
import timm
import torch
from helpers.bad_checkpoint_cases import tiny_retrieval
from helpers.tiny import STORED_EMBED, STORED_TEXT, STORED_VIT, add_noise, specials_of, stored_info
from torch import Tensor, nn
from torch.nn import functional as F

from blip.checkpoints import initialize

pytest.importorskip("transformers")

import transformers

from blip.checkpoints import convert, places
from blip.checkpoints.format import CheckpointError, load_strict, unique_state
from blip.models import momentum
from blip.models.momentum import Twin, unit_features
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.network.med import TextConfig, TextEncoder
from blip.network.packing import Rows
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials, Tokenizer

TOLERANCE = 1e-5
QUEUE = 7


def randomised(module: nn.Module) -> nn.Module:
    return add_noise(module, std=0.1).eval()


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    Tokenizer.train(["a large lesion in the left lung", "normal chest x-ray"], STORED_TEXT.vocab_size).save(
        tmp_path / "words.json"
    )
    return tmp_path / "words.json"


@pytest.fixture
def pretrain() -> tuple[PretrainModel, dict[str, Tensor], dict]:
    """Model, all tensors of a checkpoint, info."""
    model = PretrainModel(STORED_VIT, STORED_TEXT, specials_of(STORED_TEXT), embed_dim=STORED_EMBED)
    randomised(model)
    twin = randomised(Twin(model))
    queue = momentum.Queue(QUEUE, STORED_EMBED)
    queue.pointer.fill_(3)
    tensors = {
        **unique_state(model),
        **{f"twin.{name}": tensor for name, tensor in unique_state(twin).items()},
        **{f"queue.{name}": tensor for name, tensor in unique_state(queue).items()},
    }
    return model, tensors, stored_info("pretrain")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def same_sizes(left: dict, right: dict) -> None:
    assert left["task"] == right["task"]
    assert ViTConfig(**left["image_encoder"]) == ViTConfig(**right["image_encoder"])
    assert TextConfig(**left["text_encoder"]) == TextConfig(**right["text_encoder"])
    assert left["embed_dim"] == right["embed_dim"]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Images (3, ...), ids (3, T), lengths of different texts."""
    images = torch.randn(3, 3, STORED_VIT.image_size, STORED_VIT.image_size)
    lengths = torch.tensor([9, 4, 6])
    ids = torch.randint(5, STORED_TEXT.vocab_size, (3, 9)).masked_fill(torch.arange(9) >= lengths[:, None], 0)
    return images, ids, lengths


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["blip", "salesforce"])
def test_pretraining_survives_exactly(pretrain: tuple, tmp_path: Path, to: str) -> None:
    _, tensors, info = pretrain
    path = tmp_path / "written.pth"  # for our own format a folder
    assert convert.write(path, tensors, info, to=to) == []
    again, again_info = convert.read(path, STORED_VIT.heads, STORED_TEXT.heads)
    same(again, tensors)
    same_sizes(again_info, info)


def test_retrieval_queue_has_the_released_shapes(tmp_path: Path) -> None:
    tensors, info = tiny_retrieval()
    queue = momentum.Queue(QUEUE, STORED_EMBED)
    queue.image_ids.copy_(torch.arange(QUEUE) + 40)
    tensors |= {f"queue.{name}": tensor for name, tensor in queue.state_dict().items()}
    assert convert.write(tmp_path / "written.pth", tensors, info, to="salesforce") == []
    state = torch.load(tmp_path / "written.pth", weights_only=True)["model"]
    assert state["idx_queue"].shape == (1, QUEUE)
    assert state["ptr_queue"].shape == (1,)
    assert "queue_ptr" not in state
    same(convert.read(tmp_path / "written.pth", STORED_VIT.heads, STORED_TEXT.heads)[0], tensors)


def test_what_salesforce_cannot_hold_is_named(pretrain: tuple, tmp_path: Path, tokenizer_file: Path) -> None:
    _, tensors, info = pretrain
    tensors["queue.caption_ids"] = torch.arange(QUEUE)
    lost = convert.write(tmp_path / "written.pth", tensors, info, to="salesforce", tokenizer_file=tokenizer_file)
    assert lost == ["queue.caption_ids", "tokenizer.json"]


@pytest.mark.parametrize("to", ["salesforce", "huggingface"])
def test_settings_that_other_formats_cannot_hold_are_named(to: str, tmp_path: Path, tokenizer_file: Path) -> None:
    """Without them the model writes otherwise; those at their defaults are not lost."""
    tensors, info = tiny_retrieval()
    before = convert.write(tmp_path / "before", tensors, info, to=to, tokenizer_file=tokenizer_file)
    more = {"prompt": "a picture of ", "answers": ["yes"], "text_cleaning": "none", "max_text_tokens": 0}
    lost = convert.write(tmp_path / "written", tensors, {**info, **more}, to=to, tokenizer_file=tokenizer_file)
    assert lost == [*before, "model.json: prompt", "model.json: answers"]
    assert convert.write(tmp_path / "ours", tensors, {**info, **more}) == []


def test_a_bare_state_dict_is_read_too(tmp_path: Path) -> None:
    tensors, info = tiny_retrieval()
    convert.write(tmp_path / "wrapped.pth", tensors, info, to="salesforce")
    torch.save(torch.load(tmp_path / "wrapped.pth", weights_only=True)["model"], tmp_path / "bare.pth")
    same(convert.read(tmp_path / "bare.pth", STORED_VIT.heads, STORED_TEXT.heads)[0], tensors)


def test_huggingface_retrieval_survives_but_for_the_temperature(tmp_path: Path, tokenizer_file: Path) -> None:
    tensors, info = tiny_retrieval()
    assert convert.write(tmp_path / "hf", tensors, info, to="huggingface", tokenizer_file=tokenizer_file) == [
        "temperature"
    ]
    again, again_info = convert.read(tmp_path / "hf")
    del tensors["temperature"]
    same(again, tensors)
    same_sizes(again_info, info)


def test_split() -> None:
    one = torch.zeros(1)
    model, twin, queue = convert.split({"itm_head.bias": one, "twin.text_proj.bias": one, "queue.pointer": one})
    assert (list(model), list(twin), list(queue)) == (["itm_head.bias"], ["text_proj.bias"], ["pointer"])
    assert convert.NO_ID == momentum.NO_ID


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_transformers_retrieval_agrees(pretrain: tuple, tmp_path: Path, tokenizer_file: Path) -> None:
    model, tensors, info = pretrain
    lost = convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=tokenizer_file, hf_class="retrieval")
    foreign, report = transformers.BlipForImageTextRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    foreign.eval()
    assert set(lost) == {n for n in tensors if n.startswith(("text_decoder.", "twin.", "queue.", "temperature"))}

    images, ids, lengths = inputs()
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    rows = Rows(lengths, ids.shape[1], ids.device)
    states = model.image_encoder(images)
    theirs = foreign(input_ids=ids, pixel_values=images, attention_mask=mask)
    torch.testing.assert_close(states, theirs.last_hidden_state, rtol=0, atol=TOLERANCE)
    keys = model.text_encoder.image_keys(states)
    ours = model.itm_head(model.text_encoder.multimodal(ids, rows, keys, first_only=True))
    torch.testing.assert_close(ours, theirs.itm_score, rtol=0, atol=TOLERANCE)

    theirs = foreign(input_ids=ids, pixel_values=images, attention_mask=mask, use_itm_head=False).itm_score
    texts = unit_features(model.text_proj, model.text_encoder.text(ids, rows, first_only=True))
    ours = unit_features(model.image_proj, states[:, 0]) @ texts.T
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_transformers_captioner_agrees(pretrain: tuple, tmp_path: Path, tokenizer_file: Path) -> None:
    model, tensors, info = pretrain
    lost = convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=tokenizer_file, hf_class="caption")
    assert "text_encoder.layers.0.self_attention.q.weight" in lost
    assert not [n for n in lost if "cross_attention" in n and not n.startswith("twin.")]  # held by the decoder
    foreign, report = transformers.BlipForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    foreign.eval()

    images, ids, _ = inputs()
    ids, lengths = ids[:, :4], torch.full((3,), 4)
    theirs = foreign(pixel_values=images, input_ids=ids).logits
    rows = Rows(lengths, 4, ids.device)
    keys = model.text_encoder.image_keys(model.image_encoder(images))
    ours = model.text_decoder.head(rows.unpack(model.text_decoder(ids, rows, keys)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)

    again, again_info = convert.read(tmp_path)
    assert again_info["task"] == "caption" and TextConfig(**again_info["text_decoder"]) == STORED_TEXT
    for name, tensor in again.items():
        original = name if name in tensors else name.replace("text_decoder.", "text_encoder.")
        assert torch.equal(tensor, tensors[original]), name


def test_huggingface_configuration_is_explicit(pretrain: tuple, tmp_path: Path, tokenizer_file: Path) -> None:
    _, tensors, info = pretrain
    convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=tokenizer_file, hf_class="caption")
    config = transformers.BlipConfig.from_pretrained(tmp_path)
    words = Tokenizer.from_file(tokenizer_file)
    text, vision = config.text_config, config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads) == (STORED_TEXT.heads, STORED_VIT.heads)
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (STORED_TEXT.dropout, STORED_TEXT.dropout)
    assert (text.label_smoothing, config.label_smoothing) == (0.1, 0.1)
    assert (text.layer_norm_eps, vision.layer_norm_eps) == (1e-12, 1e-6)
    assert (text.encoder_hidden_size, config.image_text_hidden_size) == (STORED_VIT.width, STORED_EMBED)
    assert (text.bos_token_id, text.sep_token_id, text.eos_token_id, text.pad_token_id) == (
        words.dec_id, words.sep_id, words.sep_id, words.pad_id,
    )  # fmt: skip


def test_reads_what_transformers_saved(tmp_path: Path) -> None:
    config = transformers.BlipConfig(
        vision_config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
            "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6,
        },
        text_config={
            "hidden_size": 48, "encoder_hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3,
            "intermediate_size": 96, "vocab_size": 60, "max_position_embeddings": 40, "bos_token_id": 58,
            "sep_token_id": 3,
        },
        image_text_hidden_size=STORED_EMBED,
    )  # fmt: skip
    foreign = randomised(transformers.BlipForImageTextRetrieval(config))
    foreign.save_pretrained(tmp_path)
    tensors, info = convert.read(tmp_path)
    assert info["image_encoder"]["heads"] == 2 and info["text_encoder"]["heads"] == 3
    vit, text = ViTConfig(**info["image_encoder"]), TextConfig(**info["text_encoder"])
    model = RetrievalModel(vit, text, Specials(0, 1, 2), embed_dim=info["embed_dim"])
    load_strict(model, {"temperature": torch.tensor(0.07), **tensors}, "model")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = foreign.vision_model(pixel_values=images).last_hidden_state
        torch.testing.assert_close(model.eval().image_encoder(images), theirs, rtol=0, atol=TOLERANCE)


def test_a_dual_encoder_of_transformers_is_named(tmp_path: Path) -> None:
    """`BlipModel` has a pooler, and normalises images twice: no model here computes its features."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "encoder_hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "vocab_size": 30, "max_position_embeddings": 10, "bos_token_id": 28,
            "sep_token_id": 3}  # fmt: skip
    transformers.BlipModel(transformers.BlipConfig(vision_config=vision, text_config=text)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as error:
        convert.read(tmp_path)
    for part in (str(tmp_path), "BlipModel", "pools texts", "BlipForImageTextRetrieval", "BlipForQuestionAnswering"):
        assert part in str(error.value)


def test_export_names_what_it_needs(pretrain: tuple, tmp_path: Path, tokenizer_file: Path) -> None:
    _, tensors, info = pretrain
    with pytest.raises(CheckpointError, match=r"hf_class can be retrieval .* or caption"):
        convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=tokenizer_file)
    with pytest.raises(CheckpointError, match="give tokenizer_file"):
        convert.write(tmp_path, tensors, info, to="huggingface", hf_class="caption")
    retrieval, retrieval_info = tiny_retrieval()
    with pytest.raises(CheckpointError, match="needs text_decoder"):
        convert.write(
            tmp_path, retrieval, retrieval_info, to="huggingface", tokenizer_file=tokenizer_file, hf_class="caption"
        )
    with pytest.raises(ValueError, match="blip, salesforce or huggingface"):
        convert.write(tmp_path, tensors, info, to="onnx")


# ---- BERT and timm ---------------------------------------------------------------------------------------------------


def tiny_bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=58, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=40,
    )  # fmt: skip
    return randomised(transformers.BertForMaskedLM(config))


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "old names", "without prefix"])
def test_bert_gives_its_own_states(tmp_path: Path, form: str) -> None:
    bert = tiny_bert()
    if form == "folder":
        bert.save_pretrained(tmp_path)
        path = tmp_path
    else:
        state = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in bert.state_dict().items()}
        state = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in state.items()}
        if form == "without prefix":
            state = {k.removeprefix("bert."): v for k, v in state.items()}
        path = tmp_path / "pytorch_model.bin"
        torch.save(state, path)
    tensors = convert.read_bert(path)
    assert {n.split(".")[1] for n in tensors if n.startswith("text_decoder.")} == {"head"}
    own = {n.removeprefix("text_encoder."): t for n, t in tensors.items() if n.startswith("text_encoder.")}
    encoder = TextEncoder(TextConfig(58, 48, 2, 4, 96, 40, 64)).eval()
    missing = unique_state(encoder).keys() - own.keys()
    assert all(".cross_attention." in name for name in missing) and missing
    for name, tensor in own.items():
        encoder.get_parameter(name).copy_(tensor)
    lengths = torch.tensor([9, 5])
    ids = torch.randint(5, 58, (2, 9))
    mask = (torch.arange(9) < lengths[:, None]).long()
    rows = Rows(lengths, 9, ids.device, packed=False)
    theirs = bert.bert(ids, attention_mask=mask).last_hidden_state
    ours = rows.unpack(encoder.text(ids, rows))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_bert_head_gives_its_own_logits(tmp_path: Path) -> None:
    bert = tiny_bert()
    bert.save_pretrained(tmp_path)
    tensors = convert.read_bert(tmp_path)
    states = torch.randn(3, 48)
    transform = tensors["text_decoder.head.transform.weight"], tensors["text_decoder.head.transform.bias"]
    hidden = F.linear(states, *transform)
    norm = tensors["text_decoder.head.norm.weight"], tensors["text_decoder.head.norm.bias"]
    hidden = F.layer_norm(F.gelu(hidden), (48,), *norm, eps=1e-12)
    logits = F.linear(hidden, tensors["text_encoder.embeddings.words.weight"], tensors["text_decoder.head.bias"])
    torch.testing.assert_close(logits, bert.cls(states), rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_timm_gives_its_own_states() -> None:
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    foreign = randomised(timm.create_model("vit_tiny_patch16_224", pretrained=False, **settings))
    tensors = initialize.from_timm(foreign.state_dict())
    model = ViT(ViTConfig(32, 8, 48, 2, 3)).eval()
    load_strict(model, {n.removeprefix("image_encoder."): t for n, t in tensors.items()}, "timm")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), foreign.forward_features(images), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name, settings, message",
    [
        ("deit_tiny_distilled_patch16_224", {}, "distillation token"),
        ("vit_tiny_patch16_224", {"init_values": 1e-5}, "layer scale"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no cls_token|mean of all tokens"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, "register tokens"),
        ("vit_tiny_patch16_224", {"qk_norm": True}, "normalised queries"),
        ("vit_tiny_patch16_224", {"pre_norm": True}, "norm before the blocks"),
        ("vit_tiny_patch16_224", {"no_embed_class": True}, "CLS token has no position"),
        ("resnet18", {}, "no cls_token"),
    ],
)
def test_other_transformers_of_timm_are_refused(name: str, settings: dict, message: str) -> None:
    if name.startswith("vit"):
        settings = {"img_size": 32, "patch_size": 8, "depth": 1, **settings}
    with pytest.raises(CheckpointError, match=message):
        initialize.from_timm(timm.create_model(name, pretrained=False, **settings).state_dict())


def test_the_folder_of_a_run_stands_for_its_weights(tmp_path: Path) -> None:
    assert places.local(tmp_path) == tmp_path
    (tmp_path / "config.yaml").write_text("")
    assert places.local(tmp_path) == tmp_path, "nothing is there yet"
    for inside in ("checkpoints/step-00000009", "checkpoints/step-00000010", "checkpoints/latest", "best"):
        (tmp_path / inside).mkdir(parents=True)
        assert places.local(str(tmp_path)) == tmp_path / inside
    (tmp_path / "model.json").write_text("{}")
    assert places.local(tmp_path) == tmp_path, "a checkpoint itself"


def test_a_folder_around_weights_is_told_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "latest").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"you may mean .*latest$"):
        convert.read(tmp_path)
    (tmp_path / "best").mkdir()
    with pytest.raises(CheckpointError, match=r"you may mean .*best$"):
        convert.read(tmp_path)
