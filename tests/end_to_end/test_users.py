"""Users with their files as distributed, from the start to pictures and a report, by commands that the README names.

Weights and data of the hub come from a local server. Models are tiny, runs have two steps.
"""

import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_finetune_cases import answerer
from helpers.hub_server import HubServer
from helpers.random_checkpoints import noise_images
from helpers.running import ROOT, code_and_text, run_script
from helpers.set_files import hub_rows, png, put, put_parquet

import blip
from blip.checkpoints import convert
from blip.config import load_config
from blip.options.reading import RUN_CONFIG
from blip.tasks.config import CaptionConfig, VqaConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]

README = (ROOT / "README.md").read_text(encoding="utf-8")
VQA, CAPTIONER = "Salesforce/blip-vqa-base", "Salesforce/blip-image-captioning-base"
# what makes a run of the README small enough for a test: two steps on images of 32 pixels, on a CPU
SMALL = (
    "--set image_size=32 --set max_text_tokens=20 --set batch_size=4 --set max_steps=2 --set epochs=1 "
    "--set num_workers=0 --set device=cpu --set precision=fp32 --set log_every_steps=1"
)
Desk = Callable[[str], str]  # runs a command -> what it printed


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[HubServer]:
    """A hub with released checkpoints as transformers writes them, but tiny, and a data set of parquet files."""
    pytest.importorskip("transformers", reason="the weights of the hub are folders of transformers")
    folder = tmp_path_factory.mktemp("released")
    with HubServer() as hub:
        for task, name, ours in (
            ("vqa", VQA, answerer(folder, tiny_checkpoint)),
            ("caption", CAPTIONER, tiny_checkpoint),
        ):
            theirs, words = folder / f"{task}.hf", tiny_checkpoint / "tokenizer.json"
            convert.write(theirs, *convert.read(ours), to="huggingface", tokenizer_file=words, hf_class=task)
            hub.add("models", name, theirs)
        for part, count in (("train", 12), ("validation", 6), ("test", 4)):
            rows = hub_rows(count, question="is there a lesion", answer="left")
            put_parquet(folder / "path-vqa" / "data" / f"{part}-00000-of-00001.parquet", rows)
        hub.add("datasets", "flaviagiammarino/path-vqa", folder / "path-vqa")
        yield hub


@pytest.fixture
def desk(released: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Desk:
    """Runs a command of the README in a folder with the files of a clone, in this process; it has to end well."""
    released.use_here(monkeypatch, tmp_path / "cache")
    for path in [ROOT / "configs", *ROOT.glob("*.py")]:
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(command: str) -> str:
        words = shlex.split(command)
        assert re.search(rf"^.*{re.escape(words[1])} .*$", README, flags=re.MULTILINE), (
            f"{words[1]} is not in the README"
        )
        monkeypatch.setattr(sys, "argv", words if words[0] == "blip" else words[1:])
        with pytest.raises(SystemExit) as ended:
            if words[0] == "blip":
                runpy.run_module("blip", run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[1], run_name="__main__")
        shown = "".join(capfd.readouterr())
        assert not ended.value.code and "Traceback" not in shown, f"{command}\n{shown[-4000:]}"
        return shown

    return run


def page(path: str) -> str:
    """A page that opens without a network."""
    text = Path(path).read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)="https?://', text), path
    return text


def lines_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


# ---- a captioner of radiology figures --------------------------------------------------------------------------------


def roco(folder: Path, flat: bool) -> None:
    """ROCO: a CSV with id, name and caption for each part; images in folders of their own, or all beside the tables."""
    for part, name, count in (("train", "train", 8), ("validation", "val", 4), ("test", "test", 4)):
        rows, images = ["id,name,caption"], folder if flat else folder / part / "radiology"
        for i in range(count):
            file = f"PMC{i}00{part[0]}_fig{i}.jpg"
            rows.append(f'ROCO_{i},{file},"chest x-ray, a large lesion in the left lung {i}"')
            put(images / "images" / file, png(30 * i))
        put((folder if flat else folder / part) / f"radiology{name}data.csv", "\n".join(rows) + "\n")


