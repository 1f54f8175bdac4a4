"""Maps follow the published formulas, a word is the sum of its pieces, and the pictures show the maps."""

import inspect
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden_numbers import Golden
from helpers.running import code_and_text
from PIL import Image
from torch import Tensor, nn

import blip
from blip.checkpoints.format import load_strict
from blip.data.images import find_images
from blip.errors import InputError
from blip.inference.cli import caption
from blip.inference.inputs import CAPTIONS
from blip.inference.predictor import Predictor
from blip.inference.scoring import answer_log_probs, caption_log_probs
from blip.interpret.cli import explain
from blip.interpret.explain import Explanation, explain_pairs, word_spans
from blip.interpret.explain_files import How, Wanted, explain_files, find_pairs
from blip.interpret.maps import METHODS
from blip.interpret.pictures import PictureError, blend, figure, page_of
from blip.interpret.recording import TraceError
from blip.models.decoding import Decoding
from blip.models.matching import match_logits
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.packing import with_first

run_explain = partial(code_and_text, "explain")
TEXTS = ["head with a small bright round lesion", "chest", "a dark square"]


# ---- the published formula -------------------------------------------------------------------------------------------


def naive_gradcam(
    model: PretrainModel | RetrievalModel, layer: int, images: Tensor, ids: Tensor, lengths: Tensor
) -> list:
    """Pair by pair: mean over heads of A[t, 1:] * max(ds/dA[t, 1:], 0), with the soft-max written out and autograd."""
    maps = []
    for image, row, length in zip(images, ids, lengths.tolist(), strict=True):
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: tuple, output: Tensor, kept: list[Tensor] = kept) -> None:
            output.retain_grad()
            kept.append(output)

        handle = model.text_encoder.layers[layer].cross_attention.attention.pattern.register_forward_hook(keep)
        keys = model.text_encoder.image_keys(model.image_encoder(image[None]))
        logits = match_logits(
            model.text_encoder, model.itm_head, row[None, :length], lengths=torch.tensor([length]), keys=keys
        )
        model.zero_grad()
        logits[0, 1].backward()
        handle.remove()
        pattern, grad = kept[0].detach()[0], kept[0].grad[0]  # (H, T, 1+N)
        words = []
        for t in range(pattern.shape[1]):
            heads = [pattern[h, t, 1:] * grad[h, t, 1:].clamp(min=0) for h in range(pattern.shape[0])]
            words.append(sum(heads) / len(heads))
        maps.append(torch.stack(words))
    return maps


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["itm", "retrieval"])
def test_maps_of_published_checkpoints_follow_the_published_formula(golden_dir: Path, kind: str) -> None:
    golden = Golden(golden_dir, kind)
    made = RetrievalModel(golden.vit, golden.text, golden.specials, embed_dim=golden.info["embed_dim"])
    golden.model_tensors.setdefault("temperature", made.temperature.detach())
    load_strict(made, golden.model_tensors, kind)
    made.eval()
    what = "captions" if "captions" in golden.settings else "texts"
    ids, lengths = golden.ids(what)
    ids = with_first(ids, golden.specials.enc)
    images = golden.numbers["image0"][: len(ids)]
    last = golden.text.layers - 1
    for layer in range(golden.text.layers):
        site = f"text.{layer}.cross"
        with blip.trace(made, f"{site}.*", grads=True) as t:
            keys = made.text_encoder.image_keys(made.image_encoder(images))
            logits = match_logits(made.text_encoder, made.itm_head, ids, lengths=lengths, keys=keys)
            logits[:, 1].sum().backward()
        found = blip.gradcam(t, site)
        expected = naive_gradcam(made, layer, images, ids, lengths)
        assert any(x.abs().max() > 1e-8 for x in expected)
        for i, length in enumerate(lengths.tolist()):
            rows = 1 if layer == last else length
            assert torch.allclose(found[i, :rows].flatten(1), expected[i], atol=1e-7, rtol=1e-4)
            assert (found[i, rows:] == 0).all()


