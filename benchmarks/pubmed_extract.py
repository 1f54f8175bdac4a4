"""`blip pubmed extract` beside `pubmed_parser`, and its memory over many articles.

    python benchmarks/pubmed_extract.py --jats FOLDER [--articles 100000]

The peer is called once for captions and once for paragraphs with their references, as its users do for what one call of
ours returns; its captions are compared first. Then the folder's articles are extracted as if there were `--articles` of
them. The last line is one JSON object; articles a second are of `--threads` processes.
"""

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pubmed_parser

from benchmarks import harness
from blip.pubmed import extract as extract_module
from blip.pubmed.jats import parse_article


def letters(text: str) -> str:
    """Without blanks, and without what comes out of formulas, which the peer leaves out."""
    return "".join(text.split())


def compare(articles: list[Path]) -> dict[str, int]:
    """Figures of both, captions that are equal, those where ours has more words."""
    counts = {"ours": 0, "theirs": 0, "equal": 0, "ours_longer": 0}
    for path in articles:
        own = {figure.id: figure for figure in parse_article(path).figures}
        other = {row["fig_id"]: row for row in pubmed_parser.parse_pubmed_caption(str(path)) or []}
        counts["ours"] += len(own)
        counts["theirs"] += len(other)
        for name in own.keys() & other.keys():
            a, b = letters(own[name].caption), letters(other[name]["fig_caption"])
            counts["equal"] += a == b
            counts["ours_longer"] += len(a) > len(b)
    return counts


def peak_mb() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * 1024 / 1e6


def theirs(articles: list[Path]) -> None:
    for path in articles:
        pubmed_parser.parse_pubmed_caption(str(path))
        pubmed_parser.parse_pubmed_paragraph(str(path), all_paragraph=True)


def many(articles: list[Path], count: int, workers: int) -> dict[str, float]:
    """Extracts links to a few articles, `count` in all; the largest process's peak at a tenth and at the end."""
    with tempfile.TemporaryDirectory() as place:
        folder, memory = Path(place) / "articles", {}
        for part in (count // 10, count):
            for at in range(0 if part < count else count // 10, part):
                source = articles[at % len(articles)]
                here = folder / f"{at // 1000:04}" / f"{at:07}"
                here.mkdir(parents=True)
                os.symlink(source, here / source.name)
            with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process whose peak is of this run alone
                seconds, peak, figures = pool.apply(_extract, (folder, Path(place) / f"{part}.jsonl", workers))
            memory[part] = peak
        return {"articles": count, "articles_a_second": count / seconds, "figures": figures,
                "peak_mb_at_a_tenth": round(memory[count // 10], 1), "peak_mb": round(memory[count], 1)}  # fmt: skip


def _extract(folder: Path, out: Path, workers: int) -> tuple[float, float, int]:
    multiprocessing.current_process()._config["daemon"] = False  # it has processes of its own
    started = time.perf_counter()
    found = extract_module.extract(folder, out, workers)
    return time.perf_counter() - started, peak_mb(), found.figures


def main() -> None:
    parser = harness.options(__doc__, repeats=5)
    parser.add_argument("--jats", type=Path, required=True, help="articles: JATS XML anywhere below it")
    parser.add_argument("--articles", type=int, default=0, help="extract so many in one run, by repeating them")
    args = parser.parse_args()
    articles = sorted(extract_module.find_articles(args.jats.resolve()))
    sizes = sorted(path.stat().st_size for path in articles)
    agreement = compare(articles)
    print(json.dumps(agreement), flush=True)
    runs = {"theirs": lambda: theirs(articles), "ours": lambda: [extract_module.read_one(path) for path in articles]}
    seconds = harness.alternate(runs, args.repeats, harness.clock("cpu"))
    median = harness.medians(seconds)
    result = {"ratio": median["theirs"] / median["ours"], "agreement": agreement, "seconds": median,
              "articles_a_second_one_process": len(articles) / median["ours"], "spread": harness.spread(seconds),
              "articles": len(articles), "median_article_kb": sizes[len(sizes) // 2] / 1000,
              "pubmed_parser": pubmed_parser.__version__ if hasattr(pubmed_parser, "__version__") else ""}  # fmt: skip
    if args.articles:
        result["many"] = many(articles, args.articles, args.threads)
    harness.report(args, "pubmed_extract", result)


if __name__ == "__main__":
    main()
