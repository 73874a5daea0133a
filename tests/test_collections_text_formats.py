"""Each format of documentation read into sections: what is a heading, what keeps its lines, and what goes."""

from __future__ import annotations

import pytest

from hf_ar2.collections.readers.skip_counts import SkipCounts
from hf_ar2.collections.readers.text_files import split_at_questions
from hf_ar2.collections.readers.text_folder import _places
from hf_ar2.collections.readers.text_html import html_sections
from hf_ar2.collections.readers.text_man import man_sections
from hf_ar2.collections.readers.text_markdown import markdown_sections
from hf_ar2.collections.readers.text_plain import plain_sections
from hf_ar2.collections.readers.text_rst import rst_sections
from hf_ar2.collections.readers.text_sections import Section


def found(sections: list[Section]) -> list[tuple[tuple[str, ...], list[str]]]:
    """Headings and paragraphs of the sections that have either."""
    return [(section.path, section.paragraphs) for section in sections if section.path or section.paragraphs]


MARKDOWN = """\
---
title: "All about ants"
date: 2024-01-01
# no heading
---
Intro, by [a keeper](mailto:ant@hill.org).

Ants and `rain`
---------------

They **hide**. <!-- not
all --> ![badge](b.svg)

- a list
- of *two*

| leaf | weight |
|------|--------|
| oak  | 2 g    |

```python
# no heading, code
carry(leaf)  # <!-- stays -->
```

All about ants
==============

   ## Closed heading {#closed} ##
Text right after it.
Two lines, so that
---
is a rule here
"""


def test_markdown() -> None:
    skipped = SkipCounts()
    assert found(markdown_sections(MARKDOWN.split("\n"), skipped)) == [
        (("All about ants",), ["Intro, by a keeper."]),
        (
            ("All about ants", "Ants and rain"),
            [
                "They hide.",
                "- a list\n- of two",
                "| leaf | weight |\n| oak  | 2 g    |",
                "# no heading, code\ncarry(leaf)  # <!-- stays -->",
            ],
        ),
        (("All about ants",), []),
        (
            ("All about ants", "Closed heading"),
            ["Text right after it. Two lines, so that --- is a rule here"],
        ),
    ]
    assert skipped.counts() == {"lines of front matter": 2}


PLAIN = """\
A manual of bees

Written for keepers, and for all who want to be.

1. Before you begin

Wear a veil. It is the best
thing that you can do.
Do not hurry at all, ever.

  $ smoke --gently
  $ wait

FOOD
    Nectar, mostly. And when it is winter they are given some sugar.

    Pollen is for the young ones, who need it to grow up in the hive.

Swarming
--------
A queen and half of
the bees leave.
"""


def test_plain_text() -> None:
    assert found(plain_sections(PLAIN.split("\n"))) == [
        (("A manual of bees",), ["Written for keepers, and for all who want to be."]),
        (
            ("A manual of bees", "1. Before you begin"),
            [
                "Wear a veil. It is the best thing that you can do. Do not hurry at all, ever.",
                "$ smoke --gently\n$ wait",
            ],
        ),
        (
            ("A manual of bees", "FOOD"),
            [
                "Nectar, mostly. And when it is winter they are given some sugar.",
                "Pollen is for the young ones, who need it to grow up in the hive.",
            ],
        ),
        (("A manual of bees", "Swarming"), ["A queen and half of the bees leave."]),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Owls hunt.\n\nAt night.",  # a sentence
        "Owls hunt\nat night.",  # no empty line
        "How owls hunt",  # nothing below
        "1. Wait.\n\n2. Fly.\n\n3. Eat.",  # a list
        "2024-01-05  Jane Doe  <jane@owl.org>\n\nFixed a wing.",  # an entry of a change log
        "THE OWL IS PROVIDED AS IS\nWITHOUT WARRANTY.",
    ],
)
def test_plain_text_that_only_looks_as_if_it_had_a_heading(text: str) -> None:
    [section] = plain_sections(text.split("\n"))
    assert not section.heading
    assert " ".join(section.paragraphs).split() == text.split(), "nothing is lost"


def test_headers_and_footers_of_pages_go() -> None:
    pages = [
        f"Bees fly {n} miles.\n\nDoe        Bees        [Page {n}]\n\fRFC 1         Bees" for n in range(3)
    ]
    text = "\n\n".join(pages)
    assert [section.paragraphs for section in plain_sections(text.split("\n"))] == [
        [f"Bees fly {n} miles." for n in range(3)]
    ]


def test_questions_of_a_faq_are_headings_of_their_answers() -> None:
    text = "Questions\n\n1. Do bees\n   sleep?\n2. Do they dance?\n\n"
    text += "Q: Do bees sleep?\nA: Yes.\n\nDo they dance?\n\nA lot.\n\nDaily."
    sections = split_at_questions(plain_sections(text.split("\n"), is_faq=True))
    assert [(section.heading, section.paragraphs) for section in sections if section.paragraphs] == [
        ("Q: Do bees sleep?", ["Yes."]),
        ("Do they dance?", ["A lot.", "Daily."]),
    ]


RST = """\
.. a comment
   of two lines

====
Bees
====

Read :ref:`the guide <guide>`, `the site <http://hive.org>`_ or ``hive.rst``::

    open(hive)

    close(hive)

.. image:: bee.png
   :alt: a bee

.. note:: They may
   sting.

How they *dance*
~~~~~~~~~~~~~~~~

.. code-block:: python
   :linenos:

   bee.dance(
       to=food)

.. _target:

* in circles
* in eights
"""


