"""Fine-tuned models in the classes of transformers: the same captions, answers and scores, or a clear refusal."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.random_checkpoints import ANSWERS, CLOSE, QUESTIONS, all_checkpoints, noise_images, random_checkpoint
from helpers.running import run_verb
from PIL import Image

pytest.importorskip("transformers")

import transformers

import blip
from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError
from blip.models.decoding import Decoding
from blip.network.packing import Rows, with_first


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return noise_images(tmp_path_factory.mktemp("images"))


def exported(checkpoint: Path, to: Path, kind: type) -> transformers.PreTrainedModel:
    """The class of transformers that `blip convert` writes for a fine-tuned checkpoint."""
    result = run_verb("convert", checkpoint, to, "--to", "huggingface")
    assert result.exit_code == 0, result.output
    foreign, report = kind.from_pretrained(to, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return foreign.eval()


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_transformers_writes_the_same_captions(checkpoints: dict, images: list, tmp_path: Path, beams: int) -> None:
    foreign = exported(checkpoints["caption"], tmp_path / "hf", transformers.BlipForConditionalGeneration)
    again = run_verb("convert", checkpoints["caption"], tmp_path / "again", "--to", "huggingface")
    assert "huggingface cannot hold 1: model.json: prompt" in " ".join(again.output.split())
    model = blip.load(checkpoints["caption"])
    words, pixels = model.tokenizer, model.pixels(images)
    ids = torch.tensor(words.encode(["a"], 40) * 3)  # generate() puts [DEC] first and takes [SEP] off
    theirs = foreign.generate(pixels, ids, num_beams=beams, max_new_tokens=8, do_sample=False)
    ours = model.write(images, decoding=Decoding(beams=beams, max_new_tokens=8))
    assert [one[0].text for one in ours] == [words.decode(row) for row in theirs.tolist()]
    assert blip.load(tmp_path / "hf").caption(images, "a") == model.caption(images)


@torch.no_grad()
def test_transformers_answers_the_same(tmp_path: Path, images: list) -> None:
    checkpoint = random_checkpoint(tmp_path, "vqa", same_width=True, answers=ANSWERS)
    foreign = exported(checkpoint, tmp_path / "hf", transformers.BlipForQuestionAnswering)
    model = blip.load(checkpoint)
    words, pixels = model.tokenizer, model.pixels(images)
    ids, lengths = model.ids(QUESTIONS)
    asked, mask = with_first(ids, words.enc_id), (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    states = foreign.vision_model(pixel_values=pixels).last_hidden_state
    theirs = foreign.text_encoder(input_ids=asked, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
    ours = model.model.question_states(model.model.text_encoder.image_keys(states), ids, lengths)
    torch.testing.assert_close(ours, theirs * mask[..., None], **CLOSE)

    # its answer decoder attends to padding, too: up to transformers 5.24, cross-attention drops the
    # `encoder_attention_mask` that it is given, so that padded questions get other logits. One by one from here on
    answer_ids = with_first(torch.tensor(words.encode(["a lesion"], 40)), words.dec_id)
    rows, decoder = Rows(torch.tensor([answer_ids.shape[1]]), answer_ids.shape[1], ids.device), model.model.text_decoder
    for i, length in enumerate(lengths.tolist()):
        alone = theirs[i : i + 1, :length]
        logits = foreign.text_decoder(input_ids=answer_ids, encoder_hidden_states=alone).logits[0]
        torch.testing.assert_close(decoder.head(decoder(answer_ids, rows, decoder.image_keys(alone))), logits, **CLOSE)

    how = Decoding(max_new_tokens=5)
    for i, one in enumerate(model.answer(images, QUESTIONS, decoding=how)):
        alone = foreign.generate(asked[i : i + 1, : lengths[i]], pixels[i : i + 1], max_new_tokens=5, do_sample=False)
        assert one.text == words.decode(alone[0].tolist())


@torch.no_grad()
def test_transformers_matches_the_same(checkpoints: dict, images: list, tmp_path: Path) -> None:
    foreign = exported(checkpoints["retrieval"], tmp_path / "hf", transformers.BlipForImageTextRetrieval)
    model = blip.load(checkpoints["retrieval"])
    ids, lengths = model.ids(QUESTIONS)
    given = {
        "pixel_values": model.pixels(images),
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]) + 0,
    }
    matched = foreign(input_ids=with_first(ids, model.tokenizer.enc_id), **given).itm_score
    torch.testing.assert_close(model.match_logits(images, QUESTIONS), matched, **CLOSE)
    cosines = foreign(input_ids=ids, use_itm_head=False, **given).itm_score
    torch.testing.assert_close(model.itc_score(images, QUESTIONS), cosines, **CLOSE)


def refused(checkpoint: Path, folder: Path, hf_class: str) -> Callable[[], object]:
    tensors, info = convert.read(checkpoint)
    return lambda: convert.write(
        folder / "hf", tensors, info, to="huggingface", tokenizer_file=checkpoint / "tokenizer.json", hf_class=hf_class
    )


def test_what_no_class_of_transformers_can_hold(checkpoints: dict, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot hold this model: .*image's width, 32, .*question are 48 wide"):
        refused(checkpoints["vqa"], tmp_path, "vqa")()
    with pytest.raises(CheckpointError, match="cannot use a checkpoint of vqa; hf_class can be vqa"):
        refused(checkpoints["vqa"], tmp_path, "caption")()
    with pytest.raises(CheckpointError, match="no Hugging Face class holds a checkpoint of nlvr"):
        refused(checkpoints["nlvr"], tmp_path, "nlvr")()
    assert not (tmp_path / "hf").exists()


@torch.no_grad()
def test_the_folder_is_complete_for_processors_and_pipelines(checkpoints: dict, tmp_path: Path) -> None:
    """`BlipProcessor` prepares what the predictor prepares, and `pipeline` writes the captions of `blip caption`."""
    folder = tmp_path / "hf"
    exported(checkpoints["caption"], folder, transformers.BlipForConditionalGeneration)
    model = blip.load(checkpoints["caption"])
    paths = noise_images(tmp_path)
    for path in paths:  # of the model's size: the two resize with other rounding
        Image.open(path).resize((32, 32)).save(path.with_suffix(".png"))
    pictures = [Image.open(path.with_suffix(".png")).convert("RGB") for path in paths]
    processor = transformers.BlipProcessor.from_pretrained(folder)
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, model.pixels(pictures).cpu(), rtol=0, atol=1e-5)
    for text in QUESTIONS:
        assert processor(text=text)["input_ids"] == model.tokenizer.encode([text], 40)[0]
        assert processor.decode(processor(text=text)["input_ids"], skip_special_tokens=True) == model.tokenizer.written(
            text
        )
    task = transformers.pipeline("image-text-to-text", model=str(folder), device="cpu")
    # without beams, whose scores are divided by other lengths in versions below 5
    for picture, ours in zip(pictures, model.write(pictures, decoding=Decoding(max_new_tokens=30)), strict=True):
        written = task(picture, text="a", generate_kwargs={"max_new_tokens": 30, "num_beams": 1})
        assert written[0]["generated_text"] == ours[0].text
    assert blip.load(folder).caption(pictures, "a") == model.caption(pictures, "a")


def test_a_vqa_folder_has_its_processor(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path, "vqa", same_width=True, answers=ANSWERS)
    exported(checkpoint, tmp_path / "hf", transformers.BlipForQuestionAnswering)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    inputs = processor(images=Image.new("RGB", (50, 40)), text="is there a lesion", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    model = transformers.BlipForQuestionAnswering.from_pretrained(tmp_path / "hf")
    assert isinstance(processor.decode(model.generate(**inputs)[0], skip_special_tokens=True), str)
    assert model.generation_config.max_new_tokens == 10
