"""Divides lists of questions and answers: a paragraph that is a question becomes a heading."""

from __future__ import annotations

import re

from hf_ar2.collections.readers.text_sections import Section, words_in

_MAX_WORDS = 30
_MAX_MARKED_WORDS = 60  # after "Q:"
_ASKED = re.compile(r"[*_#>\s-]*(Q|(?i:question))\s*\d*\s*[.:)]")
_NUMBERED = re.compile(r"[*_#\s-]*([\[(]?)(\d{1,3})((?:\.\d+)*[.)\]]*)\s+(?=\S)")
_ANSWER = re.compile(r"[*_]*A(nswer)?\s*\d*\s*[.:)][*_]*\s+")
_ANSWER_BELOW = re.compile(r"\s[*_]*A(nswer)?\s*\d*[.:)][*_]*\s+")
# The end of a question: then at most quotes, marks, "(Linux)" and a colon.
_END = r"""(?<=[^\s?])[?？][?!？！]*["'”’»)\]*_`]*"""
_ENDS = re.compile(rf"{_END}(\s*\([^()]{{1,40}}\))?[\s*_`\"'”’:]*$")
_SENTENCES = re.compile(r"(?<=[.!])\s+|(?<=[?？])[\"'”’)\]*_]*\s+(?!\()")
_TITLE = re.compile(r"\bFAQs?\b|frequently[ -]asked", re.IGNORECASE)


def ends_question(line: str) -> bool:
    """Whether a line ends with a question mark, perhaps followed by marks and a remark in parentheses."""
    return _ENDS.search(line) is not None


def begins_question(line: str) -> bool:
    """Whether a line begins like a question of a list: with "Q:" or a number."""
    return bool(_ASKED.match(line) or _NUMBERED.match(line))


def begins_entry(line: str) -> bool:
    """Whether a line begins with "Q:" or "A:"."""
    return bool(_ASKED.match(line) or _ANSWER.match(line.lstrip()))


def split_at_questions(sections: list[Section], is_faq: bool = True) -> list[Section]:
    """The sections, in which a paragraph that is a question becomes the heading of what follows.

    A question ends with a question mark or begins with "Q:"; or it has the number after that of the question before.
    Unless the whole file `is_faq`, only sections below a heading such as "FAQ" are divided.
    """
    found: list[Section] = []
    number = ("", 0)
    for section in sections:
        found.append(Section(section.heading, section.above))
        if not is_faq and not any(map(_TITLE.search, section.path)):
            found[-1].paragraphs = section.paragraphs
            continue
        number = _number(section.heading) or number
        is_question = ends_question(section.heading) or _ASKED.match(section.heading)
        above = section.above if is_question else section.path
        for text in section.paragraphs:
            question, answer = _question_and_answer(text, number)
            if question:
                number = _number(question) or number
                found.append(Section(" ".join(question.split()), above))
            if answer:
                mark = _ANSWER.match(answer)
                found[-1].paragraphs.append(answer[mark.end() :] if mark else answer)
    return found


def _question_and_answer(text: str, number: tuple[str, int]) -> tuple[str, str]:
    """The question and the answer in a paragraph, either of which may be empty."""
    marked = _ASKED.match(text)
    answer = _ANSWER_BELOW.search(text) if marked else None
    question = text[: answer.start()] if answer else text
    words = words_in(question)
    if marked and words <= _MAX_MARKED_WORDS:
        return question, text[answer.end() :] if answer else ""
    lines = text.split("\n")
    if words > _MAX_WORDS or (len(lines) > 1 and sum(map(ends_question, lines)) > 1):
        return "", text  # a table of contents
    follows = number[1] and _number(text) == (number[0], number[1] + 1) and len(lines) == 1
    return (text, "") if follows or _is_question(text) else ("", text)


def _is_question(text: str) -> bool:
    """Whether a paragraph ends with a question, and no other sentence follows one, as an answer would."""
    if not ends_question(text):
        return False
    asked = [ends_question(sentence) for sentence in _SENTENCES.split(text) if sentence and sentence.strip()]
    return asked == sorted(asked)


def _number(text: str) -> tuple[str, int] | None:
    """The marks around the number of a numbered text, and the first part of the number."""
    found = _NUMBERED.match(text)
    return (re.sub(r"\d+", "0", f"{found[1]}0{found[3]}"), int(found[2])) if found else None