def test_words_sum_their_pieces_and_leave_special_tokens_out(model: Predictor, pictures: list[Path]) -> None:
    text = "head with an unheardof lesion"
    (found,) = explain_pairs(model, pictures[0], text, method="gradcam")
    spans = word_spans(model, text)
    assert " ".join(found.words) == text and any(span.stop - span.start > 1 for _, span in spans)
    with blip.trace(model, "text.0.cross.*", grads=True) as t:
        model.match_logits(pictures[0], text)[:, 1].sum().backward()
    cam = blip.gradcam(t, "text.0.cross")[0]
    assert torch.allclose(found.maps, torch.stack([cam[span].sum(0) for _, span in spans]))
    assert torch.allclose(found.sentence, cam[1:-1].mean(0))
    assert found.score == pytest.approx(float(model.match_logits(pictures[0], text)[0, 1]))


def test_a_caption_word_is_read_where_it_was_written(model: Predictor, pictures: list[Path]) -> None:
    text = TEXTS[0]
    (found,) = explain_pairs(model, pictures[0], text, task="caption", method="gradcam", layer=1)
    for word in range(len(found.words)):
        with blip.trace(model, "decoder.1.cross.*", grads=True) as t:
            caption_log_probs(model, pictures[:1], [text])[0, word].backward()  # of token word+1, at row word
        assert torch.allclose(found.maps[word], blip.gradcam(t, "decoder.1.cross")[0, word], atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["match", "caption"])
def test_batched_equals_one_by_one(model: Predictor, pictures: list[Path], task: str, method: str) -> None:
    together = explain_pairs(model, pictures, TEXTS, task=task, method=method)
    for one, picture, text in zip(together, pictures, TEXTS, strict=True):
        (alone,) = explain_pairs(model, picture, text, task=task, method=method)
        assert alone.words == one.words == text.split()
        assert one.maps.shape == (len(one.words), 2, 2) and one.maps.isfinite().all()
        assert torch.allclose(one.maps, alone.maps, atol=1e-6) and torch.allclose(
            one.sentence, alone.sentence, atol=1e-6
        )
        assert method in ("raw", "rollout", "relevance") or one.maps.min() >= 0


def test_relevance_follows_chefers_rules(model: Predictor, pictures: list[Path]) -> None:
    """Written out for one pair with matrices of numpy."""
    (found,) = explain_pairs(model, pictures[0], TEXTS[0], method="relevance")
    with blip.trace(model, "*", grads=True) as t:
        model.match_logits(pictures[0], TEXTS[0])[:, 1].sum().backward()

    def weighted(site: str, rows: int) -> np.ndarray:
        product = (t.pattern(site) * t.pattern_grad(site))[0].clamp(min=0).mean(0).numpy()
        return np.vstack([product, np.zeros((rows - len(product), product.shape[1]))])

    def bar(r: np.ndarray) -> np.ndarray:
        rest = r - np.eye(len(r))
        sums = rest.sum(1, keepdims=True)
        return np.divide(rest, sums, out=np.zeros_like(rest), where=sums != 0) + np.eye(len(r))

    tokens = len(model.ids([TEXTS[0]])[0][0])
    images, texts, both = np.eye(5), np.eye(tokens), np.zeros((tokens, 5))
    for layer in range(2):
        images = images + weighted(f"image.{layer}.attn", 5) @ images
    for layer in range(2):
        a = weighted(f"text.{layer}.self", tokens)
        both, texts = both + a @ both, texts + a @ texts
        both = both + bar(texts).T @ weighted(f"text.{layer}.cross", tokens) @ bar(images)
    assert np.allclose(found.sentence.flatten().numpy(), both[0, 1:], atol=1e-6)
    assert np.allclose(found.maps[0].flatten().numpy(), both[1, 1:], atol=1e-6)


