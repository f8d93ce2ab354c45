from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.augment.rewards import (
    MOST_CHARS,
    WEIGHTS,
    Reward,
    Source,
    Voices,
    compiles,
    exact,
    repeated,
    said,
    valid_json,
)

if TYPE_CHECKING:
    from pathlib import Path


def python(text: str) -> str:
    return f"Sure:\n\n```python\n{text}\n```\nDone."


@pytest.mark.parametrize(
    ("answer", "reference", "good"),
    [
        ("Paris", "paris", True),
        (" The Eiffel Tower. ", "eiffel tower", True),
        ("**Lost card**", "lost card", True),
        ("lost_card", "lost card", True),
        ("Lyon", "Paris", False),
        ("Not Paris", "Paris", False),
        ("", "Paris", False),
        ("It takes 5 + 6 = 11 apples.", "11", True),
        ("It takes 11 apples and 5 pears.", "11", False),
        ("5 and 6.\n#### 18", "18", True),
        ("The final answer is $1,234.50", "1234.5", True),
        (r"so \boxed{42} of 50", "42", True),
        ("1/2", "0.5", True),
        ("-3", "3", False),
        ("Answer: B\nbecause it is", "b", True),
        ("The answer is Canberra.", "Canberra", True),
        ("Straße", "STRASSE", True),
    ],
)
def test_an_answer_is_exact_but_for_case_punctuation_and_articles(answer: str, reference: str, good: bool) -> None:
    assert exact(answer, reference) == said(Source.EXACT, good=good)


@pytest.mark.parametrize(("answer", "reference"), [("x", ""), ("x", " ?! "), ("x" * (MOST_CHARS + 1), "x")])
def test_nothing_is_said_without_a_reference_or_of_an_endless_answer(answer: str, reference: str) -> None:
    assert exact(answer, reference) is None


OBJECT = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ('{"a": 1}', True),
        (' [1, {"a": null}]\n', True),
        ('{"a": 1', False),
        ("{'a': 1}", False),
        ('{"a": NaN}', False),
        ("[" * 5_000, False),
        ('{"a": 1} as you wished', False),
        ("An object: {}", None),
        ("42", None),
        ("", None),
    ],
)
def test_an_answer_that_begins_as_json_is_json_or_not(answer: str, good: bool | None) -> None:
    found = valid_json(answer)
    assert (found if found is None else (found.value > 0.5, found.source)) == (
        good if good is None else (good, Source.JSON)
    )


def test_nothing_is_said_of_json_that_is_too_long() -> None:
    assert valid_json(f'["{"x" * MOST_CHARS}"]') is None


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        (python("def f(x):\n    return x + 1"), True),
        (python("    return x + 1"), True),  # a part of a function
        (python("def f(x:\n    return x"), False),
        (python("x = 1\n") + python("x = = 1"), False),
        ("~~~py\nprint(1)\n~~~", True),
        ("```python\nprint(1", False),  # cut short
        ("```python\nprint(1)", True),
        (python("print('`')"), True),
        ('```json\n{"a": 1}\n```', True),
        ('```json\n{"a": }\n```', False),
        (python("(" * 50_000), False),
        (python("-" * 50_000 + "1"), False),
        (python("x = \x00"), False),
        (python("x = 10 ** 10 ** 10 ** 10"), True),  # read, never worked out
    ],
)
def test_code_compiles_or_not(answer: str, good: bool) -> None:
    found = compiles(answer)
    assert found is not None
    assert (found.value > 0.5, found.source) == (good, Source.CODE)


@pytest.mark.parametrize(
    "answer",
    [
        "No code here.",
        "```\nx = = 1\n```",
        "```rust\nfn main() {\n```",
        python(">>> 1 + 1\n2"),
        python("!pip install numpy"),
        python("%timeit f()"),
        python("x") + " " * MOST_CHARS,
    ],
)
def test_nothing_is_said_of_what_is_no_code_or_not_to_be_parsed(answer: str) -> None:
    assert compiles(answer) is None


def test_code_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    found = compiles(python(f"import pathlib\npathlib.Path({str(mark)!r}).touch()"))
    assert found is not None
    assert not mark.exists()


def test_what_a_source_weighs_does_not_depend_on_what_it_says() -> None:
    for source in (Source.FEEDBACK, Source.JUDGE, Source.COMPARED):
        assert said(source, good=True).weight == said(source, good=False).weight == WEIGHTS[source]
    right, wrong = compiles(python("x")), compiles(python("x ="))
    assert right is not None
    assert wrong is not None
    assert right.weight == wrong.weight
    assert set(WEIGHTS) == set(Source)


def test_an_answer_that_was_asked_for_again_is_probably_bad_and_says_little() -> None:
    assert repeated().value < 0.5
    assert repeated().weight < WEIGHTS[Source.FEEDBACK]


WORD = Reward(value=0.0, weight=0.5, source=Source.FEEDBACK)


def test_a_flood_of_words_by_one_caller_weighs_as_its_logarithm() -> None:
    voices = Voices()
    first = voices.weight("faq", "one", WORD, 0.0)
    flood = first + sum(voices.weight("faq", "one", WORD, 1.0) for _ in range(9_999))
    assert first == 0.5
    assert flood < 40
    many = sum(voices.weight("faq", f"caller {number}", WORD, 1.0) for number in range(200))
    assert many == 100.0


def test_a_caller_is_heard_anew_after_hours_and_in_other_categories() -> None:
    voices = Voices()
    for _ in range(100):
        voices.weight("faq", "one", WORD, 0.0)
    assert voices.weight("code", "one", WORD, 0.0) == 0.5
    assert voices.weight("faq", "one", WORD, 0.0) < 0.05
    assert voices.weight("faq", "one", WORD, 12 * 3600.0) > 0.49


def test_voices_are_bounded() -> None:
    voices = Voices()
    for number in range(10_001):
        voices.weight("faq", str(number), WORD, 0.0)
    assert voices.weight("faq", "0", WORD, 0.0) == 0.5  # forgotten
    assert voices.weight("faq", "10000", WORD, 0.0) < 0.5
