"""Values become text of a page, a CSV cell or a Markdown document, whatever they hold, and can be restored."""

import csv
import io
import random
import re
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from helpers.hostile_pages import hostile_texts
from helpers.running import ROOT
from jinja2 import DictLoader, UndefinedError
from markdown_it import MarkdownIt
from PIL import Image

from blip import html_page
from blip.html_page import (
    Html,
    csv_cell,
    histogram,
    image,
    markdown,
    page,
    table,
    table_of_counts,
    visible,
    write_page,
)  # fmt: skip

TEXTS = hostile_texts("http://127.0.0.1:9")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> str:
    """A page that shows its `parts` below one another."""
    engine = html_page._engine().overlay(loader=DictLoader({
        "html_page.html": (ROOT / "blip" / "html_page.html").read_text(),
        "plain": '{% extends "html_page.html" %}{% block body %}{% for one in parts %}{{ one }}\n{% endfor %}'
                 '<i title="{{ parts[-1] }}"></i>{% endblock %}',
    }))  # fmt: skip
    monkeypatch.setattr(html_page, "_engine", lambda: engine)
    return "plain"


# ---- pages -----------------------------------------------------------------------------------------------------------


def test_text_is_escaped_once_and_markup_is_not(plain: str) -> None:
    inner = Html("<b>a &lt; b</b>")
    written = page(plain, title="T", heading="H", parts=[inner, "a < b & 'c' \"", 3, None])
    assert f"{inner}\na &lt; b &amp; &#39;c&#39; &#34;\n3\nNone\n" in written
    assert '<i title="&#39; onload=&#34;x"></i>' in page(plain, title="T", heading="H", parts=["' onload=\"x"])
    with pytest.raises(UndefinedError):
        page(plain, title="T", parts=[])


def test_tables() -> None:
    rows = table([("<a>", 3, Html("<b>4</b>"))], header=("x", "y", "z"))
    assert "<th>x</th>" in rows and "<td>&lt;a&gt;</td><td>3</td><td><b>4</b></td>" in rows
    assert table([]) == "<p>none</p>" and table_of_counts([]) == "<p>none</p>"
    counts = table_of_counts([("a", 2000), ("b", 500, "of", "c")])
    assert "<td>2,000</td>" in counts and "width:240px" in counts and "width:60px" in counts
    assert "<td>of c</td>" in counts
    assert "width:0px" in table_of_counts([("a", 0)]), "counts of zero have no bar"
    assert table_of_counts([("a", -9), ("b", 10**400), ("c", 5)]).count("width:0px") == 2


def test_bars_of_a_histogram() -> None:
    drawn = histogram("<scores>", [0, 4, 2], 0.0, high=1.0, mark=0.5)
    assert drawn.count("<rect") == 3 and "&lt;scores&gt;" in drawn and "highest bar: 4" in drawn
    assert 'height="100.0"' in drawn and 'height="50.0"' in drawn and 'x1="200.0"' in drawn
    assert "<line" not in histogram("empty", [0, 0], 0.0, high=1.0)


def test_a_page_is_one_file(plain: str, tmp_path: Path) -> None:
    shown = Html('<img alt="">')
    written = page(plain, title="T & t", heading="Heading", parts=[shown, "plain <text> \ud800"])
    write_page(tmp_path / "new" / "page.html", written)
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>\n<html") and text.endswith("</body></html>\n")
    assert "<title>T &amp; t</title>" in text and "<h1>Heading</h1>" in text and "plain &lt;text&gt; \\ud800" in text
    assert "http" not in text.replace("http-equiv", "")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_an_image_is_part_of_the_page() -> None:
    shown = image(Image.new("RGB", (4, 4), "red"), "JPEG", 80, alt='<red> " onload="x')
    assert shown.startswith('<img alt="&lt;red&gt; &#34; onload=&#34;x" src="data:image/jpeg;base64,')
    assert re.fullmatch(r"<img alt=\"[^\"]*\" src=\"data:image/jpeg;base64,[\w+/=]+\">", shown)


CSV_OF_THE_PAGE = 'href="{{ address }}"'  # a data address of `blip serve`, which the server makes


def test_templates_leave_nothing_unescaped() -> None:
    templates = sorted((ROOT / "blip").rglob("*.html"))
    assert len(templates) >= 9
    for path in templates:
        text = path.read_text(encoding="utf-8").replace(CSV_OF_THE_PAGE, "")
        assert not re.search(r"\|\s*safe|autoescape|<script|\son\w+=|href(?!=.#)|=\{\{", text), path


# ---- text that cannot be shown ---------------------------------------------------------------------------------------


