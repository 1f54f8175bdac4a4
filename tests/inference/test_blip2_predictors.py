"""BLIP-2 by `blip.load`, of either stage: the published numbers, those of transformers, batches, verbs, refusals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_checkpoints import CLOSE, noise_images
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

pytest.importorskip("transformers")

import transformers

import blip
from blip.checkpoints import convert, frozen, language_models, towers
from blip.checkpoints.adapters import public_state
from blip.checkpoints.format import CheckpointError
from blip.checkpoints.part_adapters import add_lora_to_parts
from blip.cli import app
from blip.errors import InputError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.language import LanguagePredictor
from blip.inference.load_blip2 import only_blip
from blip.models.decoding import Decoding

pytestmark = pytest.mark.slow
CAPTIONS = ["a large lesion in the left lung", "normal brain mri", "axial ct scan"]


@pytest.fixture(scope="module")
def folders(golden2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of ours, by the command, of the published files."""
    root = tmp_path_factory.mktemp("blip2")
    meta = json.loads((golden2_dir / "meta.json").read_text())
    heads = ["--image_heads", str(meta["vit"]["heads"]), "--text_heads", str(meta["qformer"]["heads"])]
    tower = ["--image_encoder", str(golden2_dir / "eva_vit.pth")]
    more = {
        "pretrain": ["--tokenizer", str(golden2_dir / "vocab.txt")],
        "opt_pretrain": ["--language_model", str(golden2_dir / "opt")],
        "t5_pretrain": ["--language_model", str(golden2_dir / "t5")],
    }
    for kind, options in more.items():
        command = ["convert", str(golden2_dir / f"{kind}.pth"), str(root / kind), *heads, *tower, *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return {kind: root / kind for kind in more}


def numbers(folder: Path, kind: str) -> dict[str, Tensor]:
    with np.load(folder / f"{kind}.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if not name.startswith(("grad0", "after"))}


# ---- the first stage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(folders: dict[str, Path]) -> Blip2Predictor:
    found = blip.load(folders["pretrain"], device="cpu")
    assert isinstance(found, Blip2Predictor)
    return found


@pytest.mark.golden
def test_scores_are_the_published_ones(first: Blip2Predictor, golden2_dir: Path) -> None:
    expected, images = numbers(golden2_dir, "itm"), numbers(golden2_dir, "pretrain")["image0"]
    captions = json.loads((golden2_dir / "itm.json").read_text())["captions"]
    first.max_text_tokens = 32
    assert torch.allclose(first.encode_image(images), numbers(golden2_dir, "pretrain")["image_feat"], **CLOSE)
    assert torch.allclose(first.itc_score(images, captions), expected["itc"], **CLOSE)
    cosines, matches = first.match_all(images, first.encode_text(captions), captions, batch_size=4)
    assert torch.allclose(cosines, expected["itc"], **CLOSE)
    assert torch.allclose(matches, expected["itm_probability"], rtol=0, atol=2e-5)
    logits = first.match_logits(images[0], captions)
    assert torch.allclose(logits, expected["itm_logits"][0], rtol=0, atol=5e-5)
    assert torch.allclose(first.match_probability(images, captions), matches.diagonal(), **CLOSE)


@pytest.mark.golden
def test_first_stage_writes_as_published(first: Blip2Predictor, golden2_dir: Path) -> None:
    settings = json.loads((golden2_dir / "pretrain.json").read_text())
    images = numbers(golden2_dir, "pretrain")["image0"]
    one = next(one for one in settings["generate"] if one["args"].get("num_beams") == 1)
    decoding = Decoding(
        max_new_tokens=one["args"]["max_length"] - 1, min_new_tokens=one["args"].get("min_length", 1) - 1
    )
    assert [text.replace(" ", "") for text in first.caption(images, decoding=decoding)] == [
        text.replace(" ", "") for text in one["texts"]
    ]
    written = first.write(images[:2], decoding=Decoding(beams=3, num_return=2), batch_size=1)
    assert [len(several) for several in written] == [2, 2]
    assert all(math.isclose(text.log_prob, sum(text.token_log_probs)) for several in written for text in several)


def test_refusals_of_the_first_stage(first: Blip2Predictor, tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(CheckpointError, match="a checkpoint of blip2 cannot answer questions"):
        first.answer(image, "why")
    with pytest.raises(CheckpointError, match="a checkpoint of blip2 cannot judge statements"):
        first.judge(image, image, "why")
    with pytest.raises(InputError, match="2 images and 3 texts"):
        first.match_logits([image] * 2, CAPTIONS)
    with pytest.raises(InputError, match=r"max_new_tokens is 900"):
        first.write(image, decoding=Decoding(max_new_tokens=900))


@pytest.mark.golden
def test_scores_of_a_folder_of_transformers(folders: dict[str, Path], golden2_dir: Path, tmp_path: Path) -> None:
    """The same, both ways; its class holds no head that writes."""
    tensors, info = convert.read(folders["pretrain"])
    words = folders["pretrain"] / "tokenizer.json"
    convert.write(tmp_path, tensors, info, to="huggingface", tokenizer_file=words)
    ours = blip.load(tmp_path, device="cpu")
    theirs = transformers.Blip2ForImageTextRetrieval.from_pretrained(tmp_path).eval()
    images = numbers(golden2_dir, "pretrain")["image0"][:3]
    ids, lengths = ours.ids(CAPTIONS)
    inputs = {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
    with torch.no_grad():
        logits = theirs(pixel_values=images, **inputs, use_image_text_matching_head=True).logits_per_image
        cosines = theirs(pixel_values=images, **inputs).logits_per_image
    assert torch.allclose(ours.match_logits(images, CAPTIONS), logits, **CLOSE)
    assert torch.allclose(ours.itc_score(images, CAPTIONS), cosines, **CLOSE)
    with pytest.raises(CheckpointError, match="cannot write captions: it comes from transformers"):
        ours.caption(images)


@pytest.mark.golden
def test_adapters_of_the_first_stage(folders: dict[str, Path], golden2_dir: Path, tmp_path: Path) -> None:
    trained, image = blip.load(folders["pretrain"], device="cpu"), numbers(golden2_dir, "pretrain")["image0"][:1]
    before = trained.encode_image(image)
    add_lora_to_parts(trained.model, 2, {"qformer": ["q"]})
    with torch.no_grad():
        for name, parameter in trained.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    lora = {"rank": 2, "alpha": 2.0, "dropout": 0.0, "parts": {"qformer": ["q"]}}
    words = folders["pretrain"] / "tokenizer.json"
    convert.write(tmp_path, public_state(trained.model), {**trained.info, "lora": lora}, tokenizer_file=words)
    after = blip.load(tmp_path, device="cpu").encode_image(image)
    assert torch.allclose(after, trained.encode_image(image), **CLOSE) and not torch.allclose(after, before, atol=1e-3)
    tensors, info = convert.read(tmp_path)
    for form in ("huggingface", "salesforce"):
        with pytest.raises(CheckpointError, match="low-rank adapters beside its weights"):
            convert.write(tmp_path / form, tensors, info, to=form, tokenizer_file=words)
        assert not (tmp_path / form).exists()


# ---- the second stage ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opt(folders: dict[str, Path]) -> LanguagePredictor:
    found = blip.load(folders["opt_pretrain"], device="cpu")
    assert isinstance(found, LanguagePredictor)
    return found


def ids_of(folder: Path, kind: str, **args: Any) -> dict[str, Any]:
    settings = json.loads((folder / f"{kind}.json").read_text())
    return next(
        one for one in settings["generate"] if args.items() <= one["args"].items() and "prompt" not in one["args"]
    )


@pytest.mark.golden
def test_second_stage_writes_as_published(opt: LanguagePredictor, golden2_dir: Path) -> None:
    one = ids_of(golden2_dir, "opt_pretrain", num_beams=1)
    images = numbers(golden2_dir, "opt_pretrain")["image0"]
    written = opt.write(images, decoding=Decoding(max_new_tokens=one["args"]["max_length"] - 1), batch_size=4)
    tokens = [opt.tokens.tokenizer.convert_tokens_to_ids(texts[0].tokens) for texts in written]
    assert tokens == [[i for i in row[1:] if i != 1][: len(mine)] for row, mine in zip(one["ids"], tokens, strict=True)]
    assert all(len(t[0].tokens) == len(t[0].token_log_probs) and math.isfinite(t[0].log_prob) for t in written)
    each = [opt.write(image, decoding=Decoding(max_new_tokens=9))[0][0] for image in images]
    together = opt.write(images, decoding=Decoding(max_new_tokens=9))
    assert [text.text for text in each] == [texts[0].text for texts in together]


@pytest.mark.golden
def test_probabilities_of_what_was_written(opt: LanguagePredictor, golden2_dir: Path) -> None:
    images = numbers(golden2_dir, "opt_pretrain")["image0"]
    found = opt.log_probs(images, CAPTIONS * 2)
    alone = torch.cat([opt.log_probs(image, text) for image, text in zip(images, CAPTIONS * 2, strict=True)])
    assert torch.allclose(found, alone, rtol=0, atol=1e-4) and bool((found < 0).all())
    answers = opt.answer(images[0], ["is it normal", "Question: which plane? Answer:"], answers=["yes", "no", "axial"])
    assert [len(answer.candidates) for answer in answers] == [3, 3]
    assert all(math.isclose(sum(p for _, p in answer.candidates), 1, rel_tol=1e-5) for answer in answers)
    best = answers[0].candidates[0][0]
    scores = {text: float(opt.log_probs(images[0], text, opt.asked("is it normal"))) for text in ("yes", "no", "axial")}
    assert max(scores, key=scores.__getitem__) == best


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["opt_pretrain", "t5_pretrain"])
def test_questions_are_answered_as_transformers_does(
    folders: dict[str, Path], golden2_dir: Path, tmp_path: Path, kind: str
) -> None:
    """From a folder of transformers, whose language model is read from it, and by the class of transformers."""
    tensors, info = convert.read(folders[kind])
    convert.write(tmp_path, tensors, info, to="huggingface")
    ours = blip.load(tmp_path, device="cpu")
    theirs = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path).eval()
    images = numbers(golden2_dir, kind)["image0"][:3]
    question = ours.asked("is there a lesion")  # type: ignore[attr-defined]
    words = ours.tokens.tokenizer  # type: ignore[attr-defined]
    text = torch.tensor([words(question)["input_ids"]])
    ids = torch.cat([torch.full((1, info["qformer"]["queries"]), theirs.config.image_token_index), text], dim=1)
    ids = ids.expand(3, -1)
    end = ours.tokens.ids.end  # type: ignore[attr-defined]
    with torch.no_grad():
        options = {"num_beams": 1, "max_new_tokens": 6, "eos_token_id": end, "do_sample": False}
        expected = theirs.generate(pixel_values=images, input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    expected = expected[:, ids.shape[1] :] if kind == "opt_pretrain" else expected[:, 1:]
    written = ours.write(images, question, Decoding(max_new_tokens=6))
    for row, texts in zip(expected.tolist(), written, strict=True):
        mine = words.convert_tokens_to_ids(texts[0].tokens)
        assert mine == row[: len(mine)] and (len(mine) == len(row) or mine[-1] == end)
    answers = ours.answer(images, ["is there a lesion"] * 3, decoding=Decoding(max_new_tokens=6))
    assert [answer.text for answer in answers] == [texts[0].text for texts in written]


# ---- checks of the language model ------------------------------------------------------------------------------------


def renamed(folder: Path, source: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose `model.json` says something else of its language model."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    info = json.loads((folder / "model.json").read_text())
    info["language_model"].update(changes)
    (folder / "model.json").write_text(json.dumps(info))
    return folder


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": ""}, "names no language model: give language_model, a folder or hub:OWNER/NAME"),
    "a folder that is gone": ({"name": "/nowhere/opt"}, "language model /nowhere/opt does not exist"),
    "other weights": (
        {"fingerprint": "0" * 12},
        "has another weights than the one that the checkpoint was trained with",
    ),
    "another tokenizer": (
        {"tokenizer": "0" * 12},
        "has another tokenizer than the one that the checkpoint was trained",
    ),
    "another kind": ({"kind": "seq2seq", "fingerprint": ""}, "has another kind than .*: causal, not seq2seq"),
    "another width": ({"width": 44}, "width"),
    "no width": ({"width": 0}, "does not give the model's sizes"),
    "a dtype that is none": ({"dtype": "fp8"}, "does not give the model's sizes"),
}


@pytest.mark.golden
@pytest.mark.parametrize("case", CHANGES)
def test_other_language_models(folders: dict[str, Path], tmp_path: Path, case: str) -> None:
    changes, message = CHANGES[case]
    with pytest.raises(CheckpointError, match=message):
        blip.load(renamed(tmp_path / "copy", folders["opt_pretrain"], **changes), device="cpu")


@pytest.mark.golden
def test_a_checkpoint_that_names_its_image_encoder(
    folders: dict[str, Path], golden2_dir: Path, tmp_path: Path, opt: LanguagePredictor
) -> None:
    tensors, info = convert.read(folders["opt_pretrain"])
    (tmp_path / "eva.pth").write_bytes((golden2_dir / "eva_vit.pth").read_bytes())
    tower, _ = towers.read_tower(tmp_path / "eva.pth", info["image_encoder"]["heads"])
    info["frozen"] = {"image_encoder": towers.tower_entry(tmp_path / "eva.pth", tower)}
    convert.write(tmp_path / "small", frozen.without_tower(tensors), info)
    assert len(load_file(tmp_path / "small" / "model.safetensors")) < len(tensors)
    images = numbers(golden2_dir, "opt_pretrain")["image0"][:2]
    found = blip.load(tmp_path / "small", device="cpu")
    assert torch.equal(found.log_probs(images, CAPTIONS[:2]), opt.log_probs(images, CAPTIONS[:2]))  # type: ignore[attr-defined]
    convert.write(tmp_path / "whole", *convert.read(tmp_path / "small"))
    (tmp_path / "eva.pth").unlink()
    assert blip.load(tmp_path / "whole", device="cpu").info.get("frozen") is None
    with pytest.raises(CheckpointError, match=r"frozen image encoder from .*eva\.pth, which does not exist"):
        blip.load(tmp_path / "small", device="cpu")


@pytest.mark.golden
def test_half_a_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    for number, (start, message) in enumerate(
        [
            ("qformer.queries", r"qformer|does not fit"),
            ("image_encoder.", r"is incomplete: it has no image_encoder\.patch_embed\.weight"),
            ("language_proj.", "does not fit the model"),
            ("qformer.layers.0.cross_attention", r"is incomplete: it has no qformer\.layers\.0\.cross_attention\.k"),
        ]
    ):
        copy = renamed(tmp_path / str(number), folders["opt_pretrain"])
        tensors = {n: t for n, t in load_file(copy / "model.safetensors").items() if not n.startswith(start)}
        save_file(tensors, copy / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            blip.load(copy, device="cpu")


@pytest.mark.golden
@pytest.mark.parametrize(("dtype", "message"), [
    ("int8", "int8 weights of a language model need a GPU; on a CPU choose fp32 or bf16"),
    ("nf4", "nf4 weights of a language model need a GPU; on a CPU choose fp32 or bf16"),
    ("fp8", "the dtype of a language model can be fp32, bf16, fp16, int8, nf4; not 'fp8'"),
])  # fmt: skip
def test_dtypes_that_cannot_be(golden2_dir: Path, dtype: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        language_models.load_language_model(str(golden2_dir / "opt"), dtype=dtype)


@pytest.mark.golden
def test_capability_of_a_gpu(monkeypatch: pytest.MonkeyPatch, golden2_dir: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    with pytest.raises(InputError, match=r"int8 needs a GPU of compute capability 7\.5 or more, this one has 7\.0"):
        language_models.check_dtype("int8", torch.device("cuda"))
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="nf4 needs bitsandbytes: pip install bitsandbytes"):
        language_models.check_dtype("nf4", torch.device("cuda"))
    with pytest.raises(InputError, match="T5 overflows in fp16 and gives NaN: choose bf16 or fp32"):
        language_models.load_language_model(str(golden2_dir / "t5"), dtype="fp16")


@pytest.mark.golden
def test_language_models_in_half_precision(golden2_dir: Path) -> None:
    found = language_models.load_language_model(str(golden2_dir / "opt"), dtype="bf16")
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in found.module.parameters())
    assert not found.module.training and found.info["kind"] == "causal" and found.info["width"] == 40


@pytest.mark.golden
def test_folders_that_hold_no_language_model(golden2_dir: Path, tmp_path: Path) -> None:
    for name, changes, message in (
        ("empty", {}, r"holds no config\.json of transformers"),
        ("vit", {"config.json": '{"model_type": "vit"}'}, "holds a model of type vit, which is no language model"),
        ("broken", {"config.json": "{"}, "is no configuration of a language model"),
        (
            "bare",
            {"config.json": (golden2_dir / "opt" / "config.json").read_text()},
            r"holds neither model\.safetensors",
        ),
    ):
        (tmp_path / name).mkdir()
        for file, content in changes.items():
            (tmp_path / name / file).write_text(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            language_models.load_language_model(str(tmp_path / name))
        assert "\n" not in str(caught.value)


# ---- verbs -----------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_verbs(folders: dict[str, Path], tmp_path: Path) -> None:
    images = noise_images(tmp_path)
    two = ["--checkpoint", str(folders["opt_pretrain"]), "--json", "--device", "cpu"]
    one = ["--checkpoint", str(folders["pretrain"]), "--json", "--device", "cpu"]

    def rows(*command: str) -> list[dict[str, Any]]:
        result = CliRunner().invoke(app, list(command))
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert len(rows("caption", str(tmp_path), *two, "--max_new_tokens", "5")) == len(images)
    (answer,) = rows("answer", str(images[0]), "Question: which plane? Answer:", *two)
    assert 0 <= answer["probability"] <= 1
    assert len(rows("match", str(images[0]), *CAPTIONS, *one)) == len(CAPTIONS)
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps([{"image": str(images[0]), "caption": CAPTIONS[0]}]))
    pair, *_ = rows("match", str(annotations), *one)
    whole = rows("match", str(images[0]), CAPTIONS[0], *one)[0]
    assert math.isclose(pair["itc_score"], whole["itc_score"], abs_tol=1e-5)
    for command, message in (
        (
            ["match", str(images[0]), CAPTIONS[0], *two],
            "cannot match images and texts; that takes one of the first stage, "
            "such as the run that this one started from, or hub:Salesforce/blip2-itm-vit-g",
        ),
        (["answer", str(images[0]), "is it normal", *one], "a checkpoint of blip2 cannot answer questions"),
    ):
        result = CliRunner().invoke(app, command)
        assert result.exit_code != 0 and message in " ".join(result.output.split())
        assert "Traceback" not in result.output


@pytest.mark.golden
def test_commands_that_are_for_blip_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    (image, *_) = noise_images(tmp_path)
    records = tmp_path / "records.json"
    records.write_text(json.dumps([{"image": str(image), "caption": "a lesion", "boxes": [[1, 1, 9, 9]]}]))
    checkpoint = str(folders["opt_pretrain"])
    command = ["capfilt", "caption", "--checkpoint", checkpoint, "--data", str(records), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "blip capfilt is for BLIP, and this is a BLIP-2" in " ".join(result.output.split())
    command = ["activations", str(records), "--checkpoint", checkpoint, "--out", str(tmp_path / "shards")]
    result = CliRunner().invoke(app, [*command, "--points", "qformer.0.out"])
    assert result.exit_code == 1 and "blip activations is for BLIP and the first stage" in " ".join(
        result.output.split()
    )
    model = blip.load(checkpoint, device="cpu")
    for name in ("blip serve", "blip capfilt", "blip localise"):
        with pytest.raises(InputError, match=f"{name} is for BLIP, and this is a BLIP-2: it works with caption, match"):
            only_blip(model, name)


def test_questions_and_prompts(opt: LanguagePredictor) -> None:
    assert opt.asked("which plane?") == "Question: which plane? Answer:"
    assert opt.asked("Question: why? Short answer:") == "Question: why? Short answer:"
    before = opt.info
    opt.info = {**before, "prompt": "Q: {} A:"}
    assert opt.asked("why?") == "Q: why? A:" and opt.prompt == ""
    opt.info = {**before, "prompt": "a photo of", "question_prompt": ""}
    assert opt.prompt == "a photo of" and opt.asked("why?") == "Question: why? Answer:"
    opt.info = before
