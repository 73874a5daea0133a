"""The macros of mdoc that print text within a line of a manual page."""

from __future__ import annotations

_ENCLOSING = {
    "Op": "[]", "Oo": "[ ", "Oc": " ]", "Pq": "()", "Dq": '""', "Qq": '""', "Sq": "''", "Ql": "''", "Aq": "<>",
    "Bq": "[]", "Brq": "{}", "Po": "( ", "Pc": " )", "Ao": "< ", "Ac": " >", "Bo": "[ ", "Bc": " ]", "Do": '" ',
    "Dc": ' "', "Qo": '" ', "Qc": ' "',
}  # fmt: skip
_PLAIN = set(
    "Ad An Ar Cd Cm Dv Em Er Ev Fa Fd Ft Ic In Li Lk Ms Mt No Pa Rv Sx Sy Tn Va Vt Ux Bx Fx Nx Ox St Cx Ns Ap".split()
)
_CLOSING = tuple(".,;:)]?!")


def mdoc_text(macro: str, words: list[str], name: str = "") -> str | None:
    """The text that a macro of mdoc prints; None if it prints none.

    Args:
        macro: without its dot.
        words: its arguments, which may include macros.
        name: printed by `Nm`.
    """
    if macro not in (*_PLAIN, *_ENCLOSING, "Fl", "Xr", "Nm", "Nd", "Fn"):
        return None
    text, glue = "", False
    tokens = [macro, *words]
    closing = ""
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