def restored(text: str) -> str:
    """The text of which this is the visible form."""

    def original(found: re.Match[str]) -> str:
        before, code = found[1], found[2]
        return "\\" * (len(before) // 2) + (chr(int(code[1:], 16)) if len(before) % 2 else code)

    return re.sub(r"(\\+)(x[0-9a-f]{2}|u[0-9a-f]{4})", original, text)


def test_what_cannot_be_shown_becomes_visible() -> None:
    assert visible("a\x00b\x1b[0m\ud800 \u202e") == r"a\x00b\x1b[0m\ud800 \u202e"
    assert visible("a\tb\nc", keep="\t\n") == "a\tb\nc" and visible("a\tb", keep="\n") == r"a\x09b"
    usual = "na\u00efve \\alpha C:\\users\\new \u05d0 \U0001f600 100 % <b>"
    assert visible(usual) == usual, "text without such characters stays as it is"
    assert visible(r"\x00") == r"\\x00" and visible("\\\x00") == r"\\\x00"


@pytest.mark.parametrize("seed", range(50))
def test_the_visible_form_can_be_restored(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(
        draw.choices(["\\", "\\", "x", "u", "00", "d800", "1b", "\x00", "\n", "\ud800", "\u2028", "e"], k=200)
    )
    shown = visible(text)
    assert restored(shown) == text
    shown.encode()
    assert shown.isprintable()
    assert restored(visible(text, keep="\n")) == text


@pytest.mark.parametrize("text", ["\\" * 500_000, "\x00" * 500_000, "\\x" * 250_000, "' " * 250_000, "_" * 500_000])
def test_long_texts_take_time_in_proportion(text: str) -> None:
    start = time.process_time()
    for convert in (visible, markdown, csv_cell):
        convert(text)
        convert(f" {text}=")
    assert time.process_time() - start < 20


# ---- CSV and Markdown ------------------------------------------------------------------------------------------------

UNSEEN = "\u00ad\u180e\u200b\u200d\u200e\u202a\u2060\u2063\u2069\u2800\u3164\ufe0f\uffa0\U000e0001"
FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\x00=1", " =1", "\xa0=1", "\ufeff=1", "\uff1d1",
    "=cmd|' /C calc'!A0", '=HYPERLINK("http://127.0.0.1")', "'=1", "-", "-0.5", "\x1b", "' \t@",
    *(f"{sign}{sign}=1" for sign in UNSEEN),
    "' \u2060 \u00ad@",
]  # fmt: skip


def read_back(cell: str) -> str:
    """The text of a cell."""
    text = restored(cell.removeprefix("'"))
    return text if csv_cell(text) == cell else restored(cell)


@pytest.mark.parametrize("text", [*FORMULAS, *TEXTS])
def test_no_cell_is_a_formula_and_every_cell_can_be_restored(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([csv_cell(text), "next"])
    file.getvalue().encode()
    assert file.getvalue().count("\n") == 1
    limit = csv.field_size_limit(10_000_000)
    ((cell, after),) = csv.reader(io.StringIO(file.getvalue(), newline=""), strict=True)
    csv.field_size_limit(limit)
    assert after == "next" and read_back(cell) == text
    assert not cell.lstrip("\xa0\ufeff ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert cell.startswith("'") or text not in FORMULAS


def test_no_character_without_a_shape_hides_a_formula() -> None:
    for sign in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(sign) in ("Cc", "Cf", "Zs", "Zl", "Zp"):
            assert str(csv_cell(f"{sign}=1")).startswith("'"), repr(sign)


def test_numbers_and_usual_cells_stay() -> None:
    for value in (-0.5, 2020, None, "", "PMC1", "Nobody N; Other O", "a = b - c", "'quoted' title", "1-2"):
        assert csv_cell(value) is value or csv_cell(value) == value


ODD = [
    "| a | b |", "a\nb", "# x", "#x", " ## x", "1. x", "2) x", "- x", "+ x", "---", "===", "> x", "`x` ``", "*x* **y**",
    "_x_ __init__", "[x](http://127.0.0.1)", "[x]: http://127.0.0.1", "![x](y)", "<b>x</b>", "<!-- x", "&lt; &#35;",
    "http://127.0.0.1/x", "www.example.org", "a@example.org", "~~x~~", "$x$", "{: onclick=x }", "\\", "a\\|b", "\\\n|",
]  # fmt: skip


@pytest.mark.parametrize("text", [*ODD, *(text[:2000] for text in TEXTS)])
def test_markdown_is_text_in_headings_lists_and_tables(text: str) -> None:
    """Read by an independent reader of CommonMark."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = markdown(text)
    document = f"# Title\n\n- {shown}\n- k: {shown}\n\n| a | b |\n| --- | --- |\n| {shown} | {shown} |\n\n{shown}\n"
    blocks = [token for token in parser.parse(document) if token.type == "inline"]
    want = " ".join(visible(text).split())
    assert len(blocks) == 8 and blocks[0].content == "Title"
    read = []
    for block in [*blocks[1:3], *blocks[5:]]:
        children = block.children or []
        assert {child.type for child in children} <= {"text", "text_special"}
        read.append(" ".join("".join(child.content for child in children).split()))
    assert read == [want, f"k: {want}", want, want, want]


def test_markdown_breaks_addresses_that_viewers_would_find() -> None:
    assert markdown("http://x www.x WWW.x a@b.c") == "http&#58;//x www&#46;x WWW&#46;x a&#64;b.c"
    for usual in ("CC-BY-NC-4.0", "none named", "too small", "0.8", "-5", "/data/vqa_rad/images", "a.b (c)", "1.5 T"):
        assert markdown(usual) == usual
