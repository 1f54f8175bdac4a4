"""BLIP-2 in the formats of others: LAVIS's names and transformers', round trips, published numbers after conversion."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.running import run_verb
from helpers.tiny import add_noise
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from torch import Tensor

pytest.importorskip("transformers")

import transformers

from blip.checkpoints import convert
from blip.checkpoints.blip2_names import LAVIS_LANGUAGE_MODEL, lavis_name_in_transformers
from blip.checkpoints.format import CheckpointError, load_strict, unique_state
from blip.checkpoints.language_files import fingerprint_of_files
from blip.models.factory import model_of
from blip.models.language_models import CausalLanguageModel, Seq2SeqLanguageModel
from blip.models.language_tokens import LanguageIds
from blip.network.embeddings import TextConfig
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials

CLOSE = {"rtol": 0, "atol": 1e-5}
KINDS = {"pretrain": None, "opt_pretrain": "causal", "t5_pretrain": "seq2seq"}
SIZES: dict[str, Any] = {
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    },
    "qformer_config": {
        "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40,
        "max_position_embeddings": 20,
    },
    "num_query_tokens": 5,
    "image_text_hidden_size": 12,
}  # fmt: skip
OPT = {"hidden_size": 40, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 70,
       "max_position_embeddings": 50, "word_embed_proj_dim": 40, "model_type": "opt"}  # fmt: skip
T5 = {"d_model": 40, "d_kv": 10, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 70, "model_type": "t5",
      "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip


def published(folder: Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and info of a golden file."""
    meta = json.loads((folder / "meta.json").read_text())
    heads = {"image_heads": meta["vit"]["heads"], "text_heads": meta["qformer"]["heads"]}
    return convert.read(folder / f"{kind}.pth", **heads, image_encoder=str(folder / "eva_vit.pth"))


def foreign(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype and torch.equal(tensor, right[name]), name


# ---- the published files ---------------------------------------------------------------------------------------------


@pytest.mark.golden
@pytest.mark.parametrize("kind", KINDS)
def test_names_in_transformers(golden2_dir: Path, kind: str) -> None:
    table = json.loads((golden2_dir / "transformers_keys.json").read_text())[kind]["keys"]
    assert {name: lavis_name_in_transformers(name, KINDS[kind]) for name in table} == table


@pytest.mark.golden
@pytest.mark.parametrize("kind", [*KINDS, "retrieval"])
def test_files_of_lavis_survive_exactly(golden2_dir: Path, tmp_path: Path, kind: str) -> None:
    tensors, info = published(golden2_dir, kind)
    assert info["task"] == ("blip2" if KINDS.get(kind) is None else "blip2_language")
    assert convert.write(tmp_path / "written.pth", tensors, info, to="salesforce") == []
    before, after = foreign(golden2_dir / f"{kind}.pth"), foreign(tmp_path / "written.pth")
    tower = torch.load(golden2_dir / "eva_vit.pth", weights_only=True)
    if info["task"] == "blip2_language":  # a count of positions, of which the second stage has none
        del before["Qformer.bert.embeddings.position_ids"]
    before = {name: t for name, t in before.items() if not LAVIS_LANGUAGE_MODEL.match(name)}
    same({**{f"visual_encoder.{name}": t for name, t in tower.items()}, **before}, after)
    assert convert.write(tmp_path / "ours", tensors, info) == []
    again, again_info = convert.read(tmp_path / "ours")
    same(again, tensors)
    assert {**info, "format_version": 1} == again_info


@pytest.mark.golden
def test_transformers_gives_the_published_scores(golden2_dir: Path, tmp_path: Path) -> None:
    tensors, info = published(golden2_dir, "pretrain")
    vocabulary = golden2_dir / "vocab.txt"
    lost = convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=vocabulary)
    heads = [name for name in tensors if name.startswith("qformer.head.")]
    assert sorted(lost) == sorted(["temperature", "model.json: norm_eps", *heads])
    model = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = json.loads((golden2_dir / "itm.json").read_text())
    with np.load(golden2_dir / "itm.npz") as file, np.load(golden2_dir / "pretrain.npz") as images:
        expected = {name: torch.from_numpy(file[name]) for name in file.files}
        pixels = torch.from_numpy(images["image0"])
    for number, caption in enumerate(settings["captions"][:2]):
        batch = words([caption] * len(pixels), return_tensors="pt", max_length=32, truncation=True)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "pixel_values": pixels}
        with torch.no_grad():
            logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
            cosines = model(**{name: x[:1] if name != "pixel_values" else x for name, x in inputs.items()})
        assert torch.allclose(logits, expected["itm_logits"][:, number], rtol=0, atol=5e-5)
        assert torch.allclose(cosines.logits_per_image[:, 0], expected["itc"][:, number], rtol=0, atol=2e-5)
    again, again_info = convert.read(tmp_path)
    same({name: tensors[name] for name in again}, again)
    assert again_info["image_encoder"]["norm_eps"] == 1e-6 and again_info["qformer"] == info["qformer"]


