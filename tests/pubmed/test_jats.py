"""Articles: every figure with its label, caption and file; readable text; no entity is expanded or fetched."""

import json
import os
from pathlib import Path

import pytest
from helpers.real_files import need, read
from helpers.running import run_verb

pytest.importorskip("lxml")

from blip.pubmed.extract import ExtractError, extract, find_articles, resolve
from blip.pubmed.jats import Article, JatsError, parse_article
from blip.pubmed.licenses import license_name

HEAD = """<?xml version="1.0"?><article xmlns:xlink="http://www.w3.org/1999/xlink"
 xmlns:mml="http://www.w3.org/1998/Math/MathML" article-type="research-article"><front>
 <journal-meta><journal-title-group><journal-title>J. Test</journal-title></journal-title-group></journal-meta>
 <article-meta><article-id pub-id-type="pmc">123</article-id><article-id pub-id-type="pmid">45</article-id>
 <article-id pub-id-type="doi">10.1/x</article-id><title-group><article-title>On <italic>T</italic></article-title>
 </title-group><contrib-group><contrib contrib-type="author"><name><surname>Doe</surname><given-names>J</given-names>
 </name></contrib></contrib-group><pub-date><year>2021</year></pub-date><pub-date><year>2020</year></pub-date>
 <permissions><license xlink:href="https://creativecommons.org/licenses/by-nc/4.0/"><license-p>CC.</license-p></license>
 </permissions></article-meta></front>"""


def article(body: str, head: str = HEAD) -> Article:
    return parse_article(f"{head}<body>{body}</body></article>".encode())


def caption(inner: str) -> str:
    return article(f'<fig id="f"><caption>{inner}</caption></fig>').figures[0].caption


def test_metadata() -> None:
    found = article("")
    assert (found.pmcid, found.pmid, found.doi, found.title) == ("PMC123", "45", "10.1/x", "On T")
    assert (found.journal, found.year, found.authors) == ("J. Test", 2020, ["Doe J"])
    assert found.license == "CC-BY-NC-4.0" and not found.retracted
    assert article("", HEAD.replace("On <italic>", "RETRACTED: On <italic>")).retracted
    related = '<related-article related-article-type="retraction-forward"/></article-meta>'
    assert article("", HEAD.replace("</article-meta>", related)).retracted


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("http://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by-nc-nd/3.0/igo", "CC-BY-NC-ND-3.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/licenses/by-sa", "CC-BY-SA"),
        ("distributed under the terms of the Creative Commons Attribution License, which permits", "CC-BY"),
        ("the Creative Commons Attribution-NonCommercial-NoDerivs License", "CC-BY-NC-ND"),
        ("under a CC BY-NC 4.0 licence", "CC-BY-NC-4.0"),
        ("This work is in the public domain", "CC0"),
        ("All rights reserved", ""),
    ],
)
def test_licences(text: str, name: str) -> None:
    assert license_name(text) == name


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        ("<title>A title.</title><p>One<break/>two.</p><p>Three.</p>", "A title. One two. Three."),
        ("<p>(<bold>a</bold>) <italic>Taar1<sup>+</sup></italic>&#160;mice</p>", "(a) Taar1+ mice"),
        ("<p>10<sup>5</sup> cells, CO<sub>2</sub></p>", "10^5 cells, CO2"),
        ("<p>see <xref ref-type='bibr' rid='b'>[3]</xref>, <ext-link>here</ext-link></p>", "see [3], here"),
        ("<p>x <inline-formula><mml:math><mml:mi>t</mml:mi><mml:mo>&#8290;</mml:mo><mml:mi>u</mml:mi></mml:math>"
         "</inline-formula> y</p>", "x tu y"),
        ("<p>x <inline-formula><alternatives><tex-math>\\beta</tex-math><mml:math><mml:mi>β</mml:mi></mml:math>"
         "<inline-graphic xlink:href='e'/></alternatives></inline-formula> y</p>", "x β y"),
        ("<p>x <alternatives><tex-math>\\beta</tex-math><inline-graphic xlink:href='e'/></alternatives> y</p>",
         "x \\beta y"),
        ("<p>Text.<supplementary-material><label>Data 1</label><caption><p>No.</p></caption>"
         "</supplementary-material> More.</p>", "Text. More."),
        ("<p><list><list-item><p>one</p></list-item><list-item><p>two</p></list-item></list></p>", "one two"),
        ("<p>A<!-- comment -->B<?pi x?>C</p>", "ABC"),
    ],
)  # fmt: skip
def test_captions_can_be_read(inner: str, text: str) -> None:
    assert caption(inner) == text


