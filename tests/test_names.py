"""Every name of this project in backticks, in docstrings and documents, is the name of something that exists.

What looks like a name of this project is decided by its form; other text in backticks is not checked:

- a command: `blip VERB ...` and `make TARGET`; the verb or target exists, and the other words are checked as below
- an option: `--name`; a command of the package, the root scripts, demo/ or benchmarks/ has it
- a path: in one of the project's folders, or ending in .py, .md, .yaml or .ipynb; it exists at the top, in blip/ or
  beside the file that names it, or anywhere if it is a bare file name. Capitals, as in TASK.py, stand for any name
- a dotted name whose first part is `blip`, one of its modules or one of its classes: such a definition exists
- a name with a call's brackets or in CamelCase, or with an underscore inside and no digit: it occurs in the sources
  outside of docstrings, in the tests or in configs/

The sources are read and not imported, so that names of modules behind an absent extra count too.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.running import ROOT
from typer.main import get_command

from blip.cli import app

FOLDERS = ("blip", "configs", "tests", "docs", "demo", "benchmarks")
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    [*ROOT.glob("*.py"), *(p for top in ("blip", "demo", "benchmarks") for p in (ROOT / top).rglob("*.py"))]
)
# they use names that the sources compose, such as those of scores
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
# of other packages and programs, though they look like ours
FOREIGN = {
    "transforms.v2",  # torchvision's
    "cross_attention.v",  # an ending of parameter names
    "config.yaml",  # of a run
    "rank_answer",  # the published code's
    "huggingface_hub",  # a library
}
DATA = (".json", ".jsonl", ".txt", ".npz", ".csv", ".html", ".tar", ".pth", ".safetensors")  # files of users and runs
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class Sources:
    """What the sources define (dotted, from `blip` down), which words occur in them, and which options they offer."""

    def __init__(self, paths: list[Path]) -> None:
        self.defined: set[str] = set()
        self.words: set[str] = set(dir(builtins))
        self.options: set[str] = {"--help"}
        self.firsts = {"blip"}  # with which a dotted name of ours begins
        self.bases: dict[str, list[str]] = {}
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            parts = path.relative_to(ROOT).with_suffix("").parts
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.define(module)
            self.firsts.add(module.rpartition(".")[2])
            self.words.update(parts)
            self.read_definitions(tree, module, exports=path.name == "__init__.py")
            self.read_words(tree)
        for path in TESTS:
            self.read_words(ast.parse(path.read_text(encoding="utf-8")))
        for path in (ROOT / "configs").glob("*.yaml"):
            self.words.add(path.stem)
            self.words.update(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE))

    def define(self, name: str) -> None:
        """With every shorter form: `blip.a.B.c`, `a.B.c`, `B.c`, `c`."""
        parts = name.split(".")
        self.defined.update(".".join(parts[i:]) for i in range(len(parts)))

    def resolves(self, name: str) -> bool:
        """Whether a dotted name is defined, in a class also by those that it extends."""
        if name in self.defined:
            return True
        owner, _, member = name.rpartition(".")
        extended = [base for base in self.bases.get(owner.rpartition(".")[2], []) if base not in owner.split(".")]
        return any(self.resolves(f"{base}.{member}") for base in extended)

    def read_definitions(self, node: ast.AST, scope: str, *, exports: bool = False) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                self.define(f"{scope}.{child.name}")
                if isinstance(child, ast.ClassDef):
                    self.firsts.add(child.name)
                    self.bases[child.name] = [ast.unparse(base).rpartition(".")[2] for base in child.bases]
                self.read_definitions(child, f"{scope}.{child.name}")
                continue
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                self.define(f"{scope}.{child.id}")
            elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):  # self.x in a method of a class
                self.define(f"{scope.rpartition('.')[0]}.{child.attr}")
            elif isinstance(child, ast.alias) and exports:
                self.define(f"{scope}.{child.asname or child.name}")
            self.read_definitions(child, scope, exports=exports)

    def read_words(self, tree: ast.Module) -> None:
        prose = {id(node.body[0].value) for node in ast.walk(tree) if has_docstring(node)}
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)) if id(node) not in prose:
                    self.words.update(re.findall(r"\w+", text))
                    self.options.update(re.findall(r"--[a-z]\w*(?:-\w+)*", text))
                case ast.arg(arg=name, annotation=annotation):
                    self.words.add(name)
                    if annotation is not None and "typer.Option" in ast.unparse(annotation):
                        self.options.add("--" + name.strip("_").replace("_", "-"))
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    self.words.add(name)
                case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                    self.words.add(name)
                case ast.alias(name=name) | ast.keyword(arg=str(name)):
                    self.words.update(name.split("."))


def has_docstring(node: ast.AST) -> bool:
    own = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return own and ast.get_docstring(node) is not None


@cache
def sources() -> Sources:
    return Sources(SOURCES)


def verbs() -> set[str]:
    """`check-data`, `capfilt`, `capfilt merge` and so on."""
    groups = getattr(get_command(app), "commands", {})
    below = {f"{name} {verb}" for name, group in groups.items() for verb in getattr(group, "commands", {})}
    return {*groups, *below}


def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def problem(span: str, document: Path) -> str:
    """What is wrong with this text in backticks; empty where nothing is, or where it is not ours."""
    if span in FOREIGN:
        return ""
    words = span.split()
    if words[0] == "blip" and len(words) > 1:
        verb = " ".join(words[1:3]) if words[1] in ("capfilt", "pubmed") else words[1]
        if verb.islower() and verb not in verbs():
            return f"blip has no verb {verb}"
    if words[0] == "make" and len(words) > 1 and words[1] not in targets():
        return f"the Makefile has no target {words[1]}"
    if len(words) > 1:
        is_command = words[0] in ("blip", "python", "torchrun", "make") or words[0].startswith("--")
        parts = words if is_command else []
        return next((found for word in parts if (found := problem(word, document))), "")
    if span.startswith("--"):
        name = re.split("[ =]", span)[0]
        return "" if name in sources().options else f"no command has the option {name}"
    if is_path(span):
        return "" if exists(span, document) else f"there is no file {span}"
    return problem_of_name(span)


def problem_of_name(span: str) -> str:
    called = re.fullmatch(r"([\w.]+)\(.*\)", span)
    name = called[1] if called else span
    if not IDENTIFIER.fullmatch(name) or name.endswith(DATA):
        return ""
    if "." in name:
        ours = name.split(".")[0] in sources().firsts
        return f"nothing defines {name}" if ours and not sources().resolves(name) else ""
    camel = re.fullmatch(r"(?:[A-Z][a-z0-9]+){2,}", name)
    joined = "_" in name.strip("_") and not re.search(r"\d", name)  # names with digits are composed: `i2t_r1`
    if (called or camel or joined) and name not in sources().words:
        return f"the sources have no {name}"
    return ""


def is_path(span: str) -> bool:
    if not re.fullmatch(r"[\w./*-]+", span) or span.startswith("/"):
        return False
    return (span.split("/")[0] in FOLDERS and "/" in span) or span.endswith((".py", ".md", ".yaml", ".ipynb"))


def exists(span: str, document: Path) -> bool:
    pattern = "/".join(re.sub(r"\b[A-Z]+\b|(?<=_)[A-Z]+\b", "*", part) for part in span.strip("/").split("/"))
    starts = [ROOT, ROOT / "blip", document.parent]
    for wanted in (span.strip("/"), pattern):
        if any(next(start.glob(wanted), None) for start in starts):
            return True
        if "/" not in wanted and any(next((ROOT / name).rglob(wanted), None) for name in FOLDERS):
            return True
    return False


def spans(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of everything in single backticks, in a document outside of its blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
        yield from found(text, 1)
        return
    for node in ast.walk(ast.parse(text)):
        if has_docstring(node):
            docstring = node.body[0].value  # type: ignore[attr-defined]
            yield from found(docstring.value, docstring.lineno)


def found(text: str, first: int) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), first):
        yield from ((number, span) for span in SPAN.findall(line) if span.strip())


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_names_resolve(path: Path) -> None:
    wrong = [f"{path.relative_to(ROOT)}:{line}: `{span}`: {message}" for line, span in spans(path)
             if (message := problem(span, path))]  # fmt: skip
    assert not wrong, "\n" + "\n".join(wrong)


OURS = [
    "blip.load(path)", "config.RunConfig", "blip.config.PretrainConfig.batch_size", "ConfigError", "dump_config()",
    "equal_captions", "--output_dir", "--set key=value", "blip/config.py", "config.py", "configs/pretrain_demo.yaml",
    "configs/*.yaml", "configs/NAME.yaml", "tests/", "blip check-data FILE", "blip pubmed run", "make test",
]  # fmt: skip
NOT_OURS = ["nn.Module", "text.0.cross.z", "image", "metrics.jsonl", ".pth", "[ENC]", "10^5", "runs/demo", "hub:NAME"]
STALE = [
    "blip.lode(path)", "config.RunConfigs", "blip.config.RunConfig.batch_sise", "RunConfig.batch_sise", "ConfigErrors",
    "dump_configs()", "equal_captionz", "--output_dri", "--sett key=value", "blip/configs.py", "configs.py",
    "configs/pretrain_demo2.yaml", "tests/nothing/*.py", "blip check-dato FILE", "blip pubmed runs", "make tests",
    "blip caption --chekpoint x",
]  # fmt: skip


@pytest.mark.parametrize("span", [*OURS, *NOT_OURS])
def test_what_exists_or_is_not_ours_passes(span: str) -> None:
    assert problem(span, ROOT / "README.md") == ""


@pytest.mark.parametrize("span", STALE)
def test_what_is_stale_fails(span: str) -> None:
    assert problem(span, ROOT / "README.md")