@pytest.mark.golden
@pytest.mark.parametrize(("kind", "name"), [("opt_pretrain", "opt"), ("t5_pretrain", "t5")])
def test_transformers_writes_the_published_texts(golden2_dir: Path, tmp_path: Path, kind: str, name: str) -> None:
    tensors, info = published(golden2_dir, kind)
    with pytest.raises(
        CheckpointError, match="names no language model: give language_model, a folder or hub:OWNER/NAME"
    ):
        convert.write(tmp_path / "hf", tensors, info, to="huggingface")
    info["language_model"]["name"] = str(golden2_dir / name)
    assert convert.write(tmp_path / "hf", tensors, info, to="huggingface") == ["model.json: norm_eps"]
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    queries, image_token = info["qformer"]["queries"], model.config.image_token_index
    settings = json.loads((golden2_dir / f"{kind}.json").read_text())
    greedy = next(
        one for one in settings["generate"] if one["args"].get("num_beams") == 1 and "prompt" not in one["args"]
    )
    with np.load(golden2_dir / f"{kind}.npz") as file:
        images = torch.from_numpy(file["image0"])
    prompt = (
        words(settings["prompt"], return_tensors="pt")["input_ids"] if settings["prompt"] or name == "opt" else None
    )
    assert prompt is not None
    ids = torch.cat([torch.full((1, queries), image_token), prompt], dim=1).expand(len(images), -1)
    options: dict[str, Any] = {"num_beams": 1, "do_sample": False}
    if name == "opt":
        options |= {"max_new_tokens": greedy["args"]["max_length"] - 1, "pad_token_id": 1}
        options |= {"eos_token_id": settings["eos_token_id"], "min_new_tokens": 0}
    else:
        options |= {"max_new_tokens": greedy["args"].get("max_length", 30)}
    with torch.no_grad():
        written = model.generate(pixel_values=images, input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    written = written[:, ids.shape[1] :] if name == "opt" else written[:, 1:]
    texts = words.batch_decode(written, skip_special_tokens=True)  # blanks before commas depend on the version
    assert [text.replace(" ", "").strip() for text in texts] == [t.replace(" ", "").strip() for t in greedy["texts"]]


# ---- random models of transformers -----------------------------------------------------------------------------------


def random_folder(folder: Path, class_name: str, text: dict[str, Any] | None = None) -> Path:
    """A folder of a small random model; language models get a tokenizer from the first stage's vocabulary."""
    sizes = {**SIZES, "qformer_config": {**SIZES["qformer_config"], "use_qformer_text_input": text is None}}
    config = transformers.Blip2Config(**sizes, **({"text_config": text} if text else {}))
    torch.manual_seed(6)
    model = add_noise(getattr(transformers, class_name)(config), std=0.2).eval()
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_a_language_models_tokenizer_stays_with_it(tmp_path: Path) -> None:
    """It lies beside the weights of the second stage, is none of the BERT family, and is not what a Q-Former reads."""
    folder = random_folder(tmp_path / "theirs", "Blip2ForConditionalGeneration", OPT)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    done = run_verb("convert", folder, tmp_path / "ours")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "ours" / "tokenizer.json").exists()


