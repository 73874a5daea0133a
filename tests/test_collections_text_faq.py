"""Lists of questions and answers: what is a question, and what is its answer."""

from __future__ import annotations

import pytest

from hf_ar2.collections.readers.text_faq import split_at_questions
from hf_ar2.collections.readers.text_plain import plain_sections
from hf_ar2.collections.readers.text_sections import Section


def split(*paragraphs: str) -> list[tuple[str, list[str]]]:
    """Questions and answers of a FAQ."""
    found = split_at_questions([Section("Bees", (), list(paragraphs))])
    return [(section.heading, section.paragraphs) for section in found if section.heading != "Bees"]


@pytest.mark.parametrize(
    "question",
    [
        "Do bees sleep?", "Q: Do bees sleep", "Q12. Do bees sleep?", "How do I keep them? (in winter)", "蜜蜂睡觉吗？",
        "Why do they sting??", "Why do they sting?!", "1.2. What is a hive?", "(3) What is a hive?",
        "What is “a hive?”", "**What is a hive?**:", "`hive` does not open. What is wrong?",
        "Do they sleep? Do they dream?", "Question: Bees do not fly when it is cold.",
        "5) Where is the hive (and the comb)?",
    ],
)  # fmt: skip
def test_questions(question: str) -> None:
    assert split(question, "The answer.") == [(question, ["The answer."])]


@pytest.mark.parametrize(
    "text",
    [
        "They sleep.", "Do they sleep? They do.", "Do they sleep? Yes. Do they dream?",
        "- Do they sleep?\n- Do they dream?", "at 0x1: ??? (start.S:81)", "q4: (error) no bee", "Really? " * 40,
    ],
)  # fmt: skip
def test_no_questions(text: str) -> None:
    assert split(text) == []


def test_question_and_answer_in_one_paragraph() -> None:
    assert split("Q: Do bees sleep? A: Yes.", "A lot.") == [("Q: Do bees sleep?", ["Yes.", "A lot."])]


def test_what_has_the_next_number_is_a_question_too() -> None:
    texts = ["1. Do bees sleep?", "Yes.", "2. My bees are lost.", "Wait.", "7. Or look.", "(3) Or ask."]
    assert split(*texts) == [
        ("1. Do bees sleep?", ["Yes."]),
        ("2. My bees are lost.", ["Wait.", "7. Or look.", "(3) Or ask."]),
    ]


def test_questions_in_other_files_count_below_a_heading_that_says_so() -> None:
    sections = [
        Section("Usage", ("Bees",), ["Do they sleep?", "Yes."]),
        Section("FAQ", ("Bees",), ["Do they dream?", "Yes."]),
    ]
    found = split_at_questions(sections, is_faq=False)
    assert [(section.path, section.paragraphs) for section in found] == [
        (("Bees", "Usage"), ["Do they sleep?", "Yes."]),
        (("Bees", "FAQ"), []),
        (("Bees", "FAQ", "Do they dream?"), ["Yes."]),
    ]


def test_no_question_is_below_another() -> None:
    found = split_at_questions([Section("Do they sleep?", ("FAQ",), ["Yes.", "Why?", "They are tired."])])
    assert [section.path for section in found] == [("FAQ", "Do they sleep?"), ("FAQ", "Why?")]


def test_questions_and_answers_on_lines_of_plain_text() -> None:
    lines = ["Q: Do they sleep?", "   Do they dream?", "A: Yes.", "Q: Where?", "A: In a hive."]
    found = split_at_questions(plain_sections(lines, is_faq=True))
    assert [(section.heading, section.paragraphs) for section in found if section.heading] == [
        ("Q: Do they sleep? Do they dream?", ["Yes."]),
        ("Q: Where?", ["In a hive."]),
    ]
