"""Every verb that writes, with a small command, and a folder with what these commands read."""

import json
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blip.capfilt.candidates import SYNTHETIC, WEB
from blip.data.jsonl_shards import write_jsonl_shards
from blip.data.phantoms import write_phantoms
from blip.interpret.activation_shards import INDEX, write_shard
from blip.interpret.activations import Capture
from helpers.random_checkpoints import ANSWERS, random_checkpoint
from helpers.written_runs import write_answers

ARTICLE = """<?xml version="1.0"?><article xmlns:xlink="http://www.w3.org/1999/xlink"><front><article-meta>
<article-id pub-id-type="pmc">PMC1</article-id></article-meta></front><body><fig id="f1"><label>Figure 1</label>
<caption><p>Axial MRI of the brain.</p></caption><graphic xlink:href="a.png"/></fig></body></article>"""


@dataclass(frozen=True)
class Verb:
    """A command with the words OUT, its output's usual name, and files among its inputs that an output might replace.

    `other` are the words that, in place of the first ones, make it a command for other inputs.
    """

    command: str
    out: str
    inputs: tuple[str, ...]
    other: tuple[str, str]
    folder: bool = False
    whole: bool = True  # it runs here to its end: without a server or a training

    def words(self, out: str, *more: str, other: bool = False) -> list[str]:
        command = self.command.replace(*self.other) if other else self.command
        return [word.replace("OUT", out) for word in shlex.split(command)] + list(more)


IMAGE = "images/000000.png"
CAPTIONS = ("captions.json", "others.json")
CAPFILT = "--set web_file=[captions.json] --set human_file=[captions.json] --set start=caption"
VERBS = {
    "caption": Verb("caption images --checkpoint caption --max_new_tokens 3 --out OUT", "rows.json",
                    (IMAGE, "caption/model.json", "caption/model.safetensors"), ("images", IMAGE)),
    "match": Verb("match captions.json --text 'a lesion' --checkpoint retrieval --out OUT", "rows.json",
                  ("captions.json", IMAGE, "retrieval/tokenizer.json"), ("a lesion", "a chest")),
    "answer": Verb("answer images --question 'is there a lesion' --answers list.txt --checkpoint vqa --out OUT",
                   "rows.json", ("list.txt", IMAGE), ("a lesion", "a chest")),
    "explain": Verb("explain images/000000.png 'a lesion' --checkpoint retrieval --out OUT", "map.html", (IMAGE,),
                    ("a lesion", "a chest")),
    "explain, pictures": Verb("explain captions.json --checkpoint retrieval --out OUT", "maps.png", (), CAPTIONS),
    "activations": Verb("activations captions.json --checkpoint retrieval --points text.0.out --shard_size 2 --out OUT",
                        "acts", ("images", "retrieval", "."), CAPTIONS, folder=True),
    "localise": Verb("localise named/captions.json --checkpoint retrieval --method raw --limit 2 --out OUT",
                     "points.json", ("named/captions.json", "named/images/000000.png"), ("named/", "named2/")),
    "probe": Verb("probe states --labels named/captions.json --label lesions.0.box.0 --folds 2 --out OUT",
                  "scores.json", ("named/captions.json", "states/index.json"), ("box.0", "box.1")),
    "sae train": Verb("sae train states --point image.0.out --features 6 --k 2 --steps 2 --out OUT", "sae",
                      ("states", "."), ("--steps 2", "--steps 3"), folder=True),
    "score-maps": Verb("score-maps named/captions.json --checkpoint retrieval --method raw --limit 2 --score curves "
                       "--steps 1 --out OUT", "scored_maps", ("named", "retrieval", "."), ("named/", "named2/"),
                       folder=True),
    "ablate": Verb("ablate captions.json --checkpoint retrieval --by mlp --shard_size 2 --out OUT", "ablated",
                   ("images", "retrieval", "."), CAPTIONS, folder=True),
    "check-data": Verb("check-data captions.json --num_workers 0 --report OUT", "report.json",
                       ("captions.json", IMAGE), CAPTIONS),
    "convert": Verb("convert retrieval OUT", "converted",
                    ("retrieval", "."), ("convert retrieval", "convert caption"), folder=True),
    "convert, one file": Verb("convert retrieval OUT --to salesforce", "model.pth",
                              ("retrieval/model.safetensors", "retrieval/model.json"),
                              ("convert retrieval", "convert caption")),
    "phantoms": Verb("phantoms OUT --count 3 --image_size 16", "drawn", (), ("", ""), folder=True),
    "capfilt caption": Verb("capfilt caption --checkpoint caption --data captions.json --shard_size 2 "
                            "--max_new_tokens 3 --out OUT", "written", ("caption", "."), CAPTIONS, folder=True),
    "capfilt filter": Verb("capfilt filter --checkpoint retrieval --data captions.json --shard_size 2 --out OUT",
                           "filtered", ("retrieval", "."), CAPTIONS, folder=True),
    "capfilt merge": Verb("capfilt merge --scored scored --keep captions.json --out OUT", "merged.json",
                          ("captions.json", "scored/settings.json"), CAPTIONS),
    "capfilt merge, shards": Verb("capfilt merge --scored scored --keep captions.json --tar_size 2 --out OUT", "tars",
                                  ("scored", "."), CAPTIONS, folder=True),
    "capfilt report": Verb("capfilt report --scored scored --out OUT", "page.html",
                           ("scored/shard-00000.jsonl",), ("scored --out", "scored2 --out")),
    "capfilt run": Verb(f"capfilt run --config configs/capfilt.yaml {CAPFILT} --output_dir OUT", "rounds",
                        ("caption", "."), CAPTIONS, folder=True, whole=False),
    "data shard": Verb("data shard captions.json --image_size 16 --num_workers 0 --out OUT", "shards",
                       ("images", "."), CAPTIONS, folder=True),
    "show": Verb("show captions.json --limit 2 --out OUT", "page.html", (), CAPTIONS),
    "report": Verb("report run --out OUT", "page.html", (), ("report run", "report run2")),
    "pubmed search": Verb("pubmed search brain --email a@b.org --eutils http://127.0.0.1:9 --out OUT", "corpus", (),
                          ("", ""), folder=True, whole=False),
    "pubmed extract": Verb("pubmed extract articles --out OUT", "figures.jsonl",
                           ("articles/a.xml", "articles/a.png", "articles/notes.txt"), ("articles", "articles2")),
    "pubmed split": Verb("pubmed split pairs.jsonl --out OUT", "parts.jsonl", ("pairs.jsonl",),
                         ("pairs.jsonl", "pairs2.jsonl")),
    "pubmed build": Verb("pubmed build pairs.jsonl --split_shares 1 0 0 --shards --out OUT", "dataset2", (".",),
                         ("pairs.jsonl", "pairs2.jsonl"), folder=True),
    "pubmed report": Verb("pubmed report dataset --out OUT", "page.html", ("dataset/build.json", "dataset/train.json"),
                          ("dataset", "dataset1")),
    "pubmed run": Verb("pubmed run --config configs/pubmed_brain.yaml --set email=a@b.org --set folder=corpus2 "
                       "--set dataset=OUT", "dataset3", (), ("", ""), folder=True, whole=False),
}  # fmt: skip


