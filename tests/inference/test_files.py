"""`Predictor.write`, `answer` and `judge`, and the verbs over images, against direct calls of the models one by one."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from helpers.random_checkpoints import ANSWERS, CLOSE, QUESTIONS, all_checkpoints, noise_images
from helpers.running import code_and_text, run_verb
from helpers.set_files import hub_rows, put, put_parquet
from safetensors.torch import load_file, save_file
from torch import Tensor

import blip
from blip.checkpoints.format import CheckpointError
from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.inference.scoring import match_groups
from blip.models.answer_tree import AnswerTree
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.ranking import rank_answers
from blip.network.med import DecoderStep
from blip.network.packing import Rows, with_first


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return noise_images(tmp_path_factory.mktemp("images"))


# ---- writing ---------------------------------------------------------------------------------------------------------

WAYS = {
    "greedy": Decoding(max_new_tokens=8),
    "beams": Decoding(beams=3, num_return=2, max_new_tokens=8, min_new_tokens=2),
}


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("way", WAYS)
def test_captions_are_those_of_direct_calls(checkpoints: dict, images: list, way: str, batch_size: int) -> None:
    model = blip.load(checkpoints["caption"])
    words, how = model.tokenizer, WAYS[way]
    first = [words.dec_id, *words.encode(["a"], 40)[0][1:-1]]
    written = model.write(images, decoding=how, batch_size=batch_size)
    for image, several in zip(images, written, strict=True):
        states = model.model.image_encoder(model.pixels([image]))
        step = DecoderStep(model.model.text_decoder, model.model.text_decoder.image_keys(states))
        out = generate(step, torch.tensor([first]), how, end_id=words.sep_id, pad_id=words.pad_id)
        assert [one.text for one in several] == [words.decode(first + ids) for ids in out.ids.tolist()]
        assert [one.log_prob for one in several] == pytest.approx(out.log_probs.sum(dim=1).tolist(), abs=1e-5)
        assert len(several) == how.num_return
    assert [several[0].text for several in written] == model.caption(images, decoding=how, batch_size=batch_size)
    assert len({len(several[0].tokens) for several in written}) > 1, "captions must end at different lengths here"


@torch.no_grad()
@pytest.mark.parametrize("prompt", [None, "", "a large lesion"])
def test_log_probabilities_are_those_of_the_whole_text_at_once(checkpoints: dict, images: list, prompt: str) -> None:
    """No cache: the finished text goes through the decoder once."""
    model = blip.load(checkpoints["caption"])
    words, decoder = model.tokenizer, model.model.text_decoder
    prompt_ids = words.encode(["a" if prompt is None else prompt], 40)[0][1:-1]
    vocabulary = {words.token(i): i for i in range(words.size)}
    for image, (one, *_) in zip(images, model.write(images, prompt, WAYS["beams"]), strict=True):
        new = [vocabulary[token] for token in one.tokens]
        ids = torch.tensor([[words.dec_id, *prompt_ids, *new]])
        keys = decoder.image_keys(model.model.image_encoder(model.pixels([image])))
        states = decoder(ids, Rows(torch.tensor([ids.shape[1]]), ids.shape[1], ids.device), keys)
        each = decoder.head(states).log_softmax(dim=1)[len(prompt_ids) : -1].gather(1, torch.tensor(new)[:, None])
        assert one.token_log_probs == pytest.approx(each[:, 0].tolist(), abs=1e-5)
        assert one.log_prob == pytest.approx(sum(one.token_log_probs), abs=1e-5)
        assert one.text == words.decode(ids[0].tolist())


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_samples_follow_from_the_seed_and_the_image(checkpoints: dict, images: list, batch_size: int) -> None:
    """Not from the images that share a batch."""
    model, how = blip.load(checkpoints["caption"]), Decoding(sample=True, num_return=2, max_new_tokens=6)
    whole = model.write(images, decoding=how, seed=5, batch_size=batch_size)
    expected = model.write(images, decoding=how, seed=5)
    assert [[one.text for one in row] for row in whole] == [[one.text for one in row] for row in expected]
    seeds = [11, 12, 13]
    each = model.write(images[:3], decoding=how, seed=seeds, batch_size=batch_size)
    for image, seed, row in zip(images, seeds, each, strict=False):
        assert [one.text for one in model.write(image, decoding=how, seed=[seed])[0]] == [one.text for one in row]
    with pytest.raises(InputError, match="3 images and 2 seeds"):
        model.write(images[:3], decoding=how, seed=[1, 2])


def test_a_seed_repeats_samples(checkpoints: dict, images: list) -> None:
    model = blip.load(checkpoints["caption"])
    how = Decoding(sample=True, num_return=3, max_new_tokens=6)

    def texts(seed: int) -> list[str]:
        return [one.text for several in model.write(images, decoding=how, seed=seed) for one in several]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)
    assert len(texts(1)) == 9


# ---- answering -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def scores_of(model: Predictor, image: Path, question: str, answers: list[str], smoothing: float = 0.1) -> Tensor:
    """Log-probability of each answer, each alone in memory, its end included and smoothed as in training."""
    words, net = model.tokenizer, model.model
    ids = torch.tensor(words.encode([question], 40))
    rows = Rows(torch.tensor([ids.shape[1]]), ids.shape[1], ids.device)
    keys = net.text_encoder.image_keys(net.image_encoder(model.pixels([image])))
    states = net.text_encoder.multimodal(with_first(ids, words.enc_id), rows, keys)[None]
    scores = []
    for answer in answers:
        target = torch.tensor(words.encode([answer], 40))
        given = with_first(target, words.dec_id)
        rows = Rows(torch.tensor([target.shape[1]]), target.shape[1], target.device)
        log_probs = net.text_decoder.head(net.text_decoder(given, rows, net.text_decoder.image_keys(states)))[:-1]
        log_probs = log_probs.log_softmax(dim=1)
        right = log_probs.gather(1, target[0, 1:, None])[:, 0]
        scores.append(((1 - smoothing) * right + smoothing * log_probs.mean(dim=1)).sum())
    return torch.stack(scores)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_ranked_answers_are_those_of_one_by_one(checkpoints: dict, images: list, batch_size: int) -> None:
    model = blip.load(checkpoints["vqa"])
    found = model.answer(images, QUESTIONS, batch_size=batch_size)
    for answer, image, question in zip(found, images, QUESTIONS, strict=True):
        expected = scores_of(model, image, question, ANSWERS).softmax(dim=0)
        order = expected.argsort(descending=True).tolist()
        assert [text for text, _ in answer.candidates] == [ANSWERS[i] for i in order]
        assert [p for _, p in answer.candidates] == pytest.approx(expected[order].tolist(), abs=1e-5)
        assert (answer.text, answer.probability) == answer.candidates[0]
    assert len({answer.probability for answer in found}) == 3
    assert len(model.answer(images[0], "normal", k=2)[0].candidates) == 2


@pytest.mark.parametrize("how", [None, Decoding(beams=3, max_new_tokens=5)], ids=["ranked", "written"])
def test_padding_of_a_question_never_changes_an_answer(checkpoints: dict, images: list, how: Decoding | None) -> None:
    model = blip.load(checkpoints["vqa"])
    lengths = model.ids(QUESTIONS)[1].tolist()
    assert max(lengths) > 2 * min(lengths)
    together = model.answer([images[0]] * 3, QUESTIONS, decoding=how)
    for question, one in zip(QUESTIONS, together, strict=True):
        alone = model.answer(images[0], question, decoding=how)[0]
        assert one.text == alone.text
        assert one.probability == pytest.approx(alone.probability, abs=1e-6)


@torch.no_grad()
def test_written_answers_are_those_of_direct_calls(checkpoints: dict, images: list) -> None:
    model, how = blip.load(checkpoints["vqa"]), Decoding(beams=3, max_new_tokens=5)
    for image, question, one in zip(images, QUESTIONS, model.answer(images, QUESTIONS, decoding=how), strict=True):
        keys = model.model.question_keys(model.pixels([image]), *model.ids([question]))
        out = model.model.answer(keys, how, model.tokenizer.sep_id)
        assert one.text == model.tokenizer.decode(out.ids[0].tolist())
        assert one.probability == pytest.approx(math.exp(out.log_probs[0].sum()), abs=1e-5)
        assert not one.candidates


@torch.no_grad()
def test_long_answers_are_cut_as_in_training(checkpoints: dict, images: list) -> None:
    plain = blip.load(checkpoints["vqa"])
    model = Predictor(plain.model, plain.tokenizer, {**plain.info, "max_answer_tokens": 4})
    cut = [ids[1:-1] for ids in plain.tokenizer.encode(ANSWERS, 4)]
    assert max(map(len, cut)) == 2
    keys = plain.model.question_keys(plain.pixels(images[:1]), *plain.ids(["normal"]))
    ranked = rank_answers(
        plain.model.text_decoder, keys, AnswerTree(cut, plain.tokenizer.dec_id, plain.tokenizer.sep_id)
    )
    assert model.answer(images[0], "normal")[0].probability == pytest.approx(
        ranked.probabilities[0, 0].item(), abs=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_judgements_are_those_of_direct_calls(checkpoints: dict, images: list, batch_size: int) -> None:
    model = blip.load(checkpoints["nlvr"])
    right = images[1:] + images[:1]
    found = model.judge(images, right, QUESTIONS, batch_size=batch_size)
    for one, left_path, right_path, text in zip(found, images, right, QUESTIONS, strict=True):
        pixels = model.pixels([left_path, right_path])[None]
        expected = model.model(pixels, *model.ids([text])).softmax(dim=1)[0, 1]
        torch.testing.assert_close(one, expected, **CLOSE)
    swapped = model.judge(right, images, QUESTIONS)
    assert (found - swapped).abs().max() > 1e-4, "which image is the first must tell"
    assert model.judge([], [], []).shape == (0,)


def test_counts_that_do_not_fit(checkpoints: dict, images: list) -> None:
    with pytest.raises(ValueError, match="2 images and 3 questions"):
        blip.load(checkpoints["vqa"]).answer(images[:2], QUESTIONS)
    with pytest.raises(ValueError, match="3 and 2 images and 3 statements"):
        blip.load(checkpoints["nlvr"]).judge(images, images[:2], QUESTIONS)


# ---- verbs -----------------------------------------------------------------------------------------------------------


def rows(*arguments: str | Path) -> list[dict]:
    """What a verb prints with --json."""
    result = run_verb(*arguments, "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_caption_over_files_and_folders(checkpoints: dict, images: list, tmp_path: Path) -> None:
    folder, options = images[0].parent, ["--checkpoint", checkpoints["caption"], "--max_new_tokens", "6"]
    found = rows("caption", folder, *options)
    assert [row["image"] for row in found] == [str(path) for path in images]
    expected = blip.load(checkpoints["caption"]).write(images, decoding=Decoding(beams=3, max_new_tokens=6))
    assert [row["caption"] for row in found] == [several[0].text for several in expected]
    assert [row["log_prob"] for row in found] == pytest.approx([several[0].log_prob for several in expected])
    several = rows("caption", images[1], *options, "--num_return", "2")[0]
    assert several["captions"][0]["text"] == several["caption"]
    assert len(several["captions"]) == 2
    assert len(several["captions"][0]["tokens"]) == len(several["captions"][0]["token_log_probs"])
    assert [row["caption"] for row in rows("caption", *images, *options, "--batch_size", "1")] == [
        row["caption"] for row in found
    ]


def test_caption_to_a_table_or_a_file(checkpoints: dict, images: list, tmp_path: Path) -> None:
    command = ["caption", str(images[0]), "--checkpoint", str(checkpoints["caption"]), "--prompt", "a large"]
    shown = run_verb(*command, env={"COLUMNS": "250"})
    assert shown.exit_code == 0 and "a large" in shown.stdout and "log_prob" in shown.stdout
    written = run_verb(*command, "--out", tmp_path / "new" / "rows.json")
    assert written.exit_code == 0 and written.stdout.startswith("1 rows: ")
    assert json.loads((tmp_path / "new" / "rows.json").read_text())[0]["caption"].startswith("a large")


def test_caption_samples_by_its_seed(checkpoints: dict, images: list) -> None:
    command = ["caption", *images, "--checkpoint", checkpoints["caption"], "--sample", "--top_p", "1.0"]
    assert rows(*command, "--seed", "3") == rows(*command, "--seed", "3")
    assert rows(*command, "--seed", "3") != rows(*command, "--seed", "4")
    captions = [row["caption"] for row in rows(*command, "--seed", "3")]
    assert [row["caption"] for row in rows(*command, "--seed", "3", "--batch_size", "2")] == captions
    model, how = blip.load(checkpoints["caption"]), Decoding(sample=True, max_new_tokens=30)
    assert [several[0].text for several in model.write(images, decoding=how, seed=3)] == captions


def test_match_gives_each_image_with_each_text(checkpoints: dict, images: list) -> None:
    found = rows("match", images[0].parent, "normal", "a lesion", "--checkpoint", checkpoints["retrieval"])
    assert [(row["image"], row["text"]) for row in found] == [
        (str(path), text) for path in images for text in ("normal", "a lesion")
    ]
    model = blip.load(checkpoints["retrieval"])
    for row in found:
        assert row["match_probability"] == pytest.approx(
            model.match_probability(row["image"], row["text"]).item(), abs=1e-5
        )
        assert row["itc_score"] == pytest.approx(model.itc_score(row["image"], row["text"]).item(), abs=1e-5)


def test_answer_from_the_models_list_from_another_or_freely(checkpoints: dict, images: list, tmp_path: Path) -> None:
    model, command = blip.load(checkpoints["vqa"]), ["answer", images[0], QUESTIONS[1], QUESTIONS[0]]
    command += ["--checkpoint", checkpoints["vqa"]]
    expected = model.answer(images[0], [QUESTIONS[1], QUESTIONS[0]])
    found = rows(*command)
    assert [row["question"] for row in found] == [QUESTIONS[1], QUESTIONS[0]]
    assert [row["answer"] for row in found] == [one.text for one in expected]
    assert [row["probability"] for row in found] == pytest.approx([one.probability for one in expected], abs=1e-5)
    assert [text for text, _ in found[0]["candidates"]] == [text for text, _ in expected[0].candidates[:5]]
    (tmp_path / "answers.txt").write_text("left\n\nright lung\n")
    assert {text for text, _ in rows(*command, "--answers", tmp_path / "answers.txt")[0]["candidates"]} == {
        "left", "right lung",
    }  # fmt: skip
    freely = rows(*command, "--generate")[0]
    assert (
        freely["answer"] == model.answer(images[0], QUESTIONS[1], decoding=Decoding(beams=3, max_new_tokens=10))[0].text
    )
    assert "candidates" not in freely


def test_the_verbs_take_images_in_the_same_way(checkpoints: dict, images: list, tmp_path: Path) -> None:
    records = [{"image": str(path), "caption": "a"} for path in (images[2], images[0], images[2])]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    places, taken = [tmp_path / "captions.json", images[1]], [str(images[i]) for i in (2, 0, 1)]
    options = {
        "caption": (checkpoints["caption"], []),
        "match": (checkpoints["retrieval"], ["--text", "normal", "--text", "a lesion"]),
        "answer": (checkpoints["vqa"], ["--question", QUESTIONS[0], "--question", QUESTIONS[1]]),
    }
    for verb, (checkpoint, texts) in options.items():
        found = rows(verb, *places, *texts, "--checkpoint", checkpoint)
        each = [path for path in taken for _ in texts[::2] or [""]]
        assert [row["image"] for row in found] == each, verb
    behind = rows("match", tmp_path / "captions.json", "normal", "a lesion", "--checkpoint", checkpoints["retrieval"])
    by_option = rows("match", *places, *options["match"][1], "--checkpoint", checkpoints["retrieval"])
    assert behind == by_option[:4]


@pytest.mark.parametrize("verb", ["match", "answer"])
def test_places_are_not_taken_for_texts(verb: str, checkpoints: dict, images: list) -> None:
    option = {"match": "--text", "answer": "--question"}[verb]
    command = [verb, str(images[0]), str(images[1]), "normal", "--checkpoint", str(checkpoints["vqa"])]
    result = run_verb(*command)
    assert result.exit_code == 1 and f"{images[1]} is a file or folder: for several places" in result.output
    assert option in result.output
    nothing = run_verb(verb, images[0], "--checkpoint", checkpoints["vqa"])
    assert nothing.exit_code == 2 and option in nothing.output


# ---- results that are no numbers -------------------------------------------------------------------------------------


def overflowing(folder: Path, name: str, tmp_path: Path) -> Path:
    """A copy of a checkpoint with finite weights, of which those of `name` are too large to compute with."""
    shutil.copytree(folder, tmp_path / "large")
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * 1e37
    save_file(tensors, tmp_path / "large" / "model.safetensors")
    return tmp_path / "large"


@pytest.mark.parametrize(("verb", "task", "arguments"), [
    ("caption", "caption", []),
    ("caption", "caption", ["--sample"]),
    ("caption", "caption", ["--beams", "1"]),
    ("match", "retrieval", ["normal"]),
    ("answer", "vqa", [QUESTIONS[0]]),
    ("answer", "vqa", [QUESTIONS[0], "--generate"]),
])  # fmt: skip
def test_results_that_are_not_numbers_are_refused(
    checkpoints: dict, images: list, tmp_path: Path, *, verb: str, task: str, arguments: list[str]
) -> None:
    large = overflowing(checkpoints[task], "image_encoder.blocks.0.mlp.0.weight", tmp_path)
    out = tmp_path / "out.json"
    result = run_verb(verb, images[0], *arguments, "--checkpoint", large, "--out", out)
    assert result.exit_code == 1 and not out.exists()
    assert "weights are too large" in " ".join(result.output.split()) and "Traceback" not in result.output


def test_features_and_scores_that_are_not_numbers(checkpoints: dict, images: list, tmp_path: Path) -> None:
    model = blip.load(overflowing(checkpoints["retrieval"], "image_encoder.blocks.0.mlp.0.weight", tmp_path))
    for compute in (
        lambda: model.encode_image(images),
        lambda: model.match_probability(images, "normal"),
        lambda: model.match_all(images, torch.zeros(1, model.info["embed_dim"]), "normal"),
        lambda: match_groups(model, images, [["normal"]] * len(images)),
    ):
        with pytest.raises(CheckpointError, match="infinite or not a number"):
            compute()


# ---- what shells leave of a command ----------------------------------------------------------------------------------


def test_a_question_without_quotation_marks_is_noticed(checkpoints: dict, images: list) -> None:
    words = ["is", "there", "a", "lesion"]
    done = run_verb("answer", images[0], *words, "--checkpoint", checkpoints["vqa"])
    assert done.exit_code == 1 and "4 questions of one word each" in done.stderr
    assert f"{images[0]} 'is there a lesion'" in done.stderr
    assert "--question is --question there --question a --question lesion" in done.stderr
    for given in (["is there a lesion"], ["where?", "what?"], ["lesion"]):
        assert run_verb("answer", images[0], *given, "--checkpoint", checkpoints["vqa"]).exit_code == 0
    given = [word for one in words for word in ("--question", one)]
    assert run_verb("answer", images[0], *given, "--checkpoint", checkpoints["vqa"]).exit_code == 0


def test_single_words_are_matched_with_a_note(checkpoints: dict, images: list) -> None:
    done = run_verb("match", images[0], "normal", "lesion", "--checkpoint", checkpoints["retrieval"])
    assert done.exit_code == 0 and "2 words is a text of its own" in done.stderr and "'normal lesion'" in done.stderr
    done = run_verb("match", images[0], "a lesion", "none", "--checkpoint", checkpoints["retrieval"])
    assert done.exit_code == 0 and not done.stderr


@pytest.mark.parametrize("name", ["caps.html", "caps.csv", "caps.txt", "caps.jsonl"])
def test_json_is_not_written_under_another_ending(name: str, checkpoints: dict, images: list, tmp_path: Path) -> None:
    done = run_verb("caption", images[0], "--checkpoint", checkpoints["caption"], "--out", tmp_path / name)
    assert done.exit_code == 1 and "writes JSON" in done.stderr and "choose caps.json" in done.stderr
    assert not list(tmp_path.iterdir())


def test_verbs_read_what_training_reads(checkpoints: dict, images: list, tmp_path: Path) -> None:
    put_parquet(tmp_path / "x.parquet", hub_rows(3, Frage="what is", answer="left"))
    put(tmp_path / "roco/radiologytestdata.csv", f"id,name,caption\nROCO_1,{images[0]}, axial CT\n")
    columns, model = ["--columns", "question=Frage"], ["--checkpoint", checkpoints["vqa"]]
    asked = rows("answer", tmp_path / "x.parquet", *columns, *model, "--limit", 2)
    assert [(row["question"], row["truth"]) for row in asked] == [("what is 0", ["left 0"]), ("what is 1", ["left 1"])]
    (one,) = rows("answer", f"{tmp_path}/x.parquet#2", "what?", *model)
    assert one["image"].endswith("x.parquet#2") and "truth" not in one
    model = ["--checkpoint", checkpoints["caption"]]
    assert len(rows("caption", tmp_path / "x.parquet", *model)) == 3
    (one,) = rows("caption", tmp_path / "roco", "--dataset", "roco", "--split", "test", *model)
    assert one["image"] == str(images[0])


def test_match_takes_the_captions_of_records(checkpoints: dict, images: list, tmp_path: Path) -> None:
    records = [{"image": str(image), "caption": [f"normal {i}", "a lesion"][: i + 1]} for i, image in enumerate(images)]
    model = ["--checkpoint", checkpoints["retrieval"]]
    found = rows("match", put(tmp_path / "c.json", records), *model)
    assert [row["text"] for row in found] == ["normal 0", "normal 1", "a lesion", "normal 2", "a lesion"]
    (one,) = (row for row in rows("match", images[1], "a lesion", *model))
    assert {key: found[2][key] for key in ("match_probability", "itc_score")} == pytest.approx(
        {key: one[key] for key in ("match_probability", "itc_score")}, abs=1e-5
    )
    assert len(rows("match", tmp_path / "c.json", *model, "--limit", 2)) == 3
    two = put(tmp_path / "s.json", [{"images": [str(images[0])] * 2, "sentence": "same", "label": True}])
    assert "has 2 images" in " ".join(run_verb("match", two, *model).output.split())
    code, said = code_and_text("match", put_parquet(tmp_path / "x.parquet", hub_rows(1, Befund="a")), *model)
    assert code != 0 and "there is no text" in said and "caption=NAME gives the name" in said
    code, said = code_and_text("match", images[0], *model)
    assert code != 0 and "there is no text" in said and "caption=NAME" not in said
