"""Runs the notebooks of this folder and stores their outputs in them.

python docs/run_notebook.py                    all of them
python docs/run_notebook.py finetune_vqa.ipynb

Start it in the project's folder, where `make demo` leaves runs/demo, which internals.ipynb and side_heads.ipynb read.
The others run in a folder of their own, which is removed. It needs nbclient and ipykernel, which the extra `test` has.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
HERE = ("internals.ipynb", "side_heads.ipynb")  # run in the working directory
SHOWN = ("text/plain", "text/html", "image/png")  # forms of outputs that are stored
SECONDS = 900  # that a cell may take


def main(names: list[str]) -> None:
    """Runs the named notebooks, all unless given."""
    for name in names or sorted(path.name for path in DOCS.glob("*.ipynb")):
        path = DOCS / name
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(read(path), Path() if name in HERE else Path(folder))
        write(notebook, path)
        print(f"{path}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells")


def read(path: Path) -> Any:
    """A notebook's content."""
    import nbformat

    return nbformat.read(path, as_version=4)


def write(notebook: Any, path: Path) -> None:
    import nbformat

    nbformat.write(notebook, path)


def run(notebook: Any, folder: Path) -> Any:
    """The notebook with the outputs of a run in a kernel of its own, in a folder.

    Raises:
        CellExecutionError: a cell has failed.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}, allow_errors=False
    )
    client.execute()
    notebook.metadata.pop("widgets", None)  # of bars, which vanish when their work is done
    notebook.metadata.pop("language_info", None)  # the version of Python
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_kept, cell.outputs) if output is not None]
    return notebook


def _kept(output: Any) -> Any:
    """An output in the forms that are stored; None where it has none of them, is empty, or was a bar."""
    if output.output_type in ("display_data", "execute_result"):
        output.data = {form: content for form, content in output.data.items() if form in SHOWN}
        text = "".join(output.data.get("text/plain", ""))
        empty = not output.data or (output.output_type == "display_data" and text.strip() in ("", "Output()"))
        return None if empty and "image/png" not in output.data else output
    return output


if __name__ == "__main__":
    main(sys.argv[1:])
