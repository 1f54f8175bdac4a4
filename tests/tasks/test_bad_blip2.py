"""What users get wrong with BLIP-2: each case is one error with one line that says what, where and what to do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.blip2_runs import stage1, stage2, train, write_language_model
from helpers.fine_tuning import CPU
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

import blip
from blip.errors import BlipError
from blip.tasks import blip2, caption, retrieval, vqa
from blip.tasks.config import CaptionConfig, RetrievalConfig, VqaConfig
from blip.tasks.rehearsal import rehearsals

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


class Place:
    """What the cases are made of: checkpoints of both stages, a language model, data, and an empty folder."""

    def __init__(self, made: Path, phantoms: Path, tiny_checkpoint: Path):
        self.made, self.phantoms, self.blip = made, phantoms, tiny_checkpoint
        self.language, self.first, self.second = made / "language", made / "first", made / "second"
        self.folder = made

    def stage1(self, *options: str, **values: Any) -> None:
        blip2.run(stage1(self.phantoms, *options, **values), self.folder / "run", "", device=CPU)

    def stage2(self, *options: str, **values: Any) -> None:
        given = {"init_from": self.first, **values}
        language = given.pop("language_model", self.language)
        blip2.run(stage2(self.phantoms, language, *options, **given), self.folder / "run", "", device=CPU)

    def caption(self, **values: Any) -> None:
        files = {"train_file": [f"{self.phantoms}/captions.json"], "device": "cpu", "precision": "fp32"}
        config = CaptionConfig(**{"init_from": str(self.second), "language_dtype": "fp32", "num_workers": 0,
                                  "best_metric": "val_exact", "image_size": 32, **files, **values})  # fmt: skip
        caption.run(config, self.folder / "run", "", device=CPU)

    def vqa(self, **values: Any) -> None:
        files = {"train_file": [f"{self.phantoms}/questions.json"], "device": "cpu", "precision": "fp32"}
        config = VqaConfig(**{"init_from": str(self.second), "language_dtype": "fp32", "num_workers": 0,
                              "image_size": 32, **files, **values})  # fmt: skip
        vqa.run(config, self.folder / "run", "", device=CPU)

    def copy(self, what: Path) -> Path:
        """A copy of a checkpoint or a language model, to be damaged."""
        return Path(shutil.copytree(what, self.folder / "copy"))


def damaged(place: Place, what: str, change: Callable[[dict], Any]) -> Path:
    """A copy of a checkpoint with other tensors."""
    folder = place.copy(getattr(place, what))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def described(place: Place, what: str, change: Callable[[dict], Any]) -> Path:
    """A copy of a checkpoint with another `model.json`."""
    folder = place.copy(getattr(place, what))
    info = json.loads((folder / "model.json").read_text())
    change(info)
    (folder / "model.json").write_text(json.dumps(info))
    return folder


def without(*names: str) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for name in names:
            for key in [key for key in content if key.startswith(name)]:
                del content[key]

    return change


def other_language(place: Place, width: int = 24) -> Path:
    """A language model with other weights."""
    import torch

    folder = place.copy(place.language)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name] = torch.flip(tensors[name], [0])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def wider(place: Place) -> None:
    write_language_model(place.folder / "wide", place.phantoms, width=32)
    start = described(place, "second", lambda info: info.pop("language_model"))
    place.stage2(init_from=start, language_model=place.folder / "wide")


def other_tokenizer(place: Place) -> None:
    folder = place.copy(place.language)
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.add_tokens(["sonography"])
    backend.save(str(folder / "tokenizer.json"))
    place.stage2(init_from=place.second, language_model=folder)


def no_tokenizer(place: Place) -> None:
    folder = place.copy(place.language)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    place.stage2(language_model=folder)


def no_config(place: Place) -> None:
    (place.folder / "empty").mkdir()
    place.stage2(language_model=place.folder / "empty")


def no_weights(place: Place) -> None:
    folder = place.copy(place.language)
    (folder / "model.safetensors").unlink()
    place.stage2(language_model=folder)


def cut_weights(place: Place) -> None:
    folder = place.copy(place.language)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    place.stage2(language_model=folder)


def no_language_model(place: Place) -> None:
    folder = place.copy(place.language)
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    place.stage2(language_model=folder)


def resumed_otherwise(place: Place) -> None:
    lora = "lora={rank: 2, language_model: [q_proj]}"
    output = place.folder / "run"
    blip2.run(stage2(place.phantoms, place.language, "max_steps=1"), output, "", device=CPU)
    blip2.run(stage2(place.phantoms, place.language, "max_steps=2", lora), output, "auto", device=CPU)


def lost_adapters(place: Place) -> None:
    lora = "lora={rank: 2, language_model: [q_proj]}"
    blip2.run(stage2(place.phantoms, place.language, "max_steps=1", lora), place.folder / "run", "", device=CPU)
    folder = place.folder / "run" / "checkpoints" / "step-00000001"
    tensors = {name: t for name, t in load_file(folder / "model.safetensors").items() if "lora_A" not in name}
    save_file(tensors, folder / "model.safetensors")
    blip2.run(stage2(place.phantoms, place.language, "max_steps=2", lora), place.folder / "run", "auto", device=CPU)


def scored_without_learning(place: Place) -> None:
    given = {"val_file": [f"{place.phantoms}/captions.json"], "language_model": str(place.language), "device": "cpu"}
    config = CaptionConfig(init_from=str(place.first), language_dtype="fp32", best_metric="val_exact", **given)
    caption.score(config, place.folder / "run", CPU)


def ranked(place: Place) -> None:
    config = RetrievalConfig(init_from=str(place.second), train_file=[f"{place.phantoms}/captions.json"], image_size=32)
    retrieval.run(config, place.folder / "run", "", device=CPU)


def planned(place: Place) -> None:
    config = CaptionConfig(init_from=str(place.second), best_metric="val_exact")
    rehearsals(caption.Captioning)["plan"](config, "h100", 1)


CASES: dict[str, tuple[Callable[[Place], Any], str]] = {
    # the language model
    "gone": (
        lambda p: p.stage2(language_model=p.folder / "gone"),
        "language model .*gone does not exist: give a folder",
    ),
    "no config": (no_config, "holds no config.json"),
    "no weights": (no_weights, "holds neither model.safetensors nor"),
    "cut weights": (cut_weights, "is damaged or cut short"),
    "no language model": (no_language_model, "type vit, which is no language model"),
    "other weights": (
        lambda p: p.stage2(init_from=p.second, language_model=other_language(p)),
        "has another weights|other weights",
    ),
    "other tokenizer": (other_tokenizer, "another tokenizer than the one that the checkpoint was trained with"),
    "no tokenizer": (no_tokenizer, "comes without its tokenizer: put its tokenizer.json into the folder"),
    "wrong width": (wider, "whose embeddings are 24 wide; those of .* are 32 wide"),
    "int8 on a CPU": (lambda p: p.stage2("language_dtype=int8"), "int8 weights of a language model need a GPU"),
    "nf4 on a CPU": (lambda p: p.stage2("language_dtype=nf4"), "nf4 weights of a language model need a GPU"),
    "unknown dtype": (lambda p: p.stage2("language_dtype=int4"), "language_dtype"),
    "named nowhere": (
        lambda p: p.stage2("language_model=", init_from=described(p, "second", without("language_model"))),
        "names no language model: give language_model",
    ),
    # starting weights
    "a BLIP": (lambda p: p.stage1(init_from=p.blip, **NO_SIZES), "is a checkpoint of pretrain; BLIP-2 starts from"),
    "no query path": (
        lambda p: p.stage2(init_from=damaged(p, "first", without("qformer.queries"))),
        "qformer.queries|queries",
    ),
    "half a checkpoint": (
        lambda p: p.stage2(init_from=damaged(p, "first", without("qformer.layers.1.self_attention"))),
        "half a checkpoint: it lacks 10 tensors, such as qformer.layers.1|qformer.layers.1",
    ),
    "no sizes": (
        lambda p: p.stage2(init_from=described(p, "first", without("qformer"))),
        "qformer is missing",
    ),
    "other sizes": (lambda p: p.stage2("text_hidden=128"), "has sizes of its own: leave out text_hidden 128"),
    "no such tower": (lambda p: p.stage1("vision_init=gone.pth"), "gone.pth does not exist"),
    "text of other depth": (
        lambda p: p.stage1(f"text_init={p.blip}", "text_layers=3"),
        "has 2 layers, the Q-Former 3: set text_layers",
    ),
    "text of other width": (
        lambda p: p.stage1(f"text_init={p.blip}", "text_hidden=32"),
        "the Q-Former needs .*text_hidden",
    ),
    "image size": (lambda p: p.stage1("image_size=40"), "image size 40 must be a multiple of patch 16"),
    # what is trained
    "no such layer": (
        lambda p: p.stage2("lora={language_model: [qproj]}"),
        "'qproj' is no linear layer of language_model; the nearest",
    ),
    "a part that stage 1 lacks": (
        lambda p: p.stage1("lora={language_model: [q_proj]}"),
        "has no part 'language_model'; it has image_encoder",
    ),
    "layers of BLIP": (lambda p: p.stage2("lora={targets: [qkv]}"), "lora: targets is for BLIP"),
    "no layers": (lambda p: p.stage2("lora={rank: 4}"), "name layers: targets, or of a part of BLIP-2"),
    "adapters frozen": (
        lambda p: p.stage2("lora={language_model: [q_proj]}", "freeze=[language_model]"),
        "nothing of language_model is trained",
    ),
    "no such part": (lambda p: p.stage2("freeze=[text_encoder]"), "the model has no part 'text_encoder'"),
    "nothing left": (
        lambda p: p.stage2("freeze=[qformer, language_proj, image_encoder]"),
        "nothing would be left to train",
    ),
    "fsdp": (lambda p: p.stage2("parallel=fsdp"), "parallel: fsdp does not know frozen parts"),
    "betas": (lambda p: p.stage2("adam_betas=[0.9, 1.0]"), "adam_betas .* must be two factors"),
    "other adapters within a run": (resumed_otherwise, "cannot change within a run: lora"),
    "lost adapters": (lost_adapters, "lacks .*lora_A"),
    # texts and tasks
    "long prompt": (lambda p: p.stage2(f"prompt={'lesion ' * 30}"), "the prompt .* has 31 tokens and leaves no place"),
    "long prompt of captions": (
        lambda p: p.caption(prompt="lesion " * 50, max_text_tokens=40),
        "the prompt .* has 51 tokens and leaves no place",
    ),
    "prompt without a question": (
        lambda p: p.vqa(question_prompt="Answer:"),
        "needs one {}, where the question stands",
    ),
    "no place for a question": (
        lambda p: p.vqa(max_text_tokens=3, max_answer_tokens=3),
        r"question_prompt has 3 tokens and leaves no place for a question: set max_text_tokens above 3",
    ),
    "ranked answers": (lambda p: p.vqa(inference="rank"), "inference: rank is not for BLIP-2"),
    "no words for questions": (lambda p: p.vqa(question_in_qformer=True), "words|tokenizer"),
    "options of BLIP-2 for BLIP": (lambda p: p.caption(init_from=str(p.blip)), "language_dtype: for BLIP-2"),
    "retrieval from stage 2": (ranked, "is a checkpoint of blip2_language"),
    "scored without learning": (scored_without_learning, "is a checkpoint of blip2, which never learned"),
    "no data": (lambda p: p.stage2("train_file=[]"), "train_file is empty"),
    "costs on other GPUs": (planned, "--gpu does not know BLIP-2"),
    "no such model": (
        lambda p: blip.pretrain([f"{p.phantoms}/captions.json"], model="blip3"),
        "it can be blip or blip2",
    ),
}
NO_SIZES = {"vit": "base", "vit_width": "null", "vit_depth": "null", "vit_heads": "null", "vit_patch": "null"}


@pytest.fixture(scope="module")
def made(phantoms: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of one step of each stage, and the language model."""
    folder = tmp_path_factory.mktemp("made")
    write_language_model(folder / "language", phantoms)
    train(stage1(phantoms, max_steps=1), folder / "run1")
    (folder / "run1" / "checkpoints" / "step-00000001").rename(folder / "first")
    train(stage2(phantoms, folder / "language", init_from=folder / "first", max_steps=1), folder / "run2")
    (folder / "run2" / "checkpoints" / "step-00000001").rename(folder / "second")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_one_line(case: str, made: Path, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    place, (trigger, pattern) = Place(made, phantoms, tiny_checkpoint), CASES[case]
    place.folder = tmp_path
    with pytest.raises(BlipError, match=pattern) as caught:
        trigger(place)
    first, *more = str(caught.value).strip().splitlines()
    assert not more or (len(more) == 1 and first.startswith("--set ")), str(caught.value)


def test_enough_cases() -> None:
    assert len(CASES) >= 25