def test_restructured_text() -> None:
    assert found(rst_sections(RST.split("\n"))) == [
        (
            ("Bees",),
            [
                "Read the guide, the site or `hive.rst`:",
                "open(hive)\n\nclose(hive)",
                "They may",
                "sting.",
            ],
        ),
        (("Bees", "How they dance"), ["bee.dance(\n    to=food)", "* in circles\n* in eights"]),
    ]


def test_definitions_and_versions_in_restructured_text() -> None:
    text = "drone\n    A male\n    bee.\n\n    It waits.\n\n``code``\n    ::\n\n        fly()\n        sleep()\n\n"
    text += "* a list\n  of one\n\n.. versionadded:: 1.2\n   The drone.\n\n.. function:: fly(to)\n\n   Flies there.\n"
    assert found(rst_sections(text.split("\n"))) == [
        (
            (),
            [
                "drone: A male bee.",
                "It waits.",
                "`code`:",
                "fly()\nsleep()",
                "* a list of one",
                "Added in version 1.2: The drone.",
                "fly(to): Flies there.",
            ],
        )
    ]


def test_quoted_markdown_and_wrapped_items() -> None:
    text = "> [!NOTE]\n> Bees\n> fly.\n\n- one\n  item\n      x = 1\n  more\n- two\n\n```\n> fly()\n```"
    assert found(markdown_sections(text.split("\n"), SkipCounts())) == [
        ((), ["Bees fly.", "- one item\n      x = 1\n  more\n- two", "> fly()"])
    ]


MAN = r"""
'\" t
.\" a comment
.TH BEE 1 "January 2024"
.de XX
.SH "not a heading"
..
.SH NAME
bee, drone \- find nectar and \fIcarry\fR it home
.SH SYNOPSIS
.B bee
.RI [ options ]
.IR flower ...
.SH DESCRIPTION
A
.BR bee (1)
flies\&. \(lqOften\(rq\-ish.
.ie t .B printed
.el shown
.PP
.nf
$ bee \-\-help
    clover
.fi
.SS "At night"
It sleeps.
.SH OPTIONS
.TP
.BR \-a ", " \-\-all
all flowers
"""


def test_manual_pages() -> None:
    assert found(man_sections(MAN.strip("\n").split("\n"))) == [
        (("bee", "SYNOPSIS"), ["bee [options] flower..."]),
        (
            ("bee", "find nectar and carry it home"),
            ["A bee(1) flies. “Often”-ish. shown", "$ bee --help\n    clover"],
        ),
        (("bee", "find nectar and carry it home", "At night"), ["It sleeps."]),
        (("bee", "OPTIONS"), ["-a, --all: all flowers"]),
    ]


def test_manual_pages_of_bsd() -> None:
    text = (
        ".Dd May 1\n.Dt BEE 1\n.Sh NAME\n.Nm bee\n.Nd find nectar\n.Sh DESCRIPTION\nThe\n.Nm\nutility reads\n"
    )
    text += ".Pa hive ,\nsee\n.Xr drone 1 .\n.Bl -tag\n.It Fl a Ar flower\nStart there.\n.El"
    assert found(man_sections(text.split("\n"))) == [
        (
            ("bee", "find nectar"),
            ["The bee utility reads hive, see drone(1).", "-a flower: Start there."],
        )
    ]


HTML = """\
<!DOCTYPE html><html><head><title>Bees &amp; hives</title><style>h1 {}</style></head>
<body><nav><h2>Menu</h2></nav><h1>Food<a class="headerlink" href="#food">¶</a></h1>
<p>Nectar,<!-- and --> <em>mostly</em>.<p>Pollen<br>too.
<ul><li>clover<li><p>lime</p></ul>
<table><tr><th>month<th>honey<tr><td>May<td>2 kg</table>
<pre>eat(
  clover)</pre><script>alert("no")</script>
<div role="navigation">Next</div><h2>In winter</h2><div>Sugar.</div></body></html>
"""


def test_html() -> None:
    assert found(html_sections(HTML.split("\n"))) == [
        (("Bees & hives",), []),
        (
            ("Bees & hives", "Food"),
            [
                "Nectar, mostly.",
                "Pollen too.",
                "- clover\n- lime",
                "month | honey\nMay | 2 kg",
                "eat(\n  clover)",
            ],
        ),
        (("Bees & hives", "Food", "In winter"), ["Sugar."]),
    ]


def test_of_a_page_that_marks_its_main_part_only_that_is_read() -> None:
    page = "<title>Bees</title><div>Sponsors</div><main><h1>Food</h1><p>Nectar.</main><p>Imprint"
    assert found(html_sections([page])) == [(("Bees",), []), (("Bees", "Food"), ["Nectar."])]


def test_tables_of_contents_and_numbers_are_left_out() -> None:
    contents = "1. How bees dance ..... 3\n2. What bees eat ..... 4\n3. Where bees live .... 5"
    sections = [Section("Bees", (), [contents, "See below.", "3.5 " * 120])]
    sections += [
        Section(heading, ("Bees",)) for heading in ("How bees dance", "What bees eat", "Where bees live")
    ]
    skipped = SkipCounts()
    assert _places("bees.md", sections, skipped)[0].passages == {"bees.md:1": "See below."}
    assert skipped.counts() == {"passages of numbers (bees.md)": 1, "tables of contents (bees.md)": 1}
