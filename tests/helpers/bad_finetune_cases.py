"""What users get wrong with the fine-tuning scripts and with `blip caption`, `answer` and `match`.

SCRIPTS: (name, task, arguments, regular expression of the message); VERBS: (name, arguments, regular expression).
In arguments FOLDER is an empty folder, START a checkpoint of pre-training, DATA the phantoms; what a function makes in
FOLDER comes first.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from blip.checkpoints.convert import read
from blip.checkpoints.format import save_weights
from blip.tokenizer import Tokenizer

Make = Callable[[Path, Path], list[str]]  # (FOLDER, START) -> arguments
NO_WORD = "\u200b"  # a character without width: the tokenizer leaves nothing of it


def given(*arguments: str) -> Make:
    return lambda folder, start: list(arguments)


def options(*pairs: str) -> Make:
    return lambda folder, start: [x for pair in pairs for x in ("--set", pair)]


def file(name: str, content: str, *arguments: str) -> Make:
    def make(folder: Path, start: Path) -> list[str]:
        (folder / name).write_text(content, encoding="utf-8")
        return list(arguments)

    return make


def answers(name: str, content: str) -> Make:
    return file(name, content, "--set", f"answer_file=FOLDER/{name}")


def copied(start: Path, folder: Path, **info: object) -> Path:
    """The checkpoint with another `model.json`; None takes an entry out."""
    target = folder / "copy"
    shutil.copytree(start, target)
    about = {**json.loads((start / "model.json").read_text()), **info}
    (target / "model.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return target


def another_info(**info: object) -> Make:
    return lambda folder, start: ["--init_from", str(copied(start, folder, **info))]


def without_tokenizer(folder: Path, start: Path) -> list[str]:
    (copied(start, folder) / "tokenizer.json").unlink()
    return ["--init_from", "FOLDER/copy"]


def other_words(extra: int) -> Make:
    """A vocabulary of as many words and `extra`, none of which the checkpoint knows."""

    def make(folder: Path, start: Path) -> list[str]:
        size = Tokenizer.from_file(start / "tokenizer.json").size - 2 + extra
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(size - 5))]
        (folder / "vocab.txt").write_text("\n".join(words))
        return ["--set", "tokenizer=FOLDER/vocab.txt"]

    return make


def part_of(task: str, *modules: str) -> Callable[[Path, Path], Path]:
    """A checkpoint of `task` with these modules of the start."""

    def make(folder: Path, start: Path) -> Path:
        tensors, info = read(start)
        kept = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in modules}
        save_weights(folder / task, kept, {**info, "task": task})
        shutil.copy(start / "tokenizer.json", folder / task)
        return folder / task

    return make


RETRIEVAL = part_of("retrieval", "image_encoder", "text_encoder", "image_proj", "text_proj", "itm_head", "temperature")


def of_retrieval(*arguments: str) -> Make:
    return lambda folder, start: [*arguments, str(RETRIEVAL(folder, start))]


def answerer(folder: Path, start: Path) -> Path:
    """A random VQA model with the start's words, fine-tuned with no list."""
    from blip.checkpoints.format import unique_state
    from blip.models.vqa import VqaModel
    from blip.network.med import TextConfig
    from blip.network.vit import ViTConfig

    words = Tokenizer.from_file(start / "tokenizer.json")
    info = read(start)[1]
    torch.manual_seed(0)
    vit, text = ViTConfig(**info["image_encoder"]), TextConfig(**info["text_encoder"])
    model = VqaModel(vit, text, words.specials)
    save_weights(folder / "vqa", unique_state(model), {**info, "task": "vqa", "text_decoder": info["text_encoder"]})
    shutil.copy(start / "tokenizer.json", folder / "vqa")
    return folder / "vqa"


def of_vqa(*arguments: str) -> Make:
    return lambda folder, start: [*arguments, str(answerer(folder, start))]


def asking(*arguments: str) -> Make:
    """`blip answer` with a list of no tokens in FOLDER/answers.txt, an empty one in FOLDER/none.txt."""

    def make(folder: Path, start: Path) -> list[str]:
        (folder / "answers.txt").write_text(f"yes\n{NO_WORD}\n", encoding="utf-8")
        (folder / "none.txt").write_text("\n \n")
        return ["answer", IMAGE, "is it a head?", *arguments, "--checkpoint", str(answerer(folder, start))]

    return make