def fig(own: str, href: str = "x.jpg", more: str = "") -> str:
    return (f'<fig id="{own}"><label>Figure {own}</label><caption><p>Of {own}.</p></caption>'
            f'<graphic xlink:href="{href}"/>{more}</fig>')  # fmt: skip


def test_every_home_of_a_figure() -> None:
    group = '<fig-group><label>G</label><caption><p>Shared.</p></caption><fig id="g"><graphic xlink:href="g"/></fig>'
    group += "</fig-group>"
    body = f"<sec><title>Results</title><p>See it.{fig('1')}</p>{group}<boxed-text>{fig('2')}</boxed-text></sec>"
    back = f"</body><back><app-group><app><title>App</title>{fig('3')}</app></app-group></back>"
    back += f"<floats-group>{fig('4')}</floats-group><body>"
    found = parse_article(f"{HEAD}<body>{body}{back}</body></article>".encode()).figures
    assert [(f.id, f.home) for f in found] == [
        ("1", "body"), ("g", "fig-group"), ("2", "boxed-text"), ("3", "app"), ("4", "floats-group"),
    ]  # fmt: skip
    assert found[0].section == "Results" and found[3].section == "App"
    assert (found[1].label, found[1].caption, found[1].files) == ("G", "Shared.", ["g"])


def test_files_of_a_figure() -> None:
    choice = ('<alternatives><graphic specific-use="thumbnail" xlink:href="small.gif"/><graphic xlink:href="big.tif"/>'
              '<graphic xlink:href="big.jpg"/></alternatives>')  # fmt: skip
    several = '<graphic xlink:href="second.png"/>'
    formula = '<disp-formula><graphic xlink:href="formula.png"/></disp-formula>'
    body = f'{fig("1", "a.jpg", several + choice + formula)}<table-wrap><graphic xlink:href="t.png"/></table-wrap>'
    found = article(body)
    assert found.figures[0].files == ["a.jpg", "second.png", "big.tif"]
    assert found.other_graphics == {"table-wrap": 1}


def test_mentions_are_paragraphs_outside_of_captions() -> None:
    see = '<xref ref-type="fig" rid="1">Fig 1</xref>'
    inside = fig("1", more="").replace("Of 1.", f"Of 1, {see}.")
    body = f'<p>First {see} and {see}.</p><p>Of <xref ref-type="fig" rid="1 2">both</xref>.</p>{inside}{fig("2")}'
    found = article(body).figures
    assert found[0].mentions == ["First Fig 1 and Fig 1.", "Of both."] and found[1].mentions == ["Of both."]


def test_nothing_is_expanded_or_fetched(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    head = f'<!DOCTYPE article [<!ENTITY x SYSTEM "file://{secret}"><!ENTITY y "yes">]>'
    text = HEAD.replace('<?xml version="1.0"?>', f'<?xml version="1.0"?>{head}')
    found = article('<fig id="f"><caption><p>a &x; b &y; c &#181;</p></caption></fig>', text)
    assert found.figures[0].caption == "a &x; b &y; c µ"
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))
    with pytest.raises(JatsError, match="amplification"):
        article("<p>&l11;</p>", text.replace("<!ENTITY x", f"{laughs}<!ENTITY x"))


def figures(count: int, inside: str = "") -> str:
    return "".join(f'<fig id="f{at}">{inside}</fig>' for at in range(count))


