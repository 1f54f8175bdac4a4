"""Texts that try to become part of a page, and each kind of page with every one of them in every field."""

import json
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from blip.capfilt.merge import Rule
from blip.capfilt.report import write_report as write_capfilt_report
from blip.interpret.explain import Explanation
from blip.interpret.pictures import save
from blip.pubmed.report import write_report as write_pubmed_report
from blip.reports.grid import show
from blip.reports.items import Choice
from blip.reports.run_page import report
from helpers.written_runs import write_answers, write_lines

KINDS = ("capfilt", "explanations", "pubmed", "show", "report", "comparison")


def hostile_texts(address: str) -> list[str]:
    """Texts that, as part of a page, would change its title to "owned" or request something below `address`."""
    run = "document.title='owned';fetch('{}/%s');alert(1)".replace("{}", address)
    return [
        f"<script>{run % 'script'}</script>",
        f"</script></style></title></textarea><script>{run % 'closed'}</script>",
        f"--> ]]> */ <script>{run % 'comment'}</script> <!-- /* <![CDATA[",
        f'<img src=x onerror="{run % "error"}">',
        f'" onmouseover="{run % "mouse"}" autofocus onfocus="{run % "focus"}" x="',
        f"' onload='{run % 'load'}' style='background:url({address}/quoted)",
        f"`onload={run % 'backtick'}`",
        f'<svg onload="{run % "svg"}"><script href="{address}/svg.js"></script><use href="{address}/use#x"/></svg>',
        f'<math><mtext><style><img src=x onerror="{run % "math"}"></style></mtext></math>',
        f'<a href="javascript:{run % "link"}" id="link">link</a><script>link.click()</script>',
        f"javascript:{run % 'address'}",
        f"data:text/html,<script>{run % 'data'}</script>",
        f'<iframe src="{address}/frame" srcdoc="<script>{run % "frame"}</script>"></iframe>',
        f'<object data="{address}/object"></object><embed src="{address}/embed">',
        f'<link rel="stylesheet" href="{address}/sheet"><style>@import "{address}/import"; * {{ color: red }}</style>',
        f"red; background: url({address}/css) }} * {{ background: url({address}/rule)",
        f'<meta http-equiv="refresh" content="0;url={address}/refresh"><base href="{address}/">',
        f'<form action="{address}/form"><input name="x" autofocus></form><script>document.forms[0].submit()</script>',
        f'<video poster="{address}/poster" src="{address}/video" autoplay></video><img srcset="{address}/set 1x">',
        "{{ 7*7 }} {{7*7}} {% raw %} {# #} ${7*7} <%= 7*7 %> {{ ''.__class__.__mro__ }}",
        "&lt;script&gt; &#60;script&#62; &amp;lt; &nbsp",
        "before\x00after \x1b[31mred\x1b[0m \x07 \x7f \x85 \u2028 \u202ecod.exe \ud800 \udcff <b>",
        "literal \\x00 \\\\x1b \\ud800 \\alpha C:\\x1",
        "\u00e9\u4e2d\U0001f600 \ufeff \uffff",
        "\xa0\n\t\r\n ",
        "<" + "long & " * 150_000,
    ]


