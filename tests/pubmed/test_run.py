"""From a local server to a data set and pre-training on it; captions compared with those of pubmed_parser."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.real_files import need
from helpers.running import ROOT, Program, run_verb
from helpers.tiny import MODEL_SIZES
from PIL import Image
from pmc_server import Faults, Library, Server

pytest.importorskip("lxml")
pytest.importorskip("httpx")
pytest.importorskip("imagehash")

from blip.config import ConfigError, load_config
from blip.pubmed.catalogue import Catalogue
from blip.pubmed.config import PubmedConfig
from blip.pubmed.jats import parse_article
from blip.train.log import read_metrics


@pytest.mark.slow
def test_from_search_to_ten_steps_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library = Library(14)
    with Server(library, Faults(share=0.2, most=1, kinds=("500", "short", "wrong"))) as server:
        options = {"email": "me@lab.org", "eutils": server.url, "bucket": server.url, "rate": 100, "num_workers": 2,
                   "split_shares": "[0.7, 0.15, 0.15]", "min_side": 32, "shards": "true"}  # fmt: skip
        command = ["pubmed", "run", "--config", str(ROOT / "configs" / "pubmed_brain.yaml"),
                   *(part for name, value in options.items() for part in ("--set", f"{name}={value}"))]  # fmt: skip
        result = run_verb(*command)
        assert result.exit_code == 0, result.output
        kept = [p for p in library.pmcids if library.license(p) in ("CC BY", "CC0") and not library.retracted(p)]
        assert Catalogue(Path("corpus")).pmcids("done") == kept
        asked = len(server.log)
        again = run_verb(*command)
        assert again.exit_code == 0 and len(server.log) == asked and "split: done before" in again.output
    train = json.loads(Path("dataset/train.json").read_text())
    assert len(train) >= 16 and {record["license"] for record in train} <= {"CC-BY-4.0", "CC0-1.0"}
    assert Path("dataset/report.html").stat().st_size > 10_000
    for file in ("dataset/train.json", "dataset/shards/train"):
        changes = {
            **MODEL_SIZES,
            "image_size": 32,
            "train_file": f"[{file}]",
            "val_file": "[]",
            "max_steps": 10,
            "batch_size": 4,
            "queue_size": 16,
            "log_every_steps": 1,
            "tokenizer": "train",
            "num_workers": 0,
        }
        command = [str(ROOT / "pretrain.py"), "--config", str(ROOT / "configs" / "pretrain_demo.yaml"),
                   "--output_dir", f"run_{file.count('/')}",
                   *(part for name, value in changes.items() for part in ("--set", f"{name}={value}"))]  # fmt: skip
        done = Program(*command, folder=tmp_path).finish()
        assert done.returncode == 0, done.stderr[-3000:]
        assert "step 10/10" in done.stderr, done.stderr[-2000:]
        last = read_metrics(tmp_path / f"run_{file.count('/')}")[-1]
        assert last["step"] == 10 and last["pairs_pubmed"] == 40


def test_run_names_what_is_wrong_in_its_configuration(tmp_path: Path) -> None:
    config = tmp_path / "pubmed.yaml"
    config.write_text("query: brain\nlicense: [CC-BY]\n")
    result = run_verb("pubmed", "run", "--config", config)
    assert result.exit_code == 1 and "license" in result.output and "licenses" in result.output
    config.write_text("query: brain\n")
    result = run_verb("pubmed", "run", "--config", config, "--set", f"folder={tmp_path / 'c'}")
    assert result.exit_code == 1 and "--set email=" in result.output


def test_options_of_earlier_versions_are_read(tmp_path: Path) -> None:
    config = tmp_path / "pubmed.yaml"
    config.write_text("query: brain\nworkers: 3\nsplits: [0.6, 0.2, 0.2]\n")
    settings = load_config(config, PubmedConfig)
    assert settings.num_workers == 3 and settings.split_shares == (0.6, 0.2, 0.2)
    assert load_config(config, PubmedConfig, ["num_workers=5"]).num_workers == 5
    config.write_text("query: brain\nnum_workers: 3\n")
    assert load_config(config, PubmedConfig, ["workers=5"]).num_workers == 5
    with pytest.raises(ConfigError, match="worker"):
        load_config(config, PubmedConfig, ["worker=5"])


def test_spellings_of_earlier_versions(tmp_path: Path) -> None:
    """`--workers`, `--splits`, `--confidence` and `--no_whole` are what the present names are."""
    image = tmp_path / "a.png"
    Image.effect_noise((100, 100), 60).save(image)
    line = {"image": str(image), "caption": "An MRI scan.", "article": "PMC1", "license": "CC0", "confidence": 0.4,
            "how": "whole", "panels": [[0, 0, 1, 1], [1, 1, 2, 2]]}  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")

    def build(*options: str) -> tuple[int, str]:
        out = ("--out", tmp_path / "out", "--overwrite")
        result = run_verb("pubmed", "build", tmp_path / "pairs.jsonl", *out, *options)
        return result.exit_code, result.output

    for workers, shares, confidence in (("--workers", "--splits", "--confidence"),
                                        ("--num_workers", "--split_shares", "--min_confidence")):  # fmt: skip
        options = (workers, "1", shares, "0", "0", "1", confidence, "0.3", "--min-words", "2")
        code, said = build(*options)
        assert code == 0 and "test: 1 pairs" in said, said
        for no_whole in ("--no_whole", "--no_keep_whole"):
            code, said = build(*options, no_whole)
            assert code == 1 and "compound figure that stayed whole 1" in said, said


# ---- captions of somebody else's parser ------------------------------------------------------------------------------


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.real_data
def test_captions_are_those_of_pubmed_parser_where_it_is_right(data_dir: Path) -> None:
    """It drops elements within elements, such as formulas and raised alleles: all that it has is in ours, in order."""
    parser: Any = pytest.importorskip("pubmed_parser")
    compared = equal = 0
    articles = need(data_dir, "jats")
    for path in sorted(articles.rglob("*.xml")) + sorted(articles.rglob("*.nxml")):
        own = {figure.id: figure for figure in parse_article(path).figures}
        for row in parser.parse_pubmed_caption(str(path)) or []:
            figure = own[row["fig_id"]]
            compared += 1
            ours, theirs = letters(figure.caption), letters(row["fig_caption"])
            equal += ours == theirs
            rest = iter(ours)
            assert all(letter in rest for letter in theirs), f"{path.name}, {figure.id}"
            assert letters(figure.label).strip(".:") == letters(row["fig_label"]).strip(".:")
    assert compared > 0 and equal >= 0.5 * compared, f"{equal} of {compared} captions are equal"