def make_inputs(folder: Path, root: Path) -> None:
    """Everything that the commands name, in `folder`; `root` is that of the project."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, about in {"caption": {"prompt": "a"}, "vqa": {"answers": ANSWERS}, "retrieval": {}}.items():
        random_checkpoint(folder, task, **about)
    for name in ("captions", "others"):
        data = write_phantoms(folder, 3, seed=1, image_size=24, max_lesions=1)
        records = [{"image": r["image"], "caption": f"a lesion of {name}"} for r in json.loads(data.read_text())]
        (folder / f"{name}.saved").write_text(json.dumps(records))
    for name in ("captions", "others"):
        (folder / f"{name}.saved").rename(folder / f"{name}.json")
    for name in ("named", "named2"):
        write_phantoms(folder / name, 6, seed=2, image_size=24, max_lesions=2, name_one=True)
        records = json.loads((folder / name / "captions.json").read_text())
        for record in records:
            record["caption"] = "a large lesion"
        (folder / name / "captions.json").write_text(json.dumps(records))
    for name in ("run", "run2"):
        write_answers(folder / name)
    (folder / "list.txt").write_text("yes\nno\n")
    write_states(folder / "states", 6)
    (folder / "configs").symlink_to(root / "configs")
    _capfilt_and_pubmed(folder)


def write_states(folder: Path, count: int, width: int = 8) -> None:
    """Activations of `count` records, as `blip activations` writes them: five random tokens each at `image.0.out`."""
    folder.mkdir()
    states = {"image.0.out": torch.randn(count, 5, width, generator=torch.Generator().manual_seed(0))}
    name = write_shard(folder, 0, states, records=[*range(count)], form="safetensors")
    what = Capture("weights", "data", [*states], "image", records=count, contents="images")
    shapes = {point: list(x.shape) for point, x in states.items()}
    what.shards = [{"file": name, "asked": count, "records": [*range(count)], "shapes": shapes, "problems": []}]
    (folder / INDEX).write_text(json.dumps(asdict(what)))


def _capfilt_and_pubmed(folder: Path) -> None:
    images = [str(folder / "images" / f"{n:06d}.png") for n in range(3)]
    lines = [{"image": image, "text": f"text {n}", "source": (WEB, SYNTHETIC)[n % 2], "round": 0, "match": 0.9,
              "itc": 0.1, "model": "m"} for n, image in enumerate(images)]  # fmt: skip
    list(write_jsonl_shards(folder / "scored", {"step": "score"}, 1, make_lines=lambda block: lines))
    (folder / "articles").mkdir()
    (folder / "articles" / "a.xml").write_text(ARTICLE)
    (folder / "articles" / "notes.txt").write_text("mine")
    pixels = np.random.default_rng(0).integers(0, 255, (4, 90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels[0]).save(folder / "articles" / "a.png")
    pairs = []
    for n, name in enumerate(("b.png", "c.png", "d.png"), start=1):
        Image.fromarray(pixels[n]).save(folder / name)
        pairs.append({"image": str(folder / name), "caption": "Axial MRI of the brain.", "article": f"PMC{n}",
                      "figure": "f1", "label": "Figure 1", "license": "CC0", "retracted": False, "authors": [],
                      "journal": "J", "doi": "", "article_title": "A title"})  # fmt: skip
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "pairs2.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs[1:]))
    for name in ("articles", "scored"):
        shutil.copytree(folder / name, folder / f"{name}2")


def snapshot(folder: Path) -> dict[str, object]:
    """Name -> content and permissions of every file, folder, link and pipe below a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat().st_mode
        content: object = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(folder))] = (about, content)
    return found


def shown(found: dict[str, object]) -> dict[str, object]:
    """A snapshot without the hidden files by which outputs are known."""
    return {name: content for name, content in found.items() if not Path(name).name.startswith(".")}
