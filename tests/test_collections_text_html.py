"""HTML pages read as text: what is navigation and goes, what looks like it and stays, and what pages repeat."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_ar2.collections.readers.html_layout import site_of
from hf_ar2.collections.readers.text_folder import load_text_folder
from hf_ar2.collections.readers.text_html import html_sections
from hf_ar2.collections.readers.text_sections import grouped

LINKS = '<ul><li><a href="a.html">Hives</a><li><a href="b.html">Combs</a><li><a href="c.html">Wax</a></ul>'


def read(page: str) -> dict[str, list[str]]:
    """The paragraphs below each heading."""
    return {" · ".join(section.path): section.paragraphs for section in html_sections(page.split("\n"))}


def texts(page: str) -> list[str]:
    return [text for paragraphs in read(page).values() for text in paragraphs]


@pytest.mark.parametrize(
    "navigation",
    [
        f"<nav>{LINKS}</nav>",
        f'<div role="navigation">{LINKS}</div>',
        f'<div class="sidebar">Read on: {LINKS}</div>',
        f'<div class="left page-toc">{LINKS}</div>',
        f'<div class="nav-wrapper wide"><h2>Pages</h2>{LINKS}</div>',
        f'<div id="menu">{LINKS}</div>',
        '<table class="nav"><tr><td><a href="a.html">Hives</a><td>Up<td><a href="b.html">Combs</a></table>',
        '<div class="header"><p>Next: <a href="b">Combs</a>, Up: <a href="c">Wax</a> [<a href="i">Index</a>]</div>',
        '<a class="skip-link" href="#main"></a><div class="breadcrumbs">Home » Bees</div>',
        '<div id="footer">Last updated in May</div>',
        "<footer>A footer</footer><aside>A remark</aside>",
        "<header>The site of the bees</header>",
        '<ul><li><a href="#a">Nectar</a><li><a href="#b">Pollen</a><li><a href="#c">Honey</a></ul>',
    ],
)
def test_navigation_goes(navigation: str) -> None:
    assert texts(f"<body>{navigation}<h1>Food</h1><p>Nectar and pollen.</p></body>") == ["Nectar and pollen."]


@pytest.mark.parametrize(
    "block",
    [
        '<div class="footer-note">Bees <a href="w.html">wait</a> for the sun.</div>',
        '<div class="menubar-docs">Bees wait for the sun.</div>',
        '<div class="sidebar-layout"><p>Bees wait for the sun.</div>',
        '<aside class="admonition warning"><p>Bees wait for the sun.</aside>',
        '<div class="nav"><h1>Waiting</h1><p>Bees wait for the sun.</div>',  # never closed before the text
        "<article><header><h2>Waiting</h2>Bees wait for the sun.</header></article>",
    ],
)
def test_what_only_has_such_a_name_stays(block: str) -> None:
    assert texts(f"<body><h1>Food</h1>{block}</body>") == ["Bees wait for the sun."]


@pytest.mark.parametrize(
    "main", ['div class="body"', 'div id="content"', "article", 'div role="main"', "main"]
)
def test_of_a_page_with_one_main_part_only_that_is_read(main: str) -> None:
    end = main.split()[0]
    page = f"<body><div>Sponsors</div><{main}><h1>Food</h1><p>Nectar and pollen.</{end}><p>Imprint"
    assert texts(page) == ["Nectar and pollen."]


def test_a_part_without_the_title_or_most_of_the_text_is_not_the_main_part() -> None:
    page = '<div id="head"><h1>bee(1)</h1><p>Flies.</div><div id="content"><h2>Options</h2><p>None, so far.</div>'
    assert read(page) == {"": [], "bee(1)": ["Flies."], "bee(1) · Options": ["None, so far."]}
    page = "<article>News!</article><p>Nectar and pollen, and sometimes a little sugar."
    assert texts(page) == ["News!", "Nectar and pollen, and sometimes a little sugar."]


def test_a_term_stays_with_its_definition() -> None:
    page = "<dl><dt>drone</dt><dd><p>A male.</p><p>It waits.</p></dd><dt>-v</dt><dt>--verbose</dt>"
    page += "<dd>Says more.<dt>jobs:<dd><ul><li>cleaning<li>guarding</ul><dt>Do they sleep?<dd>Yes.</dl>"
    assert texts(page) == [
        "drone: A male.",
        "It waits.",
        "-v, --verbose: Says more.",
        "jobs:",
        "- cleaning\n- guarding",
        "Do they sleep?",  # in a FAQ, a heading
        "Yes.",
    ]


def test_a_passage_does_not_end_with_what_introduces_the_next_one() -> None:
    assert grouped(["word " * 90, "jobs:", "- cleaning " * 20]) == [
        "word " * 90,
        "jobs:\n" + "- cleaning " * 20,
    ]


def test_passages_of_code_have_fewer_words() -> None:
    prose = grouped(["Bees fly home at night and rest. " * 40])
    code = grouped(["\n".join(["hive_open(&bee->wing[0], HIVE_ALL); x += 1;"] * 40)])
    assert {len(text.split()) for text in prose[:-1]} == {98}
    assert max(len(text.split()) for text in code) < 40
    assert "\n".join(code).split() == ["hive_open(&bee->wing[0],", "HIVE_ALL);", "x", "+=", "1;"] * 40


def test_tables_that_are_layout_are_read_as_text() -> None:
    page = "<table><tr><td>7.<td><h2>Food</h2><p>Nectar.<p>Pollen.<td><pre>eat()</pre></table>"
    assert read(page) == {"": [], "Food": ["Nectar.", "Pollen.", "eat()"]}


def test_links_to_headings_leave_no_sign() -> None:
    page = '<h2>Food <a href="#food">#</a></h2><h5><a class="x" href="#n">§</a>Nectar</h5>Sweet.'
    assert read(page) == {"": [], "Food": [], "Food · Nectar": ["Sweet."]}


def test_a_heading_named_contents_is_above_no_other() -> None:
    page = "<h1>Bees</h1><h2>Table of contents</h2><h3>Food</h3>Nectar."
    assert read(page)["Bees · Food"] == ["Nectar."]


@pytest.mark.parametrize(
    ("title", "heading", "site"),
    [
        ("Food - The Bee Book", "Food", "The Bee Book"),
        ("Food (The Bee Book)", "4.2 Food", "The Bee Book"),
        ("The Bee Book | Food", "Food", "The Bee Book"),
        ("Food", "Food", ""),
        ("bee(1)", "bee(1) Manual Page", ""),
        ("Foodstuff", "Food", "Foodstuff"),
        ("Bees", "Food", "Bees"),
    ],
)
def test_of_a_title_that_repeats_the_heading_the_rest_stays(title: str, heading: str, site: str) -> None:
    assert site_of(title, heading) == site
    assert read(f"<title>{title}</title><h1>{heading}</h1>x")[" · ".join(filter(None, (site, heading)))]


def test_manual_pages_on_the_web_are_read_like_others() -> None:
    page = "<title>bee(1)</title><h1>bee(1) Manual Page</h1><h2>NAME</h2>bee - find nectar<h2>DESCRIPTION</h2>Flies."
    assert read(page)["bee · find nectar"] == ["Flies."]


def test_a_title_without_the_markup_of_a_heading_is_no_passage() -> None:
    page = "<title>How bees dance</title><div class=title>How bees dance</div><p>In circles."
    assert read(page) == {"": [], "How bees dance": ["In circles."]}


def test_a_heading_that_its_text_only_repeats_is_no_query(tmp_path: Path) -> None:
    (tmp_path / "bees.md").write_text("# How bees dance\n\nHow bees dance.\n\n## How owls see\n\nAt night.\n")
    collection = load_text_folder(tmp_path)
    assert len(collection.corpus) == 2 and collection.queries["text"][:] == ["How owls see"]
    assert collection.skipped == {'headings that their text only repeats ("How bees dance")': 1}


def test_what_most_pages_of_a_folder_repeat_goes(tmp_path: Path) -> None:
    names = ("bees", "owls", "ants", "bats", "rats")
    for number, name in enumerate(names):
        page = f"<p>All animals, in one place.<h1>How {name} live</h1><p>In a home.<p>Long text on {name}."
        (tmp_path / f"{name}.html").write_text(f"{page}<p>Page changed on 2024-05-0{number}")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "cats.html").write_text("<p>All animals, in one place.<h1>How cats live</h1>So.")
    (tmp_path / "note.md").write_text("All animals, in one place.")
    collection = load_text_folder(tmp_path)
    assert collection.corpus["text"][:] == [
        *(f"In a home.\nLong text on {name}." for name in ("ants", "bats", "bees")),
        "So.",
        "All animals, in one place.",  # in Markdown
        *(f"In a home.\nLong text on {name}." for name in ("owls", "rats")),
    ]
    cause = "paragraphs that most HTML pages repeat (ants.html, bats.html, bees.html, …)"
    assert collection.skipped == {cause: 11}

    (tmp_path / "bees.html").unlink()
    (tmp_path / "deep" / "cats.html").unlink()
    few = load_text_folder(tmp_path).corpus["text"]
    assert sum("in one place" in text for text in few) == 5, "four pages are too few to tell"
