"""Which room may import which: read from the source, so that an import inside a function counts too."""

import ast
import re
from pathlib import Path

import pytest
from helpers.running import ROOT

ANYTHING = {"*"}

# room or module -> what it may import, of ours, besides itself; a name stands for the module and all below it. The most
# exact line counts.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "hashing": set(),
    "hardware": {"errors"},
    "distributed": {"errors", "files", "hardware"},
    "hub": {"errors"},
    "tokenizer": {"errors", "files", "hub"},
    "files": {"errors"},
    "outputs": {"errors", "files", "hashing", "distributed"},
    "options": {"errors", "files"},
    "config": {"errors", "options.reading"},
    "html_page": {"errors", "files"},
    "console": set(),
    "command_line": {"errors", "files", "outputs", "distributed"},
    "network": {"errors", "hardware"},
    "models": {"network", "hardware", "distributed", "tokenizer", "errors"},
    "checkpoints": {"network", "models", "files", "outputs", "hashing", "errors", "tokenizer", "hub", "console"},
    # of the network the form of a batch alone
    "data": {"files", "outputs", "hashing", "distributed", "tokenizer", "errors", "hardware", "hub"}
    | {"network.pictures"},
    "data.sets": {"data.formats", "data.records", "data.columns", "data.hub", "data.image_bytes", "errors", "hub"}
    | {"files"},
    "data.scans": {"data.image_bytes", "data.image_files", "data.decoding_cost", "data.grey_levels", "files", "errors"}
    | {"data.reference_options"},
    "evaluation": {"models", "network", "hardware", "distributed", "tokenizer", "errors", "files", "console"},
    "train": {"config", "options", "files", "outputs", "hashing", "distributed", "errors", "command_line", "console"}
    | {"checkpoints.format", "hardware"},
    "inference": {"models", "network", "checkpoints", "files", "outputs", "tokenizer", "errors", "distributed"}
    | {"hardware", "hashing"}
    | {"data.arrays", "data.images", "data.image_bytes", "data.places", "data.sources", "data.transforms"}
    | {"data.batches", "data.dialogue_texts", "data.pictures"},
    "tasks": {"network", "models", "checkpoints", "data", "evaluation", "train", "inference", "hub", "hardware"}
    | {"config", "tokenizer", "distributed", "errors", "files", "outputs", "hashing", "command_line", "console"},
    "inference.cli": ANYTHING,
    "inference.opening": ANYTHING,  # options of verbs
    "interpret": {"inference", "models", "network", "tokenizer", "files", "outputs", "html_page", "errors", "console"}
    | {"hardware"}
    | {"data.formats", "data.sources", "data.images", "data.image_bytes", "data.places", "data.records"}
    | {"data.jsonl_shards", "data.transforms", "evaluation.bootstrap"},
    "interpret.features": {"inference", "interpret", "models", "network", "tokenizer", "files", "html_page", "errors"}
    | {"data.images", "data.image_bytes", "data.records", "evaluation.bootstrap"},
    "interpret.features.cli": ANYTHING,
    "interpret.causes.cli": ANYTHING,
    "interpret.cli": ANYTHING,
    "serve": {"inference", "interpret", "models", "distributed", "html_page", "errors", "files"}
    | {"data.images", "data.image_bytes", "data.pictures", "data.scans", "data.video", "data.frame_choice"},
    "serve.cli": ANYTHING,
    "capfilt": {"inference", "models", "data", "checkpoints", "config", "hardware"}
    | {"distributed", "errors", "files", "outputs", "hashing", "html_page", "tokenizer"},
    "capfilt.rounds": ANYTHING,
    "capfilt.cli": ANYTHING,
    "pubmed": {"errors", "files", "outputs", "hashing", "html_page", "data.images", "data.image_bytes"},
    # its shards are those that training streams, so it uses their writer; nothing else of pubmed needs it
    "pubmed.build": {"errors", "files", "outputs", "hashing", "html_page"}
    | {"data.images", "data.image_bytes", "data.webdataset"},
    "pubmed.run": {"errors", "files", "outputs", "hashing", "config", "data.image_bytes"},
    "pubmed.printed": {"command_line"},
    "pubmed.cli": ANYTHING,
    "shards": {"data", "hub", "outputs", "hashing", "files", "errors"},
    "shards.cli": ANYTHING,
    "shards.phantoms": ANYTHING,
    "reports": {"train", "options", "interpret", "inference", "models", "evaluation", "data", "config", "hub"}
    | {"tasks.config", "tasks.blip2_config", "tasks.data_options"}
    | {"tasks.pretrain_data", "html_page", "files", "errors"},
    "reports.cli": ANYTHING,
    "reports.labels": ANYTHING,
    "runs": {"tasks", "train", "data", "inference", "checkpoints", "reports", "config", "options", "console"}
    | {"html_page", "outputs", "distributed", "files", "errors"},
    "cli": ANYTHING,
    "__main__": {"cli"},
    "__init__": {"data", "inference", "interpret", "runs"},
}
TASK_MODELS = ("pretrain", "retrieval", "caption", "vqa", "nlvr", "dialogue", "blip2")

PACKAGE = ROOT / "blip"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def covers(name: str, module: str) -> bool:
    return module == name or module.startswith(name + ".")


def rule(module: str) -> str | None:
    """The line of the table that speaks of a module: the most exact one."""
    return max((name for name in MAY_IMPORT if covers(name, module)), key=len, default=None)


def room(module: str) -> str:
    return module.split(".")[0]


