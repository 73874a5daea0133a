"""Tables in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"}
_ESCAPES |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_ESCAPES |= {"<": "$<$", ">": "$>$", "|": "$|$", "–": "--", "≤": r"$\leq$", "≥": r"$\geq$"}
_ESCAPES["▼"] = r"$\bigtriangledown$"
# pdflatex stops at a Greek letter. LaTeX has no commands for those that look like Latin ones.
_GREEK = (
    "alpha beta gamma delta varepsilon zeta eta theta iota kappa lambda mu nu xi mathrm{o} pi rho varsigma sigma tau "
    "upsilon varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega epsilon phi vartheta"
).split()
_ESCAPES |= {
    letter: rf"$\{name}$"
    for letter, name in zip("αβγδεζηθικλμνξοπρςστυφχψωΓΔΘΛΞΠΣΥΦΨΩϵϕϑ", _GREEK, strict=True)
}
_ESCAPES |= dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))


def latex_table(rows: Sequence[Sequence[str]], columns: Sequence[str], caption: str) -> str:
    """A LaTeX table in the style of the package booktabs; every text is escaped.

    The first column is aligned on the left, the others on the right.
    """
    lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in [columns, *rows]]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption)}}}",
            r"\end{table}",
        ]
    )


def _escaped(text: str) -> str:
    escaped = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)
