"""Which module may know which: read from the source, so that an import inside a function counts too."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

EVERYONE = {"errors"}  # what all may import
ANYTHING = {"*"}

# module -> what it may import, of ours; a name stands for the module and all below it
MAY_IMPORT: dict[str, set[str]] = {
    # files, numbers, processes
    "errors": set(),
    "config": set(),
    "tokenizer": set(),
    "distributed": set(),
    "weights": set(),
    # the network, top to bottom
    "attention": set(),
    "vit": {"attention"},
    "rows": set(),
    "words": {"rows"},
    "cross_attention": {"attention", "rows", "words"},
    "med": {"attention", "cross_attention", "rows", "words"},
    "losses": set(),
    "momentum": {"distributed"},
    "decoding": set(),
    "generation": {"decoding"},
    "lora": {"weights"},
    "models": {"vit", "med", "rows", "words", "attention", "losses", "momentum", "distributed"}
    | {"decoding", "generation", "models.matching", "models.decoding"},
    "models.task": {"models", "vit", "rows", "words"},
    "ranking": {"med", "rows"},
    # data
    "data.formats": set(),
    "data": {"config", "tokenizer", "distributed", "data"},
    # the loop: knows no model and no data
    "train": {"config", "distributed", "weights", "train"},
    # from a configuration to a model and back
    "convert": {"convert_names", "convert_sizes", "weights"},
    "convert_names": {"weights"},
    "convert_sizes": {"convert_names", "weights"},
    "task_config": {"config", "decoding"},
    "build": {"config", "convert", "weights", "vit", "med", "rows", "models", "momentum", "tokenizer", "distributed"},
    "start": {"build", "config", "task_config", "convert", "convert_names", "weights", "vit", "words", "rows", "models"}
    | {"tokenizer"},
    "finetune_pairs": {"finetune", "build", "data"},
    "finetune": {
        "build",
        "start",
        "config",
        "task_config",
        "lora",
        "weights",
        "models",
        "data",
        "train",
        "distributed",
    },
    "finetune_run": {"finetune", "start", "config", "task_config", "lora", "weights", "train", "distributed"},
    "dry_run": {"config", "build", "distributed", "flops", "momentum", "rows", "models", "data", "tokenizer", "train"},
    "predictor": {"models", "ranking", "rows", "decoding", "generation", "weights", "tokenizer", "data.transforms"},
    "predict": {"predictor", "decoding", "data.transforms"},
    "restore": {"predictor", "models", "vit", "words", "rows", "convert", "weights", "tokenizer"},
    # measures
    "flops": {"vit", "med"},
    "metrics": set(),
    "caption_scores": {"metrics", "bert_score"},
    "bert_score": set(),
    "rerank": {"distributed", "metrics", "models.matching", "models.retrieval", "rows", "med"},
    "evaluate": {"distributed", "metrics", "generation", "decoding", "models", "rows"},
    # a look inside
    "points": {"attention", "cross_attention", "med", "rows", "vit"},
    "tracing": {"attention", "points", "rows"},
    "internals": {"points", "tracing", "predictor"},
    "scoring": {"predictor", "models", "med", "rows"},
    "lenses": {"points", "tracing", "predictor", "med", "models"},
    "explain": {"internals", "lenses", "points", "tracing", "predictor", "scoring"},
    "pictures": {"explain"},
    "explain_files": {"explain", "pictures", "predict", "predictor", "data.formats", "data.transforms"},
    "localise": {"explain", "predictor", "models", "rows", "data.formats", "data.transforms"},
    "activations": {"explain_files", "internals", "points", "predictor", "scoring", "weights"}
    | {"data.shards", "data.transforms"},
    # captioning and filtering
    "capfilt": {"predictor", "scoring", "decoding", "data"},
    "capfilt_merge": {"data"},
    "capfilt_report": {"capfilt_merge", "data"},
    "capfilt_cli": ANYTHING,
    "pubmed": {"pubmed"},
    "pubmed_run": {"pubmed", "config", "weights"},
    "pubmed_cli": ANYTHING,
    # what people start
    "report": ANYTHING,
    "cli": ANYTHING,
    "__main__": {"cli"},
    "__init__": {"restore", "explain", "internals", "lenses"},
}

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


def imports(source: str, module: str = "") -> set[str]:
    """Modules of ours that a source imports, without the package's name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide who is meant"
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
    allowed = MAY_IMPORT[rule(module) or ""]
    if allowed == ANYTHING:
        return set()
    return {name for name in imported if not any(covers(a, name) for a in allowed | EVERYONE)}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_what_the_table_allows(module: str) -> None:
    assert rule(module), f"{module} is new: give it a line in MAY_IMPORT"
    wrong = forbidden(module, imports(MODULES[module].read_text(encoding="utf-8"), module))
    assert not wrong, (
        f"blip/{module.replace('.', '/')}.py imports {', '.join(sorted(wrong))}; see the table in {__file__}"
    )


@pytest.mark.parametrize("model", [name for name in MODULES if name.startswith("models.")])
def test_models_do_not_import_one_another(model: str) -> None:
    parts = {"models.matching", "models.decoding"}  # what models share; each knows no model
    if model == "models.task":  # which names them all
        return
    others = (
        {name for name in imports(MODULES[model].read_text()) if covers("models", name)} - parts - {model, "models"}
    )
    assert not others


def test_reading_order_has_no_way_back() -> None:
    """No module imports, over whatever detour, itself."""
    direct = {name: imports(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    for start in MODULES:
        reached, waiting = set(), list(direct[start])
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting += direct.get(name, set())
        assert start not in reached, f"{start} imports itself over a detour"


def test_the_reader_of_imports_reads_them_all() -> None:
    lines = [
        "import torch",
        "import blip.vit",
        "from blip import load, losses",
        "from blip.models.pretrain import Twin",
    ]
    source = "\n".join([*lines, "def f():", "    from blip.data.formats import iter_records"])
    assert imports(source) == {"vit", "losses", "models.pretrain", "data.formats", "__init__"}
    assert forbidden("train.engine", {"models.pretrain", "distributed", "errors"}) == {"models.pretrain"}
    assert forbidden("models.pretrain", {"train.engine", "losses"}) == {"train.engine"}
    assert forbidden("data.formats", {"tokenizer"}) == {"tokenizer"}
    assert forbidden("pubmed.articles", {"config"}) == {"config"}


SCRIPTS = [path for path in ROOT.glob("*.py")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_stand_on_the_package_alone(script: Path) -> None:
    tree = ast.walk(ast.parse(script.read_text(encoding="utf-8")))
    modules = {node.module.split(".")[0] for node in tree if isinstance(node, ast.ImportFrom) and node.module}
    assert not modules & {path.stem for path in SCRIPTS}, "what two scripts share belongs into the package"