def imports(source: str, module: str = "") -> set[str]:
    """Modules of ours that a source imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide which module is meant"
            assert all(alias.name != "*" for alias in node.names), f"{module}: a star import hides what is used"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "blip" or name.startswith("blip."):
                inner = name.removeprefix("blip").removeprefix(".")
                while inner and inner not in MODULES:  # a function or class: its module is meant
                    inner = inner.rpartition(".")[0]
                found.add(inner or "__init__")
    return found


def forbidden(module: str, imported: set[str]) -> set[str]:
    own = rule(module) or ""
    allowed = MAY_IMPORT[own]
    if allowed == ANYTHING:
        return set()
    own = own if own in ("data.sets", "data.scans") else room(own)  # a room knows itself
    return {name for name in imported if not any(covers(a, name) for a in {*allowed, own})}


DIRECT = {name: imports(path.read_text(encoding="utf-8"), name) for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_what_the_table_allows(module: str) -> None:
    assert rule(module), f"{module} is new: put it into a room, or give it a line in MAY_IMPORT"
    wrong = forbidden(module, DIRECT[module])
    assert not wrong, (
        f"blip/{module.replace('.', '/')}.py imports {', '.join(sorted(wrong))}; see the table in {__file__}"
    )


@pytest.mark.parametrize("task", TASK_MODELS)
def test_no_model_of_a_task_imports_that_of_another(task: str) -> None:
    others = {f"models.{name}" for name in TASK_MODELS if name != task}
    assert not DIRECT[f"models.{task}"] & {*others, "models.factory"}


def reached(start: str, direct: dict[str, set[str]]) -> set[str]:
    """All that `start` imports, at whatever distance."""
    found: set[str] = set()
    waiting = list(direct[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += direct.get(name, set())
    return found


def test_no_module_imports_itself_by_a_detour() -> None:
    for module in MODULES:
        assert module not in reached(module, DIRECT), f"{module} imports itself by a detour"


def rooms() -> dict[str, set[str]]:
    """Which room imports which; a module at the top of the package counts as a room."""
    graph: dict[str, set[str]] = {}
    for module, names in DIRECT.items():
        graph.setdefault(room(module), set()).update(room(name) for name in names)
    return {name: others - {name} for name, others in graph.items()}


def floor(name: str, graph: dict[str, set[str]]) -> int:
    """1 for a room that imports no other, else one more than the highest that it imports."""
    return 1 + max((floor(other, graph) for other in graph[name]), default=0)


# name what the rooms offer, to the terminal and to Python; `capfilt` and `pubmed` are pipelines on top
COMMANDS = {"__init__", "__main__", "cli", "runs"}


def test_rooms_have_no_cycles_and_at_most_eight_floors() -> None:
    graph = rooms()
    for name in graph:
        assert name not in reached(name, graph), f"{name} imports itself by a detour over other rooms"
    floors = {name: floor(name, graph) for name in graph.keys() - COMMANDS}
    assert max(floors.values()) <= 8, floors


READING = (
    "pretrain.py", "blip/tasks/pretrain.py", "blip/data/pairs.py", "blip/models/pretrain.py", "blip/network/vit.py",
    "blip/network/med.py", "blip/models/losses.py",
)  # fmt: skip


def test_a_batch_is_read_in_the_order_that_the_documents_name() -> None:
    for document in ("docs/architecture.md", "README.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        places = [text.find(path) for path in READING]
        assert all(place >= 0 for place in places), f"{document} leaves out {READING[places.index(-1)]}"
    listed = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if re.match(r"\d+\. ", line)]
    stops = [path for line in listed for path in re.findall(r"`((?:blip/)?[\w/]+\.py)`", line)[:1]]
    assert stops[0] == "pretrain.py" and stops.index("blip/models/losses.py") <= 8, stops
    assert all((ROOT / path).is_file() for path in stops)


def test_the_reader_of_imports_reads_them_all() -> None:
    lines = [
        "import torch",
        "import blip.network.vit",
        "from blip import load, config",
        "from blip.models.pretrain import Output",
    ]
    source = "\n".join([*lines, "def f():", "    from blip.data.formats import iter_records"])
    assert imports(source) == {"network.vit", "config", "models.pretrain", "data.formats", "__init__"}
    assert forbidden("train.loop", {"models.pretrain", "distributed", "errors"}) == {"models.pretrain"}
    assert forbidden("models.pretrain", {"train.loop", "network.med"}) == {"train.loop"}
    assert forbidden("data.formats", {"config"}) == {"config"}
    assert forbidden("data.sets.captions", {"data.formats", "data.pairs"}) == {"data.pairs"}
    assert forbidden("pubmed.jats", {"config"}) == {"config"}


SCRIPTS = [path for path in ROOT.glob("*.py")]


def scripts_imports(source: str) -> set[str]:
    """What a script imports that it may not: another script, or a module of ours that is no task's."""
    tops = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else str(node.module).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    allowed = ("tasks", "train.launch", "config")
    ours = {name for name in imports(source) if not any(covers(room, name) for room in allowed)}
    return (tops & {path.stem for path in SCRIPTS}) | ours


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stand_on_tasks_alone(script: Path) -> None:
    if script.stem != "setup":
        assert not scripts_imports(script.read_text(encoding="utf-8"))


def test_the_rule_of_scripts_finds_what_breaks_it() -> None:
    source = "import pretrain\nimport blip.pubmed.fetch\nfrom blip.tasks.vqa import main"
    assert scripts_imports(source) == {"pretrain", "pubmed.fetch"}