def test_scores_of_given_texts_are_those_of_writing(model: Predictor, pictures: list[Path]) -> None:
    prompt = "head with a"  # what a random model writes seldom survives being read again; its first token is compared
    (several,) = model.write(pictures[:1], prompt, Decoding(max_new_tokens=1))
    ids = model.ids([prompt])[0]
    first = model.model.text_decoder
    each = caption_log_probs(model, pictures[:1], [prompt])
    assert each.shape == (1, ids.shape[1] - 1) and (each < 0).all()
    with blip.trace(model, "decoder.1.out") as t:
        caption_log_probs(model, pictures[:1], [prompt])
    last_word = first.head(t["decoder.1.out"])[0, -2].log_softmax(-1)  # after the prompt, where writing begins
    assert several[0].token_log_probs[0] == pytest.approx(float(last_word.detach().max()), abs=1e-5)


def test_words_are_shown_as_they_are_written(model: Predictor, pictures: list[Path]) -> None:
    text = "Head, \u00e9t\u00e9 \u65e5 lesion"
    (found,) = explain_pairs(model, pictures[0], text)
    assert found.words == ["Head", ",", "\u00e9t\u00e9", "\u65e5", "lesion"]


def test_relevance_needs_an_image_a_text(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, ["image.*", "text.*"], grads=True) as t:
        model.match_logits(pictures[0], TEXTS)[:, 1].sum().backward()
    with pytest.raises(TraceError, match="here are 1 and 3"):
        blip.interpret.maps.relevance(t, "text.0.cross")


def test_maps_of_frozen_models(tiny_checkpoint: Path, pictures: list[Path]) -> None:
    frozen, free = blip.load(tiny_checkpoint), blip.load(tiny_checkpoint)
    frozen.model.requires_grad_(False)
    for method in METHODS:
        (one,), (other,) = (explain_pairs(m, pictures[0], TEXTS[0], method=method) for m in (frozen, free))
        assert torch.allclose(one.maps, other.maps, atol=1e-7)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_map_covers_the_image_whatever_its_shape() -> None:
    values = torch.zeros(4, 4)
    values[0, 3] = 1  # upper right
    for size in ((400, 100), (30, 90), (64, 64)):
        drawn = np.asarray(blend(Image.new("RGB", size), values)).sum(axis=2)
        assert drawn.shape == (size[1], size[0])
        y, x = np.unravel_index(drawn.argmax(), drawn.shape)
        assert x > 0.75 * size[0] and y < 0.25 * size[1]
    assert (np.asarray(blend(Image.new("RGB", (8, 8), "grey"), torch.zeros(4, 4))) == 128).all()