def empty_folder(folder: Path, start: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no image")
    return ["caption", "FOLDER/empty", "--checkpoint", "START"]


EVALUATE = given("--evaluate", "--init_from", "START")
SCRIPTS: list[tuple[str, str, Make, str]] = [
    # answers
    ("answer list empty", "vqa", answers("a.txt", "\n \n"), "no answer to rank: set answer_file or train_file, or inf"),
    ("answer list of JSON empty", "vqa", answers("a.json", "[]"), "no answer to rank"),
    ("answers of no tokens", "vqa", answers("a.txt", NO_WORD), "no answer has a token, such as .*: set answer_file"),
    ("answer list missing", "vqa", options("answer_file=no.txt"), r"answer_file no\.txt: .*No such file"),
    ("answer list cut off", "vqa", answers("a.json", '["yes", '), r"answer_file .*a\.json: "),
    ("answer list an object", "vqa", answers("a.json", '{"yes": 1}'), r"a\.json: expected a JSON list of texts"),
    ("k of none", "vqa", options("k_test=0"), "k_test: .*greater than 0"),
    ("split and val_file", "vqa", options("split_shares=[0.8, 0.1, 0.1]"), "split_shares divides train_file"),
    ("shares", "vqa", options("split_shares=[1, 1, 1]", "val_file=[]", "test_file=[]"), r"shares are .*sum to 1"),
    ("answers too long", "vqa", options("max_answer_tokens=60"), "max_answer_tokens: 60 tokens, .* 48 positions"),
    ("cleaning of questions", "vqa", options("text_cleaning=blip"), "text_cleaning: .*'none'"),
    # data
    ("unknown set", "caption", options("dataset=cocoa"), "dataset is 'cocoa'; did you mean 'coco'"),
    ("unknown part", "nlvr", options("val_split=holdout"), "split is 'holdout'; it can be train, validation, test"),
    ("no training file", "retrieval", options("train_file=[]"), r"train_file is empty; --set 'train_file=\[FILE\]'"),
    ("validation file missing", "retrieval", options("val_file=[no.json]"), r"no\.json: does not exist"),
    ("another task's file", "nlvr", options("train_file=[DATA/captions.json]"), "captions.json.*'sentence'"),
    ("a set for the wrong task", "vqa", options("train_file=[DATA/captions.json]"), "captions.json.*question"),
    ("weight of statements", "nlvr", options("train_file=[{path: DATA/statements.json, weight: 2}]"), "take none"),
    ("batch too large", "caption", options("batch_size=20"), "12 records.*batch of 20: set batch_size to 12"),
    # writing
    ("beams with sample", "caption", options("sample=true", "beams=3"), "sample and beams exclude each other"),
    ("lengths crossed", "caption", options("min_new_tokens=9"), "min_new_tokens 9 is above max_new_tokens 4"),
    ("prompt too long", "caption", options("max_text_tokens=5"), "the prompt has .* max_text_tokens is 5: no caption"),
    ("text too long", "caption", options("max_new_tokens=45"), "prompt and max_new_tokens: .* the model has 48 pos"),
    # what a run starts from
    ("start missing", "nlvr", given("--init_from", "FOLDER/x.pth"), r"x\.pth does not exist"),
    ("start without tokenizer", "nlvr", without_tokenizer, "copy comes without a tokenizer: set tokenizer"),
    ("no start, no tokenizer", "nlvr", options("init_from="), "no tokenizer: set tokenizer, or tokenizer: train"),
    ("other words", "nlvr", other_words(0), "was trained with another tokenizer: set tokenizer: .*tokenizer.json"),
    ("more words", "nlvr", other_words(9), "was trained with another tokenizer"),
    ("unknown task", "caption", another_info(task="segmentation"), "copy is a checkpoint of segmentation; a run can"),
    ("empty task", "caption", another_info(task=""), "copy is a checkpoint of no task; a run can"),
    ("no sizes", "caption", another_info(text_encoder=None), "the model's sizes: text_encoder is missing"),
    ("other sizes", "vqa", options("text_width=48"), r"sizes of its own: leave out text_width 48 \(it has 32\)"),
    ("other ViT", "vqa", options("vit=base"), "sizes of its own: leave out vit base"),
    ("longer than positions", "vqa", options("max_text_tokens=49"), "max_text_tokens 49 is above the 48 positions"),
    ("image size", "vqa", options("image_size=40"), "image size 40 must be a multiple of patch 16"),
    # small means
    ("unknown target", "nlvr", options("lora={targets: [qvk]}"), "lora: target 'qvk' is no linear layer.* .*qkv"),
    ("no target", "nlvr", options("lora={rank: 4, targets: []}"), "lora: name layers: targets"),
    ("unknown part to freeze", "nlvr", options("freeze=[vision]"), "freeze: vision: .*no part 'vision'; it has im"),
    ("all frozen", "nlvr", options("freeze=[image_encoder, text_encoder, cls_head]"), "nothing would be left to train"),
    # what is best
    ("unknown metric", "caption", options("best_metric=val_blue1"), "best_metric 'val_blue1' is unknown; .*val_bleu1"),
    ("metric of the test", "nlvr", options("best_metric=test_accuracy"), "'test_accuracy' is unknown; .*val_accuracy"),
    # evaluation
    ("no checkpoint", "caption", given("--evaluate", "--set", "init_from="), "holds no checkpoint; give --init"),
    ("nothing to evaluate", "caption", given("--evaluate", "--set", "val_file=[]", "--set", "test_file=[]"), "te on: "),
    ("not fine-tuned", "nlvr", EVALUATE, "checkpoint of pretrain, which never learned nlvr"),
    ("another task", "caption", of_retrieval("--evaluate", "--init_from"), "of retrieval, which never learned caption"),
    ("pre-training as VQA", "vqa", EVALUATE, "checkpoint of pretrain, which never learned vqa"),
    ("VQA as captioning", "caption", of_vqa("--evaluate", "--init_from"), "of vqa, which never learned caption"),
    ("no answers known", "vqa", of_vqa("--evaluate", "--set", "train_file=[]", "--init_from"), "no answer to rank"),
    ("evaluate and resume", "vqa", given("--evaluate", "--resume", "auto"), "leave out --resume"),
    ("a kind of question that is not there", "vqa", options("best_metric=val_exact_match_number"), "none is number"),
    ("ten answers", "vqa", options("best_metric=val_vqa_accuracy"), "needs ten answers to every validation question"),
]  # fmt: skip

IMAGE = "DATA/images/000000.png"
VERBS: list[tuple[str, Make, str]] = [
    ("match nothing", given("match", IMAGE, " ", "--checkpoint", "START"), "a text is empty"),
    ("match by a captioner", of_retrieval("caption", IMAGE, "--checkpoint"), "of retrieval cannot write captions"),
    ("match no image", given("match", "FOLDER/x.png", "a", "--checkpoint", "START"), "does not exist"),
    ("no question", given("answer", IMAGE, "", "--checkpoint", "START"), "a question is empty"),
    ("ask retrieval", of_retrieval("answer", IMAGE, "what?", "--checkpoint"), "of retrieval cannot answer"),
    ("ask a pre-trained model", given("answer", IMAGE, "what?", "--checkpoint", "START"), "of pretrain cannot answer"),
    ("answers of no tokens", asking("--answers", "FOLDER/answers.txt"), "answer 2 of the list has no token"),
    ("no answers", asking("--answers", "FOLDER/none.txt"), "the list of answers is empty"),
    ("answers missing", asking("--answers", "FOLDER/no.txt"), "no.txt"),
    ("k of none", asking("--answers", "FOLDER/answers.txt", "--k", "0"), "k is 0|has no token"),
    ("no images", empty_folder, r"empty is a folder without images; looked for \.avif, \.bmp, "),
    ("no such image", given("caption", "FOLDER/x.png", "--checkpoint", "START"), "x.png: does not exist"),
    ("no such checkpoint", given("caption", IMAGE, "--checkpoint", "FOLDER/x.pth"), "x.pth does not exist"),
    ("too many", given("caption", IMAGE, "--checkpoint", "START", "--num_return", "4"), "num_return is 4 with 3 beams"),
    ("search and draw", given("caption", IMAGE, "--checkpoint", "START", "--sample", "--beams", "3"), "exclude each"),
    ("lengths crossed", given("caption", IMAGE, "--checkpoint", "START", "--min_new_tokens", "40"), "40 is above"),
    ("too long", given("caption", IMAGE, "--checkpoint", "START", "--max_new_tokens", "60"), "the model has 48 pos"),
    ("unknown device", given("caption", IMAGE, "--checkpoint", "START", "--device", "gpu"), "auto, cpu or cuda"),
]  # fmt: skip
