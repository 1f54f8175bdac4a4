"""Text is escaped once, markup never; tables, histograms and images are parts of one page that loads nothing."""

from pathlib import Path

from PIL import Image

from blip.html_page import Html, element, histogram, image, page, table, table_of_counts, write_page


def test_text_is_escaped_once_and_markup_is_not() -> None:
    inner = element("b", "a < b & 'c'", title='"x"')
    assert inner == '<b title="&quot;x&quot;">a &lt; b &amp; &#x27;c&#x27;</b>'
    assert element("p", inner, " <i>", class_="note") == f'<p class="note">{inner} &lt;i&gt;</p>'
    assert element("br") == "<br>" and element("text", text_anchor="end") == '<text text-anchor="end"></text>'


def test_tables() -> None:
    rows = table([("<a>", 3, Html("<b>4</b>"))], header=("x", "y", "z"))
    assert "<th>x</th>" in rows and "<td>&lt;a&gt;</td><td>3</td><td><b>4</b></td>" in rows
    assert table([]) == "<p>none</p>" and table_of_counts([]) == "<p>none</p>"
    counts = table_of_counts([("a", 2000), ("b", 500, "of", "c")])
    assert "<td>2,000</td>" in counts and "width:240px" in counts and "width:60px" in counts
    assert "<td>of c</td>" in counts
    assert "width:0px" in table_of_counts([("a", 0)]), "counts of zero have no bar"


def test_bars_of_a_histogram() -> None:
    drawn = histogram("<scores>", [0, 4, 2], 0.0, high=1.0, mark=0.5)
    assert drawn.count("<rect") == 3 and "&lt;scores&gt;" in drawn and "highest bar: 4" in drawn
    assert 'height="100.0"' in drawn and 'height="50.0"' in drawn and 'x1="200.0"' in drawn
    assert "<line" not in histogram("empty", [0, 0], 0.0, high=1.0)


def test_a_page_is_one_file(tmp_path: Path) -> None:
    shown = image(Image.new("RGB", (4, 4), "red"), "JPEG", 80, alt="<red>")
    assert shown.startswith('<img alt="&lt;red&gt;" src="data:image/jpeg;base64,')
    written = page("T & t", "Heading", "p { color: red }", body=[shown, "plain <text> \ud800"])
    write_page(tmp_path / "new" / "page.html", written)
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "<title>T &amp; t</title>" in text and "<h1>Heading</h1>" in text and "plain &lt;text&gt; ?" in text
    assert "http" not in text and [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