@pytest.mark.parametrize("size", [(20, 12), (900, 300), (64, 640)])
def test_figures_of_small_large_and_narrow_images(model: Predictor, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    text = " ".join(TEXTS) + " $100 <b>"
    (found,) = explain_pairs(model, image, text)
    page = figure(image, found)
    assert page.width > 400 and np.asarray(page).std() > 10
    html = page_of([image], [found], ["a<b>.png"])
    assert "not for diagnosis" in html and "<b>.png" not in html and "a&lt;b&gt;.png" in html
    assert html.count("<figure>") == 2 + len(found.words)
    assert "http" not in re.sub(r"base64,[\w+/=]+|http-equiv", "", html)  # noise may spell it


def test_figures_show_any_text() -> None:
    maps = torch.ones(1, 2, 2)
    image = Image.new("RGB", (40, 30), "grey")
    for text in ("a\x00b \ud800 \x1b", "word " * 200_000, "x" * 1_000_000):
        drawn = figure(image, Explanation("match", "raw", 0, text, text, 1.0, [text], maps=maps, sentence=maps[0]))
        assert drawn.width > 400 and np.asarray(drawn).std() > 10


@pytest.mark.parametrize("ending", ["png", "html", "npz"])
def test_command_for_an_image(tiny_checkpoint: Path, pictures: list[Path], tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"map.{ending}"
    code, said = run_explain(pictures[0], "small bright lesion", "--checkpoint", tiny_checkpoint, "--out", out)
    assert code == 0 and out.stat().st_size > 300, said
    if ending == "npz":
        with np.load(out) as file:
            assert file["words_0"].tolist() == ["small", "bright", "lesion"] and file["maps_0"].shape == (3, 2, 2)
            assert (
                str(file["about_0"]) == "match, relevance, all layers; not for diagnosis"
                and str(file["answer_0"]) == ""
            )


def test_command_for_folders_and_files(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray((np.arange(48 * 60).reshape(60, 48) * 20).astype(np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (30, 50), "grey").save(folder / "grey.jpg")
    (folder / "broken.png").write_bytes(b"no image")
    code, said = run_explain(folder, "a lesion", "--checkpoint", tiny_checkpoint, "--out", tmp_path / "m.png")
    assert code == 1 and "broken.png" in said
    assert sorted(p.name for p in tmp_path.glob("m_*.png")) == ["m_0000.png", "m_0001.png"]

    records = json.loads((phantoms / "captions.json").read_text())[:3]
    chosen = phantoms / "three.json"
    chosen.write_text(json.dumps(records))
    options = ["--checkpoint", tiny_checkpoint, "--task", "caption", "--method", "rollout"]
    code, said = run_explain(chosen, *options, "--out", tmp_path / "all.html")
    assert code == 0 and (tmp_path / "all.html").read_text().count("<section>") == 3, said


# ---- whose words they are ----------------------------------------------------------------------------------------


@pytest.fixture
def three(phantoms: Path) -> Path:
    """An annotation file of three captioned images."""
    file = phantoms / "three.json"
    file.write_text(json.dumps(json.loads((phantoms / "captions.json").read_text())[:3]))
    return file


def test_the_caption_that_is_explained_is_the_one_that_is_written(
    model: Predictor, three: Path, tmp_path: Path
) -> None:
    wanted = list(find_pairs(three, []))
    for decoding in (CAPTIONS, Decoding(beams=2, max_new_tokens=30)):
        how = How(task="caption", decoding=decoding)
        files, problems = explain_files(model, wanted, tmp_path / "all.npz", how)
        assert files and not problems
        with np.load(files[0]) as file:
            said = [str(file[f"text_{i}"]) for i in range(3)]
            assert [str(file[f"text_is_{i}"]) for i in range(3)] == ["predicted"] * 3
            assert [str(file[f"truth_{i}"]) for i in range(3)] == [one.text for one in wanted]
        assert said == model.caption([one.image for one in wanted], decoding=decoding)
    _, problems = explain_files(model, wanted, tmp_path / "true.npz", How(task="caption", target="true"))
    with np.load(tmp_path / "true.npz") as file:
        assert str(file["text_0"]) == wanted[0].text and str(file["text_is_0"]) == "true" and not str(file["truth_0"])


def test_blip_caption_writes_as_its_maps_assume() -> None:
    options = inspect.signature(caption).parameters
    usual = Decoding(beams=3, max_new_tokens=options["max_new_tokens"].default)
    assert usual == CAPTIONS and options["beams"].default is None  # which is 3 without sampling
    assert inspect.signature(explain).parameters["beams"].default == CAPTIONS.beams


def test_the_answer_of_a_record_is_never_shown_as_the_models(
    tiny_checkpoint: Path, pictures: list[Path], tmp_path: Path
) -> None:
    m = vqa_model(tiny_checkpoint)
    m.info["answers"] = ["round", "square"]
    questions = [
        Wanted(picture, "what shape?", "triangle", of_record=True, truth="triangle") for picture in pictures[:2]
    ]
    explain_files(m, questions, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    (own,) = {answer.text for answer in m.answer(pictures[:2], ["what shape?"] * 2)}
    assert page.count(f"predicted answer: <b>{own}</b>") == page.count("true answer: <b>triangle</b>") == 2
    explain_files(m, questions, tmp_path / "page.html", How(target="true"))
    page = (tmp_path / "page.html").read_text()
    assert page.count("true answer: <b>triangle</b>") == 2 and "predicted" not in page
    explain_files(m, [Wanted(pictures[0], "what shape?", "oval")], tmp_path / "page.html")
    assert "given answer: <b>oval</b>" in (tmp_path / "page.html").read_text()


def test_one_bad_record_does_not_end_the_rest(model: Predictor, three: Path, tmp_path: Path) -> None:
    records = json.loads(three.read_text())
    records[0]["caption"] = ""
    records[1]["caption"] = "lesion " * 200
    records += [{"image": records[2]["image"], "caption": "a\u0000b"}, {"image": 3}]
    three.write_text(json.dumps(records))
    problems: list[str] = []
    wanted = list(find_pairs(three, [], problems))
    assert len(wanted) == 2 and re.findall(r"record \d", " ".join(problems)) == ["record 1", "record 4", "record 5"]
    _, unusable = explain_files(model, wanted, tmp_path / "all.html", How(task="match"))
    assert (tmp_path / "all.html").read_text().count("<section>") == 1 and len(unusable) == 1
    assert "the model reads 32" in unusable[0]
    with pytest.raises(PictureError, match="the model reads 32"):
        explain_files(model, wanted[:1], tmp_path / "none.html", How(task="match"))
    _, unusable = explain_files(model, wanted, tmp_path / "own.html", How(task="caption"))  # needs none of them
    assert not unusable and (tmp_path / "own.html").read_text().count("<section>") == 2


def test_what_a_model_writes_may_be_empty(
    model: Predictor, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = iter(["a lesion", "", "chest"])
    monkeypatch.setattr(Predictor, "caption", lambda m, images, **options: [next(captions) for _ in images])
    _, problems = explain_files(model, list(find_pairs(three, [])), tmp_path / "all.html", How(task="caption"))
    assert len(problems) == 1 and "000001.png: the model's text '' is empty" in problems[0]
    assert (tmp_path / "all.html").read_text().count("<section>") == 2


def test_a_map_of_the_image_alone(model: Predictor, pictures: list[Path], tmp_path: Path) -> None:
    for options in ({"method": "rollout"}, {"task": "image"}, {"task": "image", "method": "rollout"}):
        (found,) = explain_pairs(model, pictures[0], **options)
        with blip.trace(model, "image.*.attn.*") as t:
            model.encode_image(pictures[:1])
        expected = blip.attention_rollout(t)[0, 0, 1:].unflatten(0, (2, 2))
        assert torch.allclose(found.sentence, expected, atol=1e-6) and found.words == [] and found.task == "image"
    with pytest.raises(InputError, match="rollout, not by gradcam"):
        explain_pairs(model, pictures[0], task="image", method="gradcam")
    with pytest.raises(InputError, match="leave out 'a lesion'"):
        explain_pairs(model, pictures[0], "a lesion", task="image")
    explain_files(model, [Wanted(pictures[0], "")], tmp_path / "map.html", How(method="rollout"))
    assert "The image alone" in (tmp_path / "map.html").read_text()


def test_command_explains_the_first_records(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.html"
    options = ["--checkpoint", tiny_checkpoint, "--out", out]
    code, said = run_explain(phantoms / "captions.json", *options)
    count = len(json.loads((phantoms / "captions.json").read_text()))
    assert code == 0 and count > 20 and "the first 20 are explained; --limit 0 explains all" in said, said
    assert out.read_text().count("<section>") == 20
    code, said = run_explain(phantoms / "captions.json", *options, "--limit", "2", "--overwrite")
    assert code == 0 and out.read_text().count("<section>") == 2, said


@pytest.mark.real_data
def test_pages_of_real_images_stay_small(model: Predictor, data_dir: Path, tmp_path: Path) -> None:
    images = find_images([data_dir / "vqa_rad"])[:8]
    text = "a b c d e f g h"  # eight words, ten panels
    explain_files(model, [Wanted(image, text) for image in images], tmp_path / "page.html", How(task="match"))
    assert (tmp_path / "page.html").stat().st_size / len(images) < 100_000  # 80 of them: below 8 MB


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("", {}, "text 1 is empty"),
        ("\u200b", {}, "text 1 is empty"),
        (["a", "b", ""], {"answers": ["c", "d"]}, "3 images and 3 texts and 2 answers: give as many"),
        ("a", {"batch_size": 0}, "batch_size is 0"),
        ("a", {"task": "caption", "rows": "enc"}, "no .ENC. row"),
        ("head " * 60, {}, r"text 1 has 6\d tokens, the model reads 32"),
        ("a", {"layer": 1, "method": "gradcam"}, r"layer 1 is the last one.*rows=enc"),
        ("a", {"layer": 5}, "layers 0 to 1"),
        ("a", {"layer": -1}, "layers 0 to 1"),
        ("a", {"method": "lime"}, "gradcam, raw, relevance, rollout"),
        ("a", {"task": "translate"}, "match, caption, answer"),
        ("a", {"rows": "all"}, "words or enc"),
        ("a", {"task": "answer"}, "cannot answer questions"),
        (["a", "b"], {}, "give as many"),
        ([], {}, "give as many"),
    ],
)
def test_impossible_wishes(
    model: Predictor, pictures: list[Path], texts: str | list, options: dict, message: str
) -> None:
    with pytest.raises((ValueError, blip.interpret.recording.TraceError, blip.errors.BlipError), match=message):
        explain_pairs(model, pictures, texts, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{image}", "a", "--out", "map.pdf"], "has to end in .png, .html, .npz"),
        (["{image}", "a", "--method", "raw", "--layer", "1", "--out", "{tmp}/m.png"], "rows=enc"),
        (["nowhere.png", "a", "--out", "{tmp}/m.png"], "no such file"),
        (["{json}", "a", "--out", "{tmp}/m.png"], "has its own texts"),
    ],
)
def test_command_with_bad_input(
    tiny_checkpoint: Path, pictures: list[Path], phantoms: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"image": pictures[0], "tmp": tmp_path, "json": phantoms / "captions.json"}
    code, said = run_explain(*(a.format(**places) for a in arguments), "--checkpoint", tiny_checkpoint)
    assert code != 0 and message in said, said


def test_several_places_with_texts_by_option(tiny_checkpoint: Path, pictures: list[Path], tmp_path: Path) -> None:
    out, texts = tmp_path / "maps.npz", ["--text", "head", "--question", "where?"]
    code, said = run_explain(*pictures[:2], *texts, "--out", out, "--checkpoint", tiny_checkpoint)
    assert code == 0 and said.startswith("4 explained: "), said
    code, said = run_explain(*pictures[:2], "--out", out, "--checkpoint", tiny_checkpoint)
    assert code == 1 and f"{pictures[1]} is a file or folder" in said, said


def test_maps_need_patches(model: Predictor, pictures: list[Path]) -> None:
    with blip.trace(model, "text.0.self.*", grads=True) as t:
        model.match_logits(pictures, TEXTS)[:, 1].sum().backward()
    with pytest.raises(TraceError, match="does not attend to the patches"):
        blip.gradcam(t, "text.0.self")


def vqa_model(tiny_checkpoint: Path) -> Predictor:
    """A model of random weights that answers questions."""
    base = blip.load(tiny_checkpoint)
    torch.manual_seed(0)
    sizes = base.model.image_encoder.config, base.model.text_encoder.config
    return Predictor(VqaModel(*sizes, base.tokenizer.specials), base.tokenizer, {**base.info, "task": "vqa"})


def test_questions_through_the_question_encoder(tiny_checkpoint: Path, pictures: list[Path]) -> None:
    m = vqa_model(tiny_checkpoint)
    questions = ["what shape is the lesion?", "where?"]
    found = explain_pairs(m, pictures[:2], questions, answers=["round", "upper left"], method="gradcam")
    assert [one.answer for one in found] == ["round", "upper left"] and found[0].layer == 1
    expected = answer_log_probs(m, pictures[:2], questions, answers=["round", "upper left"])
    assert [one.score for one in found] == pytest.approx(expected.tolist())
    with blip.trace(m, "text.1.cross.*", grads=True) as t:
        answer_log_probs(m, pictures[1:2], questions[1:], answers=["upper left"]).sum().backward()
    word, span = word_spans(m, "where?")[0]
    assert word == "where"
    assert torch.allclose(found[1].maps[0], blip.gradcam(t, "text.1.cross")[0, span].sum(0), atol=1e-9)
    with pytest.raises(TraceError, match="cannot match"):
        explain_pairs(m, pictures[:1], "where?", task="match")