WORDS = "word " * 200_000
EVERY = " ".join(f"f{at}" for at in range(2000))
REPEATED = {
    "one paragraph names every figure": f'<p>{WORDS}<xref ref-type="fig" rid="{EVERY}"/></p>{figures(2000)}',
    "references to every figure": f"<p>{WORDS}" + "".join(
        f'<xref ref-type="fig" rid="f{at}"/>' for at in range(5000)) + f"</p>{figures(5000)}",
    "paragraphs in paragraphs": '<p><xref ref-type="fig" rid="f0"/>' * 200 + WORDS + "</p>" * 200 + figures(1),
    "caption of a group": f"<fig-group><caption><p>{WORDS}</p></caption>{figures(2000)}</fig-group>",
    "heading of a section": f"<sec><title>{WORDS}</title>{figures(2000)}</sec>",
    "captions in captions": '<fig id="f"><caption><p>' * 60 + WORDS + "</p></caption></fig>" * 60,
    "label of a group": f"<fig-group><label>{WORDS}</label>{figures(2000)}</fig-group>",
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATED)
def test_a_small_article_does_not_become_large_lines(name: str, tmp_path: Path) -> None:
    """What figures share is repeated up to a limit; above it the article is named, and costs itself alone."""
    (tmp_path / "large.xml").write_text(f"{HEAD}<body>{REPEATED[name]}</body></article>")
    (tmp_path / "small.xml").write_text(f"{HEAD}<body>{fig('1')}</body></article>")
    found = extract(tmp_path, tmp_path / "out.jsonl")
    assert found.articles + found.unreadable == 2 and found.articles >= 1
    assert (tmp_path / "out.jsonl").stat().st_size < 70_000_000
    assert found.unreadable == ("every figure" not in name and "captions in" not in name)
    if found.unreadable:
        assert "million characters" in found.problems[0]


def test_mentions_up_to_the_limits_are_all_there() -> None:
    see = '<xref ref-type="fig" rid="f0"/>'
    body = "".join(f"<p>{at} {see}</p>" for at in range(200)) + f"<p>0 {see}</p>" + figures(1)
    assert article(body).figures[0].mentions == [str(at) for at in range(200)]
    assert len(article(f"<p>one more {see}</p>" + body).figures[0].mentions) == 200


@pytest.mark.parametrize("tag", ["p", "sec", "fig", "sup", "mml:mrow", "a:b"])
def test_deep_articles_are_refused(tag: str) -> None:
    with pytest.raises(JatsError):
        article(f"<{tag}>" * 100_000 + f"</{tag}>" * 100_000)


@pytest.mark.parametrize(
    ("old", "new", "name", "value"),
    [
        (">123<", ">../../../victim<", "pmcid", ""),
        (">123<", ">" + "1" * 5000 + "<", "pmcid", ""),
        (">123<", ">pmc7<", "pmcid", "PMC7"),
        (">2020<", ">" + "9" * 5000 + "<", "year", 2021),
        (">2020<", ">&#1634;&#1632;<", "year", 2021),
        ("T</italic>", "T</italic>: withdrawn", "retracted", False),
        ("On <italic>", "WITHDRAWN: On <italic>", "retracted", True),
        ('"research-article"', '"partial-retraction"', "retracted", True),
        ('"research-article"', '"retracted-article"', "retracted", True),
        ("</article-meta>", '<related-article related-article-type="withdrawal"/></article-meta>', "retracted", True),
        ("</article-meta>", '<related-article related-article-type="companion"/></article-meta>', "retracted", False),
        ("licenses/by-nc/4.0/", "licenses/by/4.0/", "license", "CC-BY-4.0"),
        ("licenses/by-nc/4.0/", "licenses/by-xx/4.0/", "license", "unknown"),
        ("<license-p>CC.", "<license-p>No derivatives.", "license", "unknown"),
    ],
)
def test_odd_metadata(old: str, new: str, name: str, value: object) -> None:
    assert old in HEAD and getattr(article("", HEAD.replace(old, new)), name) == value