def write_pages(texts: list[str], folder: Path) -> dict[str, Path]:
    """Writes each kind of page with these texts into `folder` -> their files, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {kind: folder / f"{kind}.html" for kind in KINDS}
    Image.effect_noise((60, 40), 80).convert("RGB").save(folder / "noise.png")
    capfilt_page(texts, folder, pages["capfilt"])
    explanations_page(texts, pages["explanations"])
    pubmed_page(texts, folder, pages["pubmed"])
    show_page(texts, folder, pages["show"])
    report_pages(texts, folder / "runs", pages["report"], pages["comparison"])
    return pages


def capfilt_page(texts: list[str], folder: Path, out: Path) -> None:
    lines = [{"image": image, "text": text, "source": text, "round": 0, "match": number / len(texts), "itc": 0.1}
             for number, text in enumerate(texts) for image in (text, str(folder / "noise.png"))]  # fmt: skip
    lines += [{"image": text, "problem": text} for text in texts]
    with patch("blip.capfilt.report.scored_lines", lambda folders: iter(lines)):
        write_capfilt_report([folder], out, Rule(0.5))


def explanations_page(texts: list[str], out: Path) -> None:
    maps = torch.ones(1, 2, 2)
    explanations = [Explanation("match", text, None, text, text, 1.0, words=[text], maps=maps, sentence=maps[0])
                    for text in texts]  # fmt: skip
    images = [Image.new("RGB", (40, 30), "grey") for _ in texts]
    save(images, explanations, texts, [out])


def pubmed_page(texts: list[str], folder: Path, out: Path) -> None:
    dataset = folder / "<img src=x onerror=alert(1)> {{7*7}}"
    dataset.mkdir()
    counts = dict.fromkeys(texts, 3)
    pairs = folder / "pairs.jsonl"
    parts = {"pairs": {"train": len(texts)}, "articles": {"train": 1}, "words": {"0": 1}}
    built = {"pairs_file": str(pairs), "read": 9, "out": counts, "licenses": counts, "years": counts, "how": counts}
    write_json(dataset / "build.json", built | parts | {"problems": texts})
    about = [{key: text for key in ("image", "caption", "article", "label", "license", "how", "whole_image")}
             | {"confidence": 0.5, "panel": [text], "box": [0, 0, 9, 9]} for text in texts]  # fmt: skip
    for name, records in (("train", about), ("val", []), ("test", [])):
        write_json(dataset / f"{name}.json", records)
    shown = [record | {"whole_image": str(folder / "noise.png")} for record in about]
    pairs.write_text("\n".join(map(json.dumps, [*about, *shown])))
    split = {"how": counts, "unreadable": 1, "why_whole": counts, "problems": [], "made_from": str(folder / "figures")}
    write_json(folder / "pairs.jsonl.summary.json", split)
    numbers = dict.fromkeys(("articles", "figures", "files", "unreadable", "no_file", "no_caption"), 1)
    write_json(folder / "figures.summary.json", numbers | {"other_graphics": counts, "problems": []})
    write_pubmed_report(dataset, out, pairs=len(texts), figures=2 * len(texts))


def show_page(texts: list[str], folder: Path, out: Path) -> None:
    """Every text in every field of results, and as the name of the file that they are in."""
    about = ("question_id", "question", "answer", "answer_type", "category")
    rows = [{"image": image, **dict.fromkeys(about, text), "references": [text], "probability": 0.5,
             "right": bool(n % 2), "candidates": [[text, 0.5]]}
            for n, text in enumerate(texts) for image in (text, str(folder / "noise.png"))]  # fmt: skip
    path = folder / "<b>answers&amp;.json"
    write_json(path, rows)
    longest = max(map(len, texts)) + 1  # nothing is cut here
    with patch("blip.reports.grid.LONGEST", longest), patch("blip.reports.grid.cut", lambda text: text):
        show(path, out, Choice(limit=0))


def report_pages(texts: list[str], folder: Path, out: Path, compared: Path) -> None:
    """Every text in every file of a run, and in the name of the other run."""
    runs = [write_answers(folder / name, "q") for name in ("first", "<img src=x onerror=alert(1)> {{7*7}} $x$ _")]
    for run in runs:
        lines = [{"step": 1, "epoch": 1, "index": n, "image": text, "text": text, "truth": text, "output": text}
                 for n, text in enumerate(texts)]  # fmt: skip
        write_lines(run / "samples.jsonl", lines)
        write_lines(run / "skipped.jsonl", [{"index": 1, "path": text, "reason": text} for text in texts[:1]])
        (run / "config.yaml").write_text(json.dumps({f"option{n}": text for n, text in enumerate(texts)} | {"lr": 1}))
        scores = {text: {"mean": 0.5, "low": 0.4, "high": 0.6, "count": 9} for text in texts}
        write_json(run / "scores_val.json", {"by_type": {"exact_match": scores}, "scores": scores})
        metrics = [{"step": n, "epoch": n, **{f"val_{text[:200]}": 0.5 for text in texts}} for n in (9, 10)]
        with open(run / "metrics.jsonl", "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in metrics))
    with (
        patch("blip.reports.samples.LONGEST", 10**7),
        patch("blip.reports.sections.cut", lambda text, most: text),
        patch("blip.reports.samples.MOST_RECORDS", len(texts)),
    ):
        report(runs[0], out)
        report(runs, compared)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))
