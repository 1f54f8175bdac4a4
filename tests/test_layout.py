"""The shape of the package: sizes of files and functions, the rooms, and who may compare names of tasks."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from helpers.running import ROOT

from blip.models.factory import TASKS

PACKAGE = ROOT / "blip"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES_AT_THE_TOP = 300, 60, 12
ROOMS = "network models data data/sets data/scans checkpoints evaluation train inference tasks interpret capfilt"
ROOMS += " distributed hub hardware pubmed pubmed/panels serve shards console options reports runs interpret/causes"
ROOMS += " interpret/features"


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def names_a_task(side: ast.expr) -> bool:
    """Whether an operand of a comparison is the name of a task, or a collection of such names."""
    parts = side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side]
    return any(isinstance(part, ast.Constant) and part.value in TASKS for part in parts)


def comparisons_with_a_task(source: str) -> list[int]:
    """Lines that compare something called a task with the name of one, or that match on it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(names_a_task, sides)) and any("task" in ast.unparse(side) for side in sides):
                found.append(node.lineno)
        elif isinstance(node, ast.Match) and "task" in ast.unparse(node.subject):
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_and_functions_can_be_read_at_once(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in functions(ast.parse(source))
        if node.end_lineno and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert not long


def test_the_top_of_the_package_holds_few_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_TOP


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their names alone: of two with one name, a whole run cannot read the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_every_room_is_there_and_describes_itself() -> None:
    found = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    assert found == set(ROOMS.split())
    for room in found:
        docstring = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
        listed = set(docstring.replace("`", " ").replace(",", " ").split())
        missing = {path.stem for path in (PACKAGE / room).glob("*.py")} - {"__init__"} - listed
        assert not missing, f"blip/{room}/__init__.py does not name {', '.join(sorted(missing))}"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_only_the_specs_and_the_tasks_know_a_task_by_name(path: Path) -> None:
    inside = path.relative_to(PACKAGE).as_posix()
    if inside == "models/factory.py" or inside.startswith("tasks/"):
        return
    lines = comparisons_with_a_task(path.read_text(encoding="utf-8"))
    assert not lines, f"blip/{inside}, lines {lines}: ask `blip.models.factory.spec_of`"


def test_the_reader_of_comparisons_finds_them() -> None:
    lines = [
        'if task == "vqa" or info["task"] in ("caption", "x") or kind == "vqa":',
        "    match task:",
        "        case _: pass",
    ]
    assert sorted(comparisons_with_a_task("\n".join(lines))) == [1, 1, 2]
