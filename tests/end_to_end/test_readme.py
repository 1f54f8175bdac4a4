"""Every command and every Python block of the README and the documentation runs, as do the commands in the headers of
the configurations: with small sizes, local files and few steps. Links resolve."""

import json
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import dialogues
from helpers.bad_finetune_cases import answerer
from helpers.blip2_checkpoints import write_everything
from helpers.blip2_runs import SIZES as QUERIES
from helpers.blip2_runs import write_stages
from helpers.dicom import write_scans
from helpers.fine_tuning import dialogues as dialogues_of
from helpers.fine_tuning import write_part
from helpers.hub_server import HubServer
from helpers.running import ROOT, Program, free_port, torchrun_env
from helpers.tiny import MODEL_SIZES, TINY
from PIL import Image
from pmc_server import Library, Server
from torch import distributed
from torch.distributed.run import get_args_parser

from blip.evaluation.clinical import CONDITIONS
from blip.train.history import LOGS, METRICS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
HEADERS = {
    path.name: re.findall(r"^#   ((?:python|torchrun|blip|make) .*)$", path.read_text(), flags=re.MULTILINE)
    for path in sorted((ROOT / "configs").glob("*.yaml"))
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


def commands_of(page: str) -> list[str]:
    lines = [line for block in blocks(page, "bash") if not block.startswith("#!") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


# in this order, since some commands use what others write; each once
COMMANDS = list(dict.fromkeys(c for page in PAGES.values() for c in commands_of(page)))
COMMANDS += [command for commands in HEADERS.values() for command in commands if command not in COMMANDS]
INSTALLATION = ("make", "pip", "python3", "source")  # programs that tests do not start
RUN = [command for command in COMMANDS if command.split()[0] not in INSTALLATION]

# ---- what is changed in a command ------------------------------------------------------------------------------------

# option -> its value here. One process, one machine, few images
INSTEAD = {"--nproc_per_node": "1", "--nnodes": "1", "--rdzv_endpoint": "localhost:0", "--count": "12"}
STEPS = {"accumulation": 1, "max_steps": 2, "drop_path": 0.0}
PRETRAIN = {**TINY, **STEPS, "vision_init": "", "text_init": "", "val_file": "[]"}
FINE_TUNE = {**TINY, **STEPS, "dataset": "json", "image_root": ""}  # sizes are those of the checkpoint
for _key in (*MODEL_SIZES, "queue_size"):
    del FINE_TUNE[_key]
HEADS = {"image_heads": 2, "text_heads": 2}  # of model_base.pth, which does not say


def files(name: str) -> dict[str, str]:
    return {f"{part}_file": f"[{name}.json]" for part in ("train", "val", "test")}


DEMO = "runs/demo/run/checkpoints/latest"
RETRIEVAL = {**FINE_TUNE, "queue_size": 20}
# program -> options that are set, also where the command has them
SET = {
    "pretrain": {**PRETRAIN, "tokenizer": "vocab.txt", "train_file": "[captions.json]"},
    "pretrain_blip2": {
        **FINE_TUNE, "val_file": "[]", "vision_init": "", "text_init": "", "train_file": "[captions.json]",
    },
    "benchmarks/profile_step": {**PRETRAIN, "tokenizer": "vocab.txt"},
    "train_retrieval": {**RETRIEVAL, **files("captions")},
    "train_caption": {**FINE_TUNE, **files("captions"), "max_new_tokens": 6},
    "train_vqa": {**FINE_TUNE, **files("questions"), "max_answer_tokens": 8, "max_new_tokens": 4},
    "train_nlvr": {**FINE_TUNE, **files("statements")},
    "train_visdial": {**FINE_TUNE, **files("dialogues"), **dialogues.OPTIONS},
    "blip capfilt run": {
        "web_file": "[captions.json]",
        "human_file": "[captions.json]",
        "start": DEMO,
        "pretrain": "configs/pretrain_demo.yaml",
        "captioner": "configs/caption_phantoms.yaml",
        "filter": "configs/retrieval_phantoms.yaml",
        "pretrain_set": {**PRETRAIN, "tokenizer": f"{DEMO}/tokenizer.json"},
        "captioner_set": FINE_TUNE,
        "filter_set": RETRIEVAL,
        "fraction": 0.5,
        "shard_size": 20,
        "max_new_tokens": 4,
        "min_new_tokens": 0,
        "precision": "fp32",
    },
    "blip pubmed run": {
        "email": "me@lab.org", "eutils": "SERVER", "bucket": "SERVER", "rate": 100, "num_workers": 1, "min_side": 32,
    },
}  # fmt: skip
# program -> words that are added
ADDED = {
    "blip convert": "--image_heads 2 --text_heads 2",
    "blip pubmed search": "--eutils SERVER",
    "blip sae train": "--steps 20",
    "blip serve": "--port 0",
    "blip pubmed fetch": "--bucket SERVER --rate 100",
}
# program -> options of SET that a command may set itself
KEPT = {"pretrain": ("train_file", "tokenizer"), "blip capfilt run": ("web_file", "human_file")}


def localised(command: str, fresh: str, server: str) -> list[str]:
    """The words of the command as run here, in the folder of `place`."""
    words = [INSTEAD.get(before, word) for before, word in with_previous(shlex.split(command))]
    words = [re.sub(r"^(--\w+)=.*", lambda m: f"{m[1]}={INSTEAD[m[1]]}" if m[1] in INSTEAD else m[0], w) for w in words]
    if "--output_dir" in words and "--resume" not in words and "--evaluate" not in words:
        place = words.index("--output_dir") + 1
        words[place] = words[place] if words[place] == "runs/small" else f"runs/{fresh}"  # runs/small is resumed
    program = program_of(words)
    own = [key for key in KEPT.get(program, ()) if f" {key}=" in command]
    values = {key: value for key, value in SET.get(program, {}).items() if key not in own}
    if " image_sizes=" in command.replace('"', " "):  # sizes of 224 px are none of 32
        values["image_sizes"] = {0: 16, 12: 32}
    if "blip2" in command and program.startswith(("train_", "pretrain_")):
        values |= {"language_dtype": "fp32"}
        values |= {"language_model": "language_model"} if "stage2" in command else {}
        values |= {"image_size": 28} if "hub:Salesforce" in command else {}  # of its patches
        values |= {} if "--init_from" in words else {**MODEL_SIZES, **QUERIES, "tokenizer": "vocab.txt"}
    if program.startswith("train_"):
        values |= HEADS if ".pth" in command else {}
        values |= {} if {"--init_from", "--evaluate"} & set(words) else MODEL_SIZES
    words += [word for key, value in values.items() for word in ("--set", f"{key}={flow(value)}")]
    words += shlex.split(ADDED.get(program, ""))
    return [word.replace("SERVER", server) for word in words]


def with_previous(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(["", *words], words, strict=False))


def program_of(words: list[str]) -> str:
    """`pretrain`, `blip caption`, `blip capfilt run`: whatever starts it."""
    if "blip" in words:
        return " ".join(words[words.index("blip") :][: 3 if {"capfilt", "pubmed", "sae"} & set(words) else 2])
    return next(word for word in words if word.endswith(".py")).removesuffix(".py")


def flow(value: object) -> object:
    """A value of `--set`; options of options in YAML's flow style."""
    return "{" + ", ".join(f"{k}: {v or repr(v)}" for k, v in value.items()) + "}" if isinstance(value, dict) else value


# ---- where it runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny_checkpoint: Path) -> Path:
    """A folder with everything that the commands name: the scripts, annotations, a data set, checkpoints."""
    from blip.checkpoints import convert
    from blip.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("readme") / "here"
    folder.mkdir()
    for path in [ROOT / "configs", ROOT / "benchmarks", *ROOT.glob("*.py")]:
        (folder / path.name).symlink_to(path)
    (folder / "captions.json").write_text(json.dumps(json.loads((phantoms / "captions.json").read_text())[:20]))
    (folder / "images").symlink_to(phantoms / "images")
    for name, number in (("frontal", 1), ("lateral", 2), ("other", 3)):
        Image.open(phantoms / "images" / f"{number:06d}.png").save(folder / f"{name}.png")
    studies = [{"images": ["frontal.png", "lateral.png"], "caption": "normal"}, {"image": "other.png", "caption": "x"}]
    (folder / "studies.json").write_text(json.dumps(studies))
    (folder / ".." / "vqa_rad").symlink_to(phantoms / "images")  # evaluation images
    Image.open(phantoms / "images" / "000000.png").save(folder / "image.png")
    write_part(phantoms, "nlvr", 0, 16, folder / "statements.json")
    (folder / "dialogues.json").write_text(json.dumps(dialogues_of(phantoms, 0, 8)))
    dialogues.write_checkpoint(folder / "runs" / "visdial" / "best", tiny_checkpoint)
    questions = json.loads(write_part(phantoms, "vqa", 0, 16, folder / "questions.json").read_text())
    official = [{**q, "image_name": Path(q["image"]).name, "qid": i} for i, q in enumerate(questions)]
    (folder / "data" / "vqa_rad").mkdir(parents=True)
    (folder / "data" / "vqa_rad" / "trainset.json").write_text(json.dumps(official))
    (folder / "data" / "vqa_rad" / "images").symlink_to(phantoms / "images")
    for question in questions:
        question["answer"] = 10 * [question["answer"]]  # as in VQA v2, whose score needs ten
    (folder / "questions.json").write_text(json.dumps(questions))
    tokenizer = load_tokenizer(str(tiny_checkpoint / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{tokenizer.token(i)}\n" for i in range(tokenizer.size)))
    convert.write(folder / "model_base.pth", *convert.read(tiny_checkpoint), to="salesforce")
    write_everything(folder / ".." / "blip2", tiny_checkpoint / "tokenizer.json")
    released = {
        "eva_vit_g.pth": "blip2_tower.pth",
        "blip2_pretrained.pth": "blip2.pth",
        "blip2_pretrained_opt2.7b.pth": "blip2_language.pth",
        "models/opt-2.7b": "language",
        "runs/captions2/best": "blip2_language",
    }
    for name, source in released.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((folder / ".." / "blip2" / source).resolve())
    (folder / "password.txt").write_text("correct horse")
    for run in ("demo", "named"):
        shutil.copytree(tiny_checkpoint, folder / "runs" / run / "run" / "checkpoints" / "latest")
    log = {"step": 1, "epoch": 1, "loss": 0.5, "train_loss": 0.5, "val_loss": 0.6, "truth": "a lesion", "output": "x"}
    for name in LOGS:
        lines = [{**log, "lr": 0.1}, log] if name == METRICS else [log]
        (folder / "runs" / "demo" / "run" / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "runs" / "demo" / "data").mkdir()
    (folder / "runs" / "demo" / "data" / "test").symlink_to(phantoms)
    model = answerer(folder, tiny_checkpoint)
    about = {**json.loads((model / "model.json").read_text()), "answers": ["yes", "no", "chest"]}
    (model / "model.json").write_text(json.dumps(about))
    for run in ("vqa_phantoms", "vqa_rad"):
        shutil.copytree(model, folder / "runs" / run / "best")
        (folder / "runs" / run / "config.yaml").write_text("{}\n")
        for name in LOGS:
            shutil.copy(folder / "runs" / "demo" / "run" / name, folder / "runs" / run / name)
        answered = {"image": str(folder / "image.png"), "question": "where?", "answer": "yes", "probability": 0.5}
        (folder / "runs" / run / "answers_val.json").write_text(json.dumps([{**answered, "references": ["no"]}]))
    write_stages(folder, phantoms)
    write_scans(folder)
    written = [{"image": "image.png", "caption": "no acute process", "references": ["normal"]}]
    (folder / "runs" / "mimic_cxr").mkdir()
    (folder / "runs" / "mimic_cxr" / "captions_test.json").write_text(json.dumps(written))
    for name in ("references", "predictions"):  # as a labeller writes them
        (folder / "labelled" / name).mkdir(parents=True)
        table = f"{','.join(CONDITIONS)}\n{','.join('1' * len(CONDITIONS))}\n"
        (folder / "labelled" / name / "labeled_reports.csv").write_text(table)
    return folder


@pytest.fixture(scope="module")
def hub(place: Path, tiny_checkpoint: Path) -> Iterator[HubServer]:
    """The released checkpoints that pages name; all of them are tiny here."""
    with HubServer() as hub:
        blip2 = place / ".." / "blip2"
        folders = {  # the first of whose names a repository's has
            "blip2-itm": blip2 / "blip2_hf",
            "blip2-": blip2 / "blip2_language_hf",
            "opt-": blip2 / "language",
            "vqa": place / "runs" / "vqa_rad" / "best",
            "": tiny_checkpoint,
        }
        for name in sorted(
            set(re.findall(r"hub:((?:Salesforce|facebook)/[\w.-]+)", " ".join([*COMMANDS, *PAGES.values()])))
        ):
            hub.add("models", name, next(folder for part, folder in folders.items() if part in name))
        yield hub


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PubMed Central of six articles."""
    with Server(Library(6)) as server:
        yield server


# ---- commands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN, ids=lambda c: c[:70])
def test_command(
    command: str,
    place: Path,
    server: Server,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    words = localised(command, tmp_path.name, server.url)
    hub.use_here(monkeypatch, place / "cache")
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        # test_distributed.py starts scripts with torchrun itself, capfilt/test_rounds.py the module
        for name, value in torchrun_env(0, 1, free_port()).items():
            monkeypatch.setenv(name, value)
        words = [*([] if given.module else ["python"]), given.training_script, *given.training_script_args]
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", "")  # no Java
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    if words[:2] == ["blip", "serve"]:  # which ends when somebody ends it
        pytest.importorskip("gradio", minversion="6.20")
        monkeypatch.setattr("blip.serve.site._run", lambda app, bound, ready: ready())
        monkeypatch.setattr("blip.serve.site.end_at_once", lambda: sys.exit(0))
        monkeypatch.setenv("BLIP_PASSWORD", "correct horse")
    monkeypatch.setattr(sys, "argv", words if words[0] == "blip" else words[1:])
    for _ in range(2 if words[0] == "blip" else 1):  # a verb may replace what it wrote itself
        with pytest.raises(SystemExit) as ended:  # in this process: importing torch takes longer than two steps
            if words[0] == "blip":
                runpy.run_module("blip", run_name="__main__", alter_sys=True)
            else:
                assert words[0] == "python"
                runpy.run_path(words[1], run_name="__main__")
        assert not distributed.is_initialized()
        assert not ended.value.code, f"{command}\n{''.join(capfd.readouterr())[-4000:]}"
    if "train_" in words[1] and not {"--evaluate", "--dry_run"} & set(words):
        assert (place / "runs" / tmp_path.name / "checkpoints" / f"step-{STEPS['max_steps']:08d}").is_dir()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in (c for c in COMMANDS if c.startswith("make ")):
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE), command


def test_extras_exist_and_are_in_the_tables() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, page in PAGES.items():
        for named in re.findall(r"pip install -e '\.\[(.*?)\]'", page):
            assert set(named.split(",")) <= set(extras), f"{name}: {named}"
    for name in ("README.md", "docs/getting-started.md"):
        table = [line for line in PAGES[name].splitlines() if line.startswith("| `")]
        for extra in extras:
            assert any(f"`{extra}`" in line.split("|")[1] for line in table), f"{name}: the table lacks {extra}"


def test_each_configuration_has_a_command_hardware_and_score() -> None:
    for name, commands in HEADERS.items():
        text = (ROOT / "configs" / name).read_text()
        assert commands or "make " in text, f"{name} names no command"
        assert "# Hardware:" in text, name


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    sizes = {**TINY, "max_steps": 2, "num_workers": 0, "vocab_size": 100}
    overrides = [x for key, value in sizes.items() if key != "max_text_tokens" for x in ("--set", f"{key}={value}")]
    done = Program("demo/demo.py", "--output_dir", tmp_path, "--count", "32", *overrides).finish()
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in ("image to text R@1", "exact captions", "match accuracy", str(tmp_path)):
        assert wanted in done.stdout.replace("\n", "")


# ---- Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if blocks(text, "python")])
def test_python_blocks(page: str, place: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.use_here(monkeypatch, place / "cache")
    monkeypatch.chdir(place)
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
    scope: dict = {}  # the blocks of a page go on with what those before them made
    for number, source in enumerate(blocks(PAGES[page], "python"), start=1):
        exec(compile(source, f"{page}, Python block {number}", "exec"), scope)


# ---- links, pages, tree ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md"])
def test_links_resolve(name: str) -> None:
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("https://", "../../actions/")):  # the latter: the hosting site's pages on workflows
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], f"{name}: {target}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_page_of_options_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))["page"]()
    assert made == PAGES["docs/configuration.md"], "run: python docs/make_configuration.py"


def test_estimated_tables_are_up_to_date() -> None:
    """Those that cost no count; and a card's line, with the counts that it takes, in tests/tasks/test_estimate.py."""
    made = runpy.run_path(str(ROOT / "docs" / "make_performance.py"))
    assert set(made["parts"](PAGES["docs/performance.md"])) == set(made["TABLES"])


def test_each_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for name in PAGES:
        assert name == "README.md" or f": {Path(name).name}\n" in navigation, name


def test_each_room_is_in_the_tree_of_the_readme() -> None:
    (tree,) = (block for block in blocks(README, "text") if "blip/\n" in block)
    for path in (ROOT / "blip").rglob("__init__.py"):
        if path.parent != ROOT / "blip":
            depth = len(path.parent.relative_to(ROOT).parts) - 1
            assert re.search(rf"^{'  ' * depth}{path.parent.name}/ ", tree, flags=re.MULTILINE), path.parent
