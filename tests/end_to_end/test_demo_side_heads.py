"""The demonstration of heads that carry the side, and its notebook, with an untrained model."""

import json
from pathlib import Path

import pytest
import side_heads as sides
import torch
from helpers.running import ROOT

import blip

pytestmark = pytest.mark.slow
NOTEBOOK = ROOT / "docs" / "side_heads.ipynb"


def test_heads_are_found_and_tested(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "DRAWS", 2)
    sides.main(tiny_checkpoint, tmp_path / "heads.json", searched=2, held_out=3)
    results = json.loads((tmp_path / "heads.json").read_text())
    assert results.keys() == {"caption", "match"}
    for metric, ways in results.items():
        assert list(ways) == ["left to right", "right to left"]
        for result in ways.values():
            assert 1 <= len(result["heads"]) <= result["of"], metric
            assert all(0 <= share <= 1 for share in result.values() if isinstance(share, float))


def test_patched_heads_have_the_outputs_for_the_other_image(tiny_checkpoint: Path) -> None:
    m, pairs = blip.load(tiny_checkpoint), sides.Opposites.drawn(3, seed=0)
    values = sides.outputs(m, "caption", pairs.opposites, pairs)
    plain = sides.preference(m, "caption", pairs.images, pairs)
    torch.testing.assert_close(sides.patched_preference(m, "caption", pairs, [], values), plain)
    cross = [head for head in sides.heads_of(values) if "cross" in head[0]]  # the only way from an image to the decoder
    patched = sides.patched_preference(m, "caption", pairs, cross, values)
    torch.testing.assert_close(patched, sides.preference(m, "caption", pairs.opposites, pairs))
    assert not torch.allclose(patched, plain)
    turned = sides.preference(m, "caption", pairs.opposites, pairs.turned())
    torch.testing.assert_close(turned, -sides.preference(m, "caption", pairs.opposites, pairs))


def test_the_notebook_runs(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for module in ("matplotlib.pyplot", "sklearn"):
        pytest.importorskip(module)
    import matplotlib

    matplotlib.use("Agg")
    (tmp_path / "runs/demo/run/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/demo/run/checkpoints/latest").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sides, "DRAWS", 2)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    scope: dict = {}
    for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
        source = "".join(cell["source"]).replace("drawn(32,", "drawn(6,").replace("drawn(200,", "drawn(10,")
        exec(compile(source, f"cell {number + 1}", "exec"), scope)
    assert "image.0.attn.z:  head 0" in capsys.readouterr().out