def test_files_that_are_no_articles(tmp_path: Path) -> None:
    """A pipe, a device and a file without end are refused and not read."""
    os.mkfifo(tmp_path / "pipe.xml")
    (tmp_path / "device.xml").symlink_to("/dev/zero")
    with open(tmp_path / "sparse.xml", "wb") as file:
        file.truncate(10**12)
    (tmp_path / "good.xml").write_text(f"{HEAD}<body>{fig('1')}</body></article>")
    found = extract(tmp_path, tmp_path / "out.jsonl")
    assert (found.articles, found.unreadable) == (1, 3)
    assert sum("is not a regular file" in problem for problem in found.problems) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not readable XML"), (b"<article><p></article>", "not readable XML"), (b"<html/>", "holds no <article>")],
)
def test_broken_articles_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.nxml").write_bytes(content)
    with pytest.raises(JatsError, match=message):
        parse_article(tmp_path / "a" / "broken.nxml")
    (tmp_path / "good.xml").write_text(f"{HEAD}<body>{fig('1')}</body></article>")
    found = extract(tmp_path, tmp_path / "out.jsonl")
    assert (found.articles, found.unreadable, found.figures, found.no_file) == (1, 1, 1, 1)
    assert any("broken.nxml" in problem for problem in found.problems)


def test_a_folder_without_articles(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "there are no articles"), (tmp_path / "gone", "is no folder")):
        with pytest.raises(ExtractError, match=message):
            extract(folder, tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fig1.jpg", "fig1.jpg"),
        ("FIG1.tif", "fig1.jpg"),
        ("fig1", "fig1.jpg"),
        ("images/fig1.jpg", "fig1.jpg"),
        ("info:doi/10.1371/journal.pone.0050698.g001", "pone.0050698.g001.png"),
        ("pone.0050698.g001", "pone.0050698.g001.png"),
        ("fig2", ""),
    ],
)
def test_names_of_files(name: str, file: str) -> None:
    files = {key: f for f in ("fig1.jpg", "pone.0050698.g001.png") for key in (f, os.path.splitext(f)[0])}
    assert resolve(name, files) == file


PERMISSIONS = """<permissions><copyright-statement>\u00a9 2020 One et al.</copyright-statement><copyright-year>2020
</copyright-year><copyright-holder>One et al.</copyright-holder><license license-type="open-access"
xlink:href="https://creativecommons.org/licenses/by/4.0/"><license_ref>https://creativecommons.org/licenses/by/4.0/
</license_ref><license-p>This is an open access article.</license-p></license></permissions>"""


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("", "", "CC-BY-4.0"),
        ("<license-p>", "For non-commercial use only. <license-p>", "unknown"),
        ("</license-p>", "</license-p> No reuse.", "unknown"),
        ("<license-p>", "<bold>Personal use.</bold><license-p>", "unknown"),
        ("<license_ref>", "<title>Elsevier user license</title><license_ref>", "unknown"),
        ('"open-access"', '"cc-by-nc"', "unknown"),
        ('"open-access"', '"subscription"', "unknown"),
        ('"open-access"', '"CC BY"', "CC-BY-4.0"),
        ("<copyright-holder>One et al.", "<copyright-holder>Elsevier. All rights reserved.", "unknown"),
        ("<copyright-year>2020", "<copyright-year>2020, all rights reserved", "unknown"),
        ("<permissions>", "<permissions>Not open.", "unknown"),
        ("</license>", "</license>Not open.", "unknown"),
        ("</license>", "</license><p>Not open.</p>", "unknown"),
    ],
)
def test_all_words_of_permissions_are_read(old: str, new: str, name: str) -> None:
    before, _, after = HEAD.partition("<permissions>")
    permissions = PERMISSIONS.replace(old, new, 1)
    found = article("", before + permissions + after.partition("</permissions>")[2])
    assert found.license == name and "This is an open access article." in found.license_text


# ---- real articles ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def articles(data_dir: Path) -> Path:
    return need(data_dir, "jats")


def documents(articles: Path) -> list[Path]:
    """The articles' XML files."""
    return [path for path in articles.rglob("*") if path.suffix in (".xml", ".nxml")]


def plain(text: str) -> str:
    """Without white space, marks of powers and operators that nobody sees."""
    return "".join(c for c in text if not c.isspace() and c not in "^\u2061\u2062\u2063\u2064\u200b")


