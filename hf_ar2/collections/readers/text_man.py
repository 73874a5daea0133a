"""Sections of manual pages, written with the macros of man or the most common ones of mdoc."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from hf_ar2.collections.readers.text_sections import Outline, Section, block_of

_CHARACTERS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "em": "—", "en": "–", "hy": "-", "mi": "-",
    "bu": "•", "co": "©", "rg": "®", "tm": "™", "rs": "\\", "ti": "~", "ha": "^", "ga": "`", "ba": "|", "sl": "/",
    "at": "@", "sh": "#", "Do": "$", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠", "mu": "×", "+-": "±",
    "lB": "[", "rB": "]", "lC": "{", "rC": "}", "la": "<", "ra": ">", "ss": "ß", "Aq": "'", "C`": "", "C'": "",
    "--": "–", "ul": "_", "pl": "+", "eq": "=",
}  # fmt: skip
_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[+-]?(?:\[[^\]]*\]|\(\d\d|\d)|[mn](?:\[[^\]]*\]|\(..|.)|[hvwlLbDoxX]'[^']*'|"
    r"[*]?\((?P<two>..)|[*]?\[(?P<long>[^\]]*)\]|\*(?P<one>.)|(?P<single>.)|$)"
)
_SINGLE = {"e": "\\", "~": " ", "0": " ", "t": "\t"} | {character: character for character in "-\\ '`."}
_REQUEST = re.compile(r"[.']\s*([^\s\\]+)\s*(.*)")
_NAME = re.compile(r"(.+?)\s+[-–—]+\s+(.+)", re.DOTALL)
_MACROS = re.compile(r"^[.']\s*(TH|SH|Dt|Sh)\b")
_JOINED = ("BR", "RB", "BI", "IB", "IR", "RI")
_SPACED = ("B", "I", "R", "SM", "SB", "CW", "F", "UR", "MT")
_PARAGRAPHS = ("PP", "LP", "P", "sp", "HP", "RS", "RE", "Pp", "Bl", "El", "br", "YS")
_VERBATIM = {"nf": "fi", "EX": "EE", "Vb": "Ve", "Bd": "Ed", "TS": "TE"}
_DEFINITIONS = ("de", "am", "ig", "de1")
_HEADINGS = ("SH", "SS", "Sh", "Ss")
# Macros of mdoc that print text within a line.
_ENCLOSING = {
    "Op": "[]", "Oo": "[ ", "Oc": " ]", "Pq": "()", "Dq": '""', "Qq": '""', "Sq": "''", "Ql": "''", "Aq": "<>",
    "Bq": "[]", "Brq": "{}", "Po": "( ", "Pc": " )", "Ao": "< ", "Ac": " >", "Bo": "[ ", "Bc": " ]", "Do": '" ',
    "Dc": ' "', "Qo": '" ', "Qc": ' "',
}  # fmt: skip
_PLAIN = set(
    "Ad An Ar Cd Cm Dv Em Er Ev Fa Fd Ft Ic In Li Lk Ms Mt No Pa Rv Sx Sy Tn Va Vt Ux Bx Fx Nx Ox St Cx Ns Ap".split()
)
_CLOSING = tuple(".,;:)]?!")


def is_man_page(lines: list[str]) -> bool:
    """Whether the lines have macros of a manual page."""
    return any(_MACROS.match(line) for line in lines)


def man_sections(lines: list[str]) -> list[Section]:
    """The sections of a manual page, below the name of what it describes.

    The summary in the section NAME becomes the heading of the description. Code and tables keep their lines; comments
    and layout are removed.
    """
    return with_summary(_Page().read(list(_applicable_lines(lines))).sections)


def with_summary(sections: list[Section]) -> list[Section]:
    """The sections of a manual page below its name, with the summary in NAME as the heading of the description."""
    named = next((section for section in sections if section.heading.upper() == "NAME"), None)
    found = _NAME.fullmatch(" ".join(" ".join(named.paragraphs).split())) if named else None
    if not found:
        return sections
    name, about = found[1].split(",")[0].strip(), found[2].rstrip(". ")
    described = any(section.heading.upper() == "DESCRIPTION" for section in sections)
    title = re.compile(rf"{re.escape(name)}\s*(\(\w+\))?\s*(manual page)?", re.IGNORECASE)
    kept = []
    for section in sections:
        if (section is named and described) or not (section.heading or section.paragraphs):
            continue
        # On the web a page begins with its name and "Manual page".
        above, heading = tuple(text for text in section.above if not title.fullmatch(text)), section.heading
        if described:
            above = tuple(about if text.upper() == "DESCRIPTION" else text for text in above)
            heading = about if heading.upper() == "DESCRIPTION" else heading
        kept.append(Section(heading, (name, *above), section.paragraphs))
    return kept


class _Page:
    """Interprets the requests of a page and fills an outline."""

    def __init__(self) -> None:
        self.outline = Outline()
        self.text: list[str] = []  # the paragraph so far
        self.kept: list[str] | None = None  # lines of code or a table
        self.kept_until = ""
        self.awaits = ""  # macro whose argument is the next line: a heading or the tag of an item
        self.name = ""

    def read(self, lines: list[str]) -> Outline:
        for line in lines:
            if line[:1] in (".", "'"):
                if request := _REQUEST.fullmatch(line):
                    self.request(request[1], request[2])
            elif self.kept is not None:
                self.kept.append(unescaped(line))
            else:
                self.say(unescaped(line))
        self.end()
        return self.outline

    def request(self, name: str, rest: str) -> None:
        if self.kept is not None and name == self.kept_until:
            self.end()
        elif self.kept is not None and name not in _HEADINGS:
            if name in (*_JOINED, *_SPACED) or mdoc_text(name, [], self.name) is not None:
                self.kept.append(self.text_of(name, rest) or "")
        elif name in _HEADINGS:
            self.end()
            if rest.strip():
                self.heading(name, " ".join(arguments(rest)))
            else:
                self.awaits = name
        elif name in _VERBATIM:
            self.end()
            self.kept, self.kept_until = [], _VERBATIM[name]
        elif name in ("TP", "TQ"):
            self.end()
            self.awaits = "TP"
        elif name in ("IP", "It"):
            self.end()
            words = arguments(rest)
            tag = mdoc_text("No", words, self.name) if name == "It" else (words[0] if words else "")
            if tag and any(map(str.isalnum, tag)):
                self.text.append(f"{tag}:")
        elif name in _PARAGRAPHS:
            self.end()
        elif text := self.text_of(name, rest):
            self.say(text)

    def text_of(self, name: str, rest: str) -> str | None:
        """The text that a macro prints within a line."""
        words = arguments(rest)
        if name in _JOINED:
            return "".join(words)
        if name in _SPACED:
            return " ".join(words)
        if name == "Nm" and words and not self.name:
            self.name = words[0]
        return mdoc_text(name, words, self.name)

    def say(self, text: str) -> None:
        if self.awaits == "TP":
            self.awaits = ""
            self.text.append(f"{text.strip()}:" if any(map(str.isalnum, text)) else "")
        elif self.awaits:
            self.heading(self.awaits, text)
        elif text.strip():
            self.text.append(text.strip())
        else:
            self.end()

    def heading(self, macro: str, text: str) -> None:
        self.awaits = ""
        self.outline.heading(1 if macro in ("SH", "Sh") else 2, text)

    def end(self) -> None:
        """End the paragraph, the code or the table."""
        if self.kept is not None:
            if self.kept_until == "TE":  # rows follow the layout, which ends with a full stop
                start = next((n + 1 for n, line in enumerate(self.kept) if line.rstrip().endswith(".")), 0)
                rows = [line.replace("\t", " | ") for line in self.kept[start:]]
                rows = [line for line in rows if line not in ("T{", "T}")]
                self.kept = [line for line in rows if any(map(str.isalnum, line))]
            self.outline.add(block_of(self.kept))
        self.outline.add(" ".join(" ".join(self.text).split()))
        self.text, self.kept, self.awaits = [], None, ""


def mdoc_text(macro: str, words: list[str], name: str = "") -> str | None:
    """The text that a macro of mdoc prints (`Nm` prints the name); None if it prints none.

    The words are its arguments, which may include macros.
    """
    if macro not in (*_PLAIN, *_ENCLOSING, "Fl", "Xr", "Nm", "Nd", "Fn"):
        return None
    text, glue, closing = "", False, ""
    tokens = [macro, *words]
    while tokens:
        token = tokens.pop(0)
        piece = token
        if token in _PLAIN and token != "In":
            glue = glue or token in ("Ns", "Ap")
            continue
        if token == "Fl":
            piece = "-" + (tokens.pop(0) if tokens and tokens[0] not in _PLAIN else "")
        elif token == "Nm":
            piece = tokens.pop(0) if tokens and tokens[0] not in _CLOSING and text == "" else name
        elif token == "Nd":
            piece = "-"
        elif token == "Xr" and len(tokens) > 1:
            piece = f"{tokens.pop(0)}({tokens.pop(0)})"
        elif token == "Fn" and tokens:
            piece = f"{tokens.pop(0)}({', '.join(word for word in tokens if word not in _CLOSING)})"
            tokens = [word for word in tokens if word in _CLOSING]
        elif token in _ENCLOSING:
            opening, end = tuple(_ENCLOSING[token])
            piece, closing = opening.strip(), end.strip() + closing
            text += ("" if glue or not text or text[-1] in "[(" else " ") + piece
            glue = True
            continue
        if token in _CLOSING and not tokens and closing:
            return text + closing + token
        text += ("" if glue or not text or piece in _CLOSING else " ") + piece
        glue = False
    return text + closing


def _applicable_lines(lines: list[str]) -> Iterator[str]:
    """The lines that apply to terminal output, without comments and macro definitions."""
    rest_of_page = iter(lines)
    holds = True
    for line in rest_of_page:
        line = re.sub(r"(?<!\\)\\[\"#].*", "", line)
        request = _REQUEST.fullmatch(line)
        name = request[1] if request and line[:1] in (".", "'") else ""
        if name in _DEFINITIONS:
            for ignored in rest_of_page:
                if re.match(r"[.']\s*\.", ignored):
                    break
            continue
        if name in ("if", "ie", "el"):
            assert request is not None
            condition, _, rest = request[2].partition(" ") if name != "el" else ("", "", request[2])
            holds = not holds if name == "el" else condition.startswith(("n", "!t"))
            opens = (condition + rest).count("\\{") - (condition + rest).count("\\}")
            if not holds:
                while opens > 0 and (skipped := next(rest_of_page, None)) is not None:
                    opens += skipped.count("\\{") - skipped.count("\\}")
                continue
            line = rest.replace("\\{", "").strip(" \\")
            if not line:
                continue
        if line or request is None:
            yield line.replace("\\}", "") if line.strip() != ".\\}" else ""


def arguments(text: str) -> list[str]:
    """The arguments of a macro: words or double-quoted strings, with escapes resolved."""
    lexer = shlex.shlex(text.replace("\\ ", "\\~"), posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.escape, lexer.commenters = True, '"', "", ""
    try:
        words = list(lexer)
    except ValueError:  # an unclosed quote
        words = text.replace('"', "").split()
    return [unescaped(word) for word in words]


def unescaped(text: str) -> str:
    """Text of roff with its escapes resolved, without changes of font and size."""

    def character(found: re.Match[str]) -> str:
        name = found["two"] or found["long"] or found["one"]
        if name is not None:
            if re.fullmatch(r"u[0-9A-F]{4,5}", name):
                return chr(int(name[1:], 16))
            return _CHARACTERS.get(name, "")
        return _SINGLE.get(found["single"] or "", "")

    return _ESCAPE.sub(character, text)