def test_queries_stand_where_the_tokenizer_has_its_image_token(tmp_path: Path) -> None:
    """Otherwise transformers finds no place for them."""
    folder = random_folder(tmp_path / "theirs", "Blip2ForConditionalGeneration", OPT)
    words = Backend(WordLevel({"</s>": 0, "<image>": 1, "a": 2}, "</s>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    convert.write(tmp_path / "again", *convert.read(folder), to="huggingface")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["image_token_index"] == 1


@pytest.mark.parametrize("text", [OPT, T5], ids=["opt", "t5"])
def test_folders_of_two_stages_survive_exactly(tmp_path: Path, text: dict[str, Any]) -> None:
    folder = random_folder(tmp_path / "theirs", "Blip2ForConditionalGeneration", text)
    tensors, info = convert.read(folder)
    assert not any(name.startswith("language_model.") for name in tensors)
    about = info["language_model"]
    assert about["name"] == str(folder) and about["width"] == 40 and len(about["fingerprint"]) == 12
    assert info["image_encoder"]["heads"] == 2 and info["qformer"]["heads"] == 3
    assert convert.write(tmp_path / "written.pth", tensors, info, to="salesforce") == ["model.json: norm_eps"]
    again, _ = convert.read(tmp_path / "written.pth", 2, 3)
    keys = [name for name in tensors if name.endswith("qkv.bias")]
    for name in keys:  # LAVIS has no bias of keys, which changes nothing
        tensors[name][32:64] = 0
    same(again, tensors)


def test_weights_in_several_files_are_the_same(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "one", "Blip2ForConditionalGeneration", OPT)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    model.language_model.save_pretrained(tmp_path / "language")
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    (one, one_info), (many, many_info) = convert.read(folder), convert.read(tmp_path / "many")
    same(one, many)
    prints = [info["language_model"]["fingerprint"] for info in (one_info, many_info)]
    assert prints == [fingerprint_of_files(tmp_path / "language")] * 2  # of the language model alone, too
    with torch.no_grad():
        model.language_model.get_input_embeddings().weight[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert convert.read(tmp_path / "other")[1]["language_model"]["fingerprint"] != prints[0]


def test_folders_without_generation_survive_exactly(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "theirs", "Blip2Model", OPT)
    with pytest.raises(
        CheckpointError, match="no class retrieval of transformers holds a checkpoint of blip2_language"
    ):
        convert.write(tmp_path / "again", *convert.read(folder), to="huggingface", hf_class="retrieval")
    tensors, _ = convert.read(folder)
    assert tensors.keys() >= {"language_proj.weight", "qformer.queries", "image_encoder.norm.weight"}


def test_folders_of_retrieval_survive_exactly(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "theirs", "Blip2ForImageTextRetrieval")
    tensors, info = convert.read(folder)
    assert info["task"] == "blip2" and info["embed_dim"] == 12
    assert convert.write(tmp_path / "again", tensors, info, to="huggingface") == []
    before, after = (
        transformers.Blip2ForImageTextRetrieval.from_pretrained(p).state_dict() for p in (folder, tmp_path / "again")
    )
    same(before, after)
    lost = convert.write(tmp_path / "qformer", tensors, info, to="huggingface", hf_class="qformer")
    assert {"qformer.queries", "image_proj.weight"} <= set(lost)
    model = transformers.Blip2QFormerModel.from_pretrained(tmp_path / "qformer", output_loading_info=True)
    assert not model[1]["missing_keys"] and not model[1]["unexpected_keys"]
    with pytest.raises(CheckpointError, match="holds a Q-Former alone, without queries and image encoder"):
        convert.read(tmp_path / "qformer")


@pytest.mark.golden
def test_what_reads_questions_has_no_place_in_transformers(golden2_dir: Path, tmp_path: Path) -> None:
    """Its class of the second stage holds what reads images alone."""
    tensors, info = published(golden2_dir, "opt_pretrain")
    first, first_info = published(golden2_dir, "pretrain")
    parts = {
        name: t for name, t in first.items() if name.startswith("qformer.") and not name.startswith("qformer.head.")
    }
    info |= {"qformer": first_info["qformer"]}
    info["language_model"]["name"] = str(golden2_dir / "opt")
    lost = convert.write(tmp_path, {**tensors, **parts}, info, to="huggingface")
    assert "qformer.embeddings.words.weight" in lost and "qformer.layers.0.feed_forward.up.weight" in lost
    _, found = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]


# ---- the same numbers from transformers' classes and from ours -------------------------------------------------------


def ours_of(folder: Path, width: int = 0) -> Any:
    """Our model with the weights of a folder of transformers; what it lacks is random."""
    tensors, info = convert.read(folder)
    model = model_of(
        info["task"],
        ViTConfig(**info["image_encoder"]),
        TextConfig(),
        specials=Specials(pad=0, enc=-1, dec=59),
        embed_dim=info.get("embed_dim", 0),
        qformer=QFormerConfig(**info["qformer"]),
        language_width=width,
    ).eval()
    own = unique_state(model)
    lacks = {name: own[name] for name in own if name.startswith(("temperature", "qformer.head."))}
    load_strict(model, {**lacks, **tensors}, str(folder))
    return model


@pytest.mark.parametrize(("text", "kind"), [(OPT, CausalLanguageModel), (T5, Seq2SeqLanguageModel)], ids=["opt", "t5"])
def test_logits_are_those_of_transformers(tmp_path: Path, text: dict[str, Any], kind: Any) -> None:
    folder = random_folder(tmp_path, "Blip2ForConditionalGeneration", text)
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    ours = ours_of(folder, width=40)
    images, ids = torch.randn(2, 3, 28, 28), torch.randint(5, 60, (2, 6))
    image_token = theirs.config.image_token_id = 69
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    whole = torch.cat([torch.full((2, 5), image_token), ids], dim=1)
    seen = torch.cat([torch.ones(2, 5, dtype=torch.bool), mask], dim=1).long()
    targets = ids.flip(0)
    with torch.no_grad():
        more = (
            {}
            if text is OPT
            else {"decoder_input_ids": torch.cat([torch.zeros(2, 1, dtype=torch.long), targets[:, :-1]], 1)}
        )
        expected = theirs(pixel_values=images, input_ids=whole, attention_mask=seen, **more).logits
        ours.attach(kind(theirs.language_model, LanguageIds(0, 1, 0)))
        queries = ours.query_inputs(ours.image_encoder(images))
        found = ours.language_model.predictions(queries, ids, mask, targets=ids if text is OPT else targets)
    expected = expected[:, 4:-1] if text is OPT else expected
    real = mask if text is OPT else torch.ones_like(mask)
    assert torch.allclose(found[real], expected[real], rtol=0, atol=5e-5)


def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "whole", "Blip2ForImageTextRetrieval")
    theirs, ours = transformers.Blip2ForImageTextRetrieval.from_pretrained(folder).eval(), ours_of(folder)
    images, ids = torch.randn(3, 3, 28, 28), torch.randint(5, 59, (3, 7))
    lengths = torch.tensor([7, 3, 5])
    mask = (torch.arange(7) < lengths[:, None]).long()
    with torch.no_grad():
        states = ours.image_encoder(images)
        found = ours.match_logits(ids, lengths, ours.qformer.image_keys(states))
        inputs = {"pixel_values": images, "input_ids": ids, "attention_mask": mask}
        assert torch.allclose(found, theirs(**inputs, use_image_text_matching_head=True).logits_per_image, **CLOSE)
        cosines = ours.encode_image(images) @ ours.encode_text(ids, lengths).T  # (B, Q, R)
        assert torch.allclose(cosines.amax(dim=1), theirs(**inputs).logits_per_image, **CLOSE)
        tensors, info = convert.read(folder)
        convert.write(tmp_path / "alone", tensors, info, to="huggingface", hf_class="qformer")
        alone = transformers.Blip2QFormerModel.from_pretrained(tmp_path / "alone").eval()
        read = alone(query_embeds=ours.qformer.queries.expand(3, -1, -1), encoder_hidden_states=states)
        assert torch.allclose(ours.read_images(states).states, read.last_hidden_state, **CLOSE)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A file of LAVIS."""
    tensors, info = convert.read(random_folder(tmp_path / "theirs", "Blip2ForConditionalGeneration", OPT))
    convert.write(tmp_path / "small.pth", tensors, info, to="salesforce")
    return tmp_path / "small.pth"


def without(*starts: str) -> Any:
    def change(state: dict[str, Tensor]) -> None:
        for name in [name for name in state if name.startswith(starts)]:
            del state[name]

    return change


LAYER = "Qformer.bert.encoder.layer.0."


def other_width(state: dict[str, Tensor]) -> None:
    state.update({f"{LAYER}crossattention.self.{name}.weight": torch.ones(24, 30) for name in ("key", "value")})


BAD: dict[str, tuple[Any, str]] = {
    "no image encoder": (
        without("visual_encoder."),
        "holds no image encoder: it was frozen in training, and LAVIS leaves out what is frozen",
    ),
    "no norm behind it": (without("ln_vision."), r"is incomplete: it has no image_encoder\.norm\.weight"),
    "half of a bias": (without("visual_encoder.blocks.1.attn.v_bias"), r"it has no blocks\.1\.attn\.v_bias"),
    "no feed-forward network": (
        without(f"{LAYER}intermediate_query"),
        r"incomplete: it has no qformer\.layers\.0\.query_feed_forward",
    ),
    "no cross-attention": (without(f"{LAYER}crossattention"), r"has no qformer\.layers\.0\.cross_attention\.k"),
    "no projection": (without("opt_proj."), r"it has no image_proj\.weight, text_proj\.weight, itm_head\.weight"),
    "a tensor of another model": (lambda s: s.update(prompt=torch.ones(2)), r"does not have: not known \(1\): prompt"),
    "another image encoder": (
        other_width,
        "reads states of width 30, and the image encoder gives 32: it was trained with another image encoder",
    ),
    "not a number": (lambda s: s["query_tokens"].fill_(torch.nan), "holds 120 numbers that are infinite"),
    "queries of another shape": (
        lambda s: s.update(query_tokens=torch.ones(5, 24)),
        "holds a tensor of a shape that no Q-Former has",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_read(small: Path, case: str) -> None:
    change, message = BAD[case]
    state = foreign(small)
    change(state)
    torch.save({"model": state}, small)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert.read(small, 2, 3)
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    folder = random_folder(tmp_path / "theirs", "Blip2ForImageTextRetrieval")
    config = json.loads((folder / "config.json").read_text())
    for entry, value, message in (
        ("vision_config", {**config["vision_config"], "hidden_act": "relu"}, "hidden_act is 'relu'; BLIP-2's is gelu"),
        ("qformer_config", 3, "is not the configuration of a BLIP-2 model"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, entry: value}))
        with pytest.raises(CheckpointError, match=message):
            convert.read(folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        convert.read(folder)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=r"incomplete: .*model-00001-of-00002\.safetensors"):
        convert.read(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="which is no file beside it"):
        convert.read(folder)