@pytest.mark.real_data
def test_every_figure_of_real_articles(articles: Path, tmp_path: Path) -> None:
    """Against an independent extraction, which also has the `object-id` and words of supplementary files at the end."""
    found = extract(articles, tmp_path / "out.jsonl")
    assert found.unreadable == 0 and found.articles == len(documents(articles))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    own = {(Path(line["xml"]).parent.name, line["figure"]): line for line in lines}
    expected = read(articles, "figures.json")
    longer = 0
    for figure in expected:
        line = own[figure["article"], figure["fig_id"]]
        assert line["label"] == figure["label"]
        assert line["files"] == [str((articles / file).resolve()) for file in figure["image_files"]]
        ours, theirs = plain(line["caption"]), plain(figure["caption"])
        if ours != theirs:
            longer += 1
            assert theirs.startswith(ours) and theirs[len(ours) :].startswith("10.7554/eLife")  # an object-id
    assert longer == sum("10.7554/eLife" in plain(figure["caption"]) for figure in expected)
    for line in lines:
        stated = "<license" in Path(line["xml"]).read_text(encoding="utf-8", errors="replace")
        assert line["license"].startswith("CC") == stated, line["xml"]
    assert sum(bool(line["mentions"]) for line in lines) > 0.9 * len(lines)


@pytest.mark.real_data
def test_licences_of_real_articles_are_open(articles: Path) -> None:
    """All but the one that states none."""
    found = [parse_article(path).license for path in documents(articles)]
    assert sum(name.startswith(("CC-BY", "CC0")) and "N" not in name for name in found) == len(found) - 1 == 10


@pytest.mark.real_data
def test_processes_change_nothing(articles: Path, tmp_path: Path) -> None:
    extract(articles, tmp_path / "one.jsonl")
    done = run_verb("pubmed", "extract", articles, "--out", tmp_path / "two.jsonl", "--workers", 2)
    lines = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    count, with_file = len(documents(articles)), sum(bool(line["files"]) for line in lines)
    assert done.exit_code == 0, done.output
    assert f"{count} articles, {len(lines)} figures, {with_file} with a file" in done.output
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert len(list(find_articles(articles))) == count


def test_odd_articles(tmp_path: Path) -> None:
    """A namespace of its own, groups as authors, references as raised numbers, formulas as documents, two captions."""
    source = b"""<a:set xmlns:a="urn:a"><article xmlns="https://jats.nlm.nih.gov/ns/archiving/1.3/"><front><article-meta>
    <title-group><article-title>Retraction pockets of the ear</article-title></title-group>
    <contrib-group><contrib contrib-type="author"><collab>The Group<contrib-group><contrib contrib-type="author"><name>
    <surname>Inner</surname></name></contrib></contrib-group></collab></contrib>
    <contrib contrib-type="author"><name-alternatives><name><surname>One</surname><given-names>A</given-names></name>
    </name-alternatives></contrib><contrib contrib-type="author"><string-name>B. Two</string-name></contrib>
    </contrib-group><pub-date><year>\xc2\xb2</year></pub-date></article-meta></front><body><fig-group><caption>
    <p>MRI of a glioma.</p></caption><fig id="f1"><caption><p>Axial<sup><xref ref-type="bibr">12</xref></sup> view of
    <tex-math>\\documentclass{x}\\begin{document}$$E=mc^2$$\\end{document}</tex-math>.</p></caption></fig></fig-group>
    </body></article></a:set>"""
    article = parse_article(source)
    assert article.figures[0].caption == "MRI of a glioma. Axial view of E=mc^2."
    assert article.authors == ["The Group", "One A", "B. Two"] and article.year is None and not article.retracted


def test_one_odd_article_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import blip.pubmed.extract as module

    (tmp_path / "a.xml").write_text("<article/>")
    (tmp_path / "b.xml").write_text("<s><article/><article/></s>")
    found = module.extract(tmp_path, tmp_path / "out.jsonl")
    assert found.articles == 2 and "holds 2 articles" in found.problems[0]
    monkeypatch.setattr(module, "parse_article", lambda path: 1 / 0)
    found = module.extract(tmp_path, tmp_path / "out.jsonl")
    assert found.unreadable == 2 and "a.xml: ZeroDivisionError" in found.problems[0]
