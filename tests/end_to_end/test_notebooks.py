"""The notebooks of docs/ run; those stored there have the outputs of one run."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from helpers.running import ROOT

pytestmark = pytest.mark.slow
NOTEBOOKS = sorted(path.name for path in (ROOT / "docs").glob("*.ipynb"))
SETTINGS = "IMAGES, EPOCHS = "  # the first words of the cell that a test shortens
MOST = 1 << 20  # bytes of a stored notebook


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_stored_with_the_outputs_of_one_run(name: str) -> None:
    path = ROOT / "docs" / name
    code = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), (
        "run: python docs/run_notebook.py"
    )
    missing = ["".join(cell["source"]) for cell in code if not cell["outputs"]]
    assert all(source.startswith(SETTINGS) for source in missing), "run: python docs/run_notebook.py"
    assert path.stat().st_size < MOST and "Traceback" not in path.read_text(encoding="utf-8")


def test_the_notebook_of_fine_tuning_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    module = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))
    notebook = module["read"](ROOT / "docs" / "finetune_vqa.ipynb")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0].source.startswith(SETTINGS)
    cells[0].source = f"{SETTINGS}20, 1"
    module["run"](notebook, tmp_path)
    shown = {cell.source: "\n".join(map(text_of, cell.outputs)) for cell in cells}
    assert not any("Warning" in text or "Traceback" in text for text in shown.values())
    figures = [source for source, text in shown.items() if "image/png" in text]
    assert len(figures) == 3, "data, curves, answers"
    assert (tmp_path / "runs/vqa-1/report.html").is_file()


def text_of(output: Any) -> str:
    """An output's text and the names of its forms."""
    data = output.get("data", {})
    return "\n".join([output.get("text", ""), data.get("text/plain", ""), *data])