@pytest.mark.parametrize("flat", [False, True], ids=["as published", "flat"])
def test_a_captioner_of_roco(desk: Desk, tmp_path: Path, flat: bool) -> None:
    roco(tmp_path / "data" / "roco", flat)
    assert "8" in desk("blip check-data data/roco --dataset roco --split train")
    desk("blip show data/roco --dataset roco --split train --limit 4 --out data.html")
    shown = page("data.html")
    assert shown.count("<img") == 4 and "chest x-ray, a large lesion in the left lung 2" in shown

    train = f"python train_caption.py --config configs/roco.yaml --output_dir runs/roco --init_from hub:{CAPTIONER}"
    train += f" {SMALL} --set max_new_tokens=6 --set beams=1"
    assert "8" in desk(f"{train} --dry_run") and not Path("runs").exists()
    told = desk(train)
    assert "METEOR is left out (java is not on the PATH)" in " ".join(told.split())
    assert re.fullmatch(
        f"hub:{CAPTIONER}@[0-9a-f]{{40}}", load_config("runs/roco/config.yaml", CaptionConfig).init_from
    )
    epoch = next(line for line in lines_of("runs/roco") if "val_loss" in line)
    assert epoch["epoch"] == 1 and epoch["train_loss"] > 0 and epoch["val_loss"] > 0

    desk("blip show runs/roco --sort worst --limit 3 --out worst.html")
    assert page("worst.html").count("<img") == 3
    desk("blip report runs/roco")
    assert "chest x-ray, a large lesion in the left lung" in page("runs/roco/report.html")
    (image, *_) = sorted((tmp_path / "data" / "roco").rglob("*.jpg"))
    written = desk(f"blip caption {image} --checkpoint runs/roco/best --json")
    (caption,) = json.loads(written[written.index("[") :])
    desk(f"blip explain {image} --task caption --checkpoint runs/roco/best --out maps.html")
    explained = page("maps.html")
    assert caption["caption"] in explained and "predicted" in explained, (
        "the caption that the model writes is explained"
    )


# ---- a notebook with questions about pathology -----------------------------------------------------------------------


def test_a_notebook_with_path_vqa(desk: Desk, capfd: pytest.CaptureFixture) -> None:
    pytest.importorskip("datasets", reason="data sets of the hub need it")
    pytest.importorskip("matplotlib", reason="curves need it")
    data = blip.data("hub:flaviagiammarino/path-vqa", split="train", limit=10)
    assert len(data) == 10 and data[3].image.size == (6, 6)
    assert (data[3].question, data[3].answer) == ("is there a lesion 3", "left 3")
    data.show(9).savefig("data.png")
    run = blip.finetune(
        "vqa", train=data, val=blip.data("hub:flaviagiammarino/path-vqa", split="validation"), init_from=f"hub:{VQA}",
        image_size=32, max_text_tokens=20, batch_size=4, epochs=2, device="cpu", precision="fp32", num_workers=0,
    )  # fmt: skip
    rows = run.history if isinstance(run.history, list) else run.history.to_dict("records")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["train_loss"] > 0 and row["val_loss"] > 0 and 0 <= row["val_exact_match"] <= 1 for row in rows)
    run.plot().savefig("curves.png")
    run.show(6).savefig("answers.png")
    assert all(Path(name).stat().st_size > 2000 for name in ("data.png", "curves.png", "answers.png"))
    model = run.best()
    (image,) = noise_images(Path("."))[:1]
    (by_path,) = model.answer(str(image), "which plane?")
    pixels = np.asarray(data[3].image)
    (by_pixels,) = model.answer(pixels, "which plane?")  # (H, W, 3) is one image, not many
    assert by_path.text and by_pixels.text in repr(by_pixels)
    scores = blip.evaluate("vqa", run, blip.data("hub:flaviagiammarino/path-vqa", split="test"), device="cpu")
    assert 0 <= scores["test_exact_match"] <= 1
    assert "error" not in capfd.readouterr().err


def test_an_editor_completes_what_a_notebook_needs() -> None:
    wanted = {"load", "data", "finetune", "pretrain", "evaluate", "trace"}
    assert wanted <= set(blip.__all__) and wanted <= set(dir(blip))
    assert (Path(blip.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("answer IMAGE is there a lesion", "4 questions of one word each. One question stands in quotation marks"),
        ("caption IMAGE --out captions.html", "captions.html does not end in .json, and blip caption writes JSON"),
    ],
)
def test_slips_of_the_first_hour(tiny_checkpoint: Path, phantoms: Path, command: str, said: str) -> None:
    image = str(phantoms / "images" / "000000.png")
    words = [image if word == "IMAGE" else word for word in command.split()]
    code, shown = code_and_text(*words, "--checkpoint", tiny_checkpoint, "--device", "cpu")
    assert code == 1 and said in shown and not Path("captions.html").exists()


# ---- a data set that `datasets` saved --------------------------------------------------------------------------------


