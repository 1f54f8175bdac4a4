"""Runs on DICOM files: trained, their windows kept with the weights, and used by whoever loads these."""

import json
from pathlib import Path

import pytest
import torch
from helpers.dicom import write_scans
from helpers.fine_tuning import configure, train

import blip
from blip.checkpoints.format import load_weights
from blip.data.image_bytes import ImageLimits
from blip.data.images import open_image
from blip.errors import BlipError
from blip.inference.opening import Reads, load_model
from blip.serve.items import Picture
from blip.serve.limits import Limits
from blip.train.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]
pytest.importorskip("pydicom", reason="pydicom is not installed")
CHANNELS = ("lung", "soft", "bone")


@pytest.mark.parametrize("pipeline", ["fast", "pil"])
def test_training_on_scans_and_volumes(pipeline: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_scans(tmp_path)
    items = [{"image": "ct/#slices=4"}, {"images": ["ct.dcm", "ct/1.dcm"]}, {"image": "ct.dcm"}, {"image": "ct/"}]
    records = [{**item, "caption": f"a skull {number}"} for number, item in enumerate(items * 2)]
    (tmp_path / "scans.json").write_text(json.dumps(records))
    files = [f"{part}_file=[{tmp_path / 'scans.json'}]" for part in ("train", "val", "test")]
    given = ("channels=[lung, soft, bone]", "slices=3", "max_steps=2", f"image_pipeline={pipeline}", *files)
    config = configure("caption", phantoms, tmp_path, *given, init_from=tiny_checkpoint)
    run = tmp_path / "run"
    train("caption", config, run)
    assert len(read_metrics(run)) >= 2 and not (run / "skipped.jsonl").exists()
    info = load_weights(run / "best")[1]
    assert info["channels"] == [*CHANNELS] and "window" not in info
    m, path = blip.load(run / "best"), tmp_path / "ct.dcm"
    expected = m.transform(open_image(path, ImageLimits(channels=CHANNELS)))
    assert torch.equal(m.pixels([path])[0], expected) and not torch.equal(m.transform(open_image(path)), expected)
    assert len(m.caption([str(path), f"{tmp_path}/ct/#slices=2"])) == 2
    if pipeline == "fast":
        other = load_model(str(run / "best"), "", "cpu", Reads(window="lung"))
        assert torch.equal(other.pixels([path])[0], m.transform(open_image(path, ImageLimits(window="lung"))))
        served = Picture("ct.dcm", path.read_bytes()).open(Limits(), m.limits)
        assert torch.equal(m.transform(served), expected)
        assert Reads(window="lung").chosen != Reads().chosen == ""
        with pytest.raises(BlipError, match="the window 'lungs' is none of lung"):
            load_model(str(run / "best"), "", "cpu", Reads(window="lungs"))
