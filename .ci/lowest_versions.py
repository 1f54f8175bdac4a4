"""Prints the lowest version of every requirement and of every extra, as `name==version` lines for pip.

    python .ci/lowest_versions.py > lowest.txt

Reads requirements.txt and the extras of pyproject.toml, except the extras `lint` and `docs`, which are tools of a
checkout, and `serve`: gradio needs a later huggingface_hub than the lowest transformers allows. Its tests are skipped.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {"lint", "docs", "serve"}


def main() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "requirements.txt").read_text().split()
    lines += [line for extra, required in extras.items() if extra not in LEFT_OUT for line in required]
    for line in sorted(set(lines)):
        if line.startswith("blip["):  # an extra that names others
            continue
        if not re.fullmatch(r"[\w.-]+>=[\d.]+", line):
            sys.exit(f"{line}: expected name>=version")
        print(line.replace(">=", "=="))


if __name__ == "__main__":
    main()