def test_a_saved_data_set_of_retinas(desk: Desk, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="it saves the data set")
    columns = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    parts = {}
    for part, count in (("train", 12), ("validation", 6), ("test", 4)):
        rows = hub_rows(count, question="is there a lesion")
        rows = [{**row, "answer": ["yes", "no", ""][i % 3] if part == "test" else "yes"} for i, row in enumerate(rows)]
        rows = [row | {"answer": row["answer"] or "left"} for row in rows]
        parts[part] = datasets.Dataset.from_list(rows, features=datasets.Features(columns))
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "data" / "retina_vqa"))

    train = f"python train_vqa.py --config configs/retina_vqa.yaml --output_dir runs/retina --init_from hub:{VQA}"
    desk(f"{train} {SMALL} --set test_file=[]")
    before = {path: path.read_bytes() for path in Path("runs/retina").iterdir() if path.is_file()}
    evaluate = "python train_vqa.py --output_dir runs/retina --evaluate --set 'val_file=[]'"
    told = desk(f"{evaluate} --set 'train_file=[]' --set 'test_file=[data/retina_vqa]'")
    assert "test_file" in told, "what differs from the run's own configuration is said"
    (folder,) = Path("runs/retina/evaluation").iterdir()
    assert load_config(folder / RUN_CONFIG, VqaConfig).image_size == 32  # that of the run
    scores = json.loads((folder / "evaluation.json").read_text())
    assert scores["test_questions"] == 4 and 0 <= scores["test_exact_match"] <= 1
    after = {path: path.read_bytes() for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {".blip.run.json", "report.html"}

    asked = "data/retina_vqa --dataset retina_vqa --split test --limit 2"
    told = desk(f"blip explain {asked} --checkpoint runs/retina/best --device cpu --out maps.html")
    assert "2" in told and "predicted" in page("maps.html")
    desk(f"blip show {folder} --correct no --out wrong.html")
    assert "is there a lesion" in page("wrong.html")
    desk("blip report runs/retina")
    assert "val_loss" in page("runs/retina/report.html") or "validation" in page("runs/retina/report.html")


# ---- a lab with several GPUs -----------------------------------------------------------------------------------------


def test_a_lab_that_pretrains_in_two_processes(
    desk: Desk, tmp_path: Path, tiny_checkpoint: Path, phantoms: Path
) -> None:
    pairs = json.loads((phantoms / "captions.json").read_text())[:24]
    for pair in pairs:
        pair["image"] = str(phantoms / pair["image"])
    put(tmp_path / "captions.json", pairs[:16])
    put(tmp_path / "held_out.json", pairs[16:])
    sizes = SMALL.replace("max_text_tokens=20", "max_text_tokens=32")
    words = (
        f"--config configs/pretrain_small_data.yaml --output_dir runs/small {sizes} "
        f"--set tokenizer={tiny_checkpoint}/tokenizer.json --set train_file=[{tmp_path}/captions.json] "
        f"--set val_file=[{tmp_path}/held_out.json] --set accumulation=1 --set queue_size=8 --set crop_scale=null "
        "--set randaugment=null --set vit=custom --set vit_width=32 --set vit_depth=2 --set vit_heads=2 "
        "--set vit_patch=16 "
        "--set text_width=32 --set text_layers=2 --set text_heads=2 --set text_hidden=64 --set max_positions=48 "
        "--set embed_dim=16 --set activation_checkpointing=none --set warmup_steps=1"
    )
    assert "16 pairs" in desk(f"python pretrain.py {words} --dry_run") and not Path("runs").exists()
    for more in (f"--init_from {tiny_checkpoint}", "--resume auto --set max_steps=4 --set epochs=2"):
        ready = shlex.split(f"{words} {more}".replace("runs/small", str(tmp_path / "runs" / "small")))
        done = run_script(*ready, processes=2)
        assert done.returncode == 0, done.stderr[-4000:]
    lines = lines_of("runs/small")
    assert [line["step"] for line in lines if "itc" in line] == [1, 2, 3, 4]
    assert {"train_itc", "train_itm", "train_lm", "val_itc", "val_itm", "val_lm"} <= {
        key for line in lines for key in line
    }
    desk("blip report runs/small")
    report = page("runs/small/report.html")
    assert "0.6365" in report and "chance" in report, "what a model without skill reaches is shown"
    desk("blip show runs/small --out samples.html")
    assert page("samples.html").count("<img") >= 8


# ---- a doctor with a browser -----------------------------------------------------------------------------------------


def test_a_doctor_who_opens_an_address(desk: Desk, tmp_path: Path) -> None:
    pytest.importorskip("gradio", minversion="6.20", reason="the page is made with gradio")
    from helpers.serving import Page, Server

    (tmp_path / "images").mkdir()
    image = noise_images(tmp_path / "images")[0]
    with Server(f"hub:{VQA}", folder=tmp_path / "temporary") as server:
        doctor = Page(server.address)
        assert "a.png" in doctor.open(image)
        assert "Not for clinical use" in doctor.ask(VQA.rpartition("/")[2], "is there a lesion")
