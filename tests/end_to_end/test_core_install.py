"""What works without any extra: `pip install -e .` alone gives every help text and every list of options."""

import re
import subprocess
import sys
import tomllib

from helpers.running import ROOT

CODE = """
import sys

for name in {blocked}:
    sys.modules[name] = None  # importing it fails, as where it is not installed

import typer
from typer.testing import CliRunner

from blip.cli import TASKS, app


def verbs(command, words):
    for name, inner in getattr(command, "commands", {{}}).items():
        yield [*words, name]
        yield from verbs(inner, [*words, name])


commands = [[*words, "--help"] for words in verbs(typer.main.get_command(app), []) if words != ["torchrun"]]
commands += [["options"], *(["options", task] for task in TASKS)]
assert len(commands) > 30
for command in commands:
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (command, result.output, result.exception)
"""


def modules_of_extras() -> list[str]:
    """The import names of the packages of all extras that requirements.txt does not have."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    added = [line for name, lines in extras.items() if name not in ("test", "lint", "docs") for line in lines]
    core = names_of((ROOT / "requirements.txt").read_text().splitlines())
    return sorted(name.replace("-", "_") for name in names_of(added) - core)


def names_of(requirements: list[str]) -> set[str]:
    """The packages that lines such as `torch>=2.6` name."""
    return {match[0].lower() for match in map(re.compile(r"[A-Za-z0-9_.-]+").match, requirements) if match}


def test_help_and_options_need_no_extra() -> None:
    blocked = modules_of_extras()
    assert {"lxml", "matplotlib", "gradio", "datasets", "transformers"} <= set(blocked)
    code = CODE.format(blocked=blocked)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
