"""What a reading finds in a text: amounts, dates, negations, names, code, the kind of question, the language."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cacheproxy.verify import lexicon
from cacheproxy.verify.reading import read
from cacheproxy.verify.rules import RULES, rule_values
from cacheproxy.verify.vetoes import vetoed


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 eggs", "three eggs"),
        ("50% off", "50 percent off"),
        ("50% off", "fifty per cent off"),
        ("1,000 users", "1000 users"),
        ("1k users", "1000 users"),
        ("half of it", "50% of it"),
        ("the 2nd try", "the second try"),
        ("$5", "5 dollars"),
        ("€20", "20 euros"),
        ("1 hour", "60 minutes"),
        ("2 days", "48 hours"),
        ("1 GB", "1000 MB"),
        ("5 km", "5000 meters"),
        ("2.5 million", "2,500,000"),
        ("twenty-five people", "25 people"),
        ("two hundred and forty", "240"),
        ("a dozen eggs", "12 eggs"),
        ("1 year", "12 months"),
        ("2/3 of it", "two thirds of it"),
        ("70 mph", "70 miles per hour"),
    ],
)
def test_the_same_amount_is_read_from_both_spellings(one: str, other: str) -> None:
    left, right = read(one).quantities, read(other).quantities
    assert left
    assert len(left) == len(right)
    assert all(a.same(b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5 kg", "5 km"),
        ("2 GB", "2 MB"),
        ("30 seconds", "30 minutes"),
        ("$5", "€5"),
        ("v1.2.3", "v1.2.4"),
        ("3rd", "4th"),
    ],
)
def test_different_amounts_are_told_apart(one: str, other: str) -> None:
    (left,), (right,) = read(one).quantities, read(other).quantities
    assert not left.same(right)


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("on March 3, 2021", {"m3", "d3", "y2021"}),
        ("on 3rd of March 2021", {"m3", "d3", "y2021"}),
        ("on 2021-03-03", {"m3", "d3", "y2021"}),
        ("at 7pm", {"t1140"}),
        ("at 7 p.m. or so", {"t1140"}),
        ("at 19:00", {"t1140"}),
        ("at 7am", {"t420"}),
        ("at noon", {"t720"}),
        ("next Friday", {"w4"}),
        ("last week", {"last week"}),
        ("in the 1990s", {"y90s"}),
        ("in 1969", {"y1969"}),
        ("1969 dollars", set()),
        ("may I ask", set()),
        ("in May", {"m5"}),
        ("the dogs march on", set()),
        ("tomorrow", {"tomorrow"}),
        ("tonight", {"today"}),
    ],
)
def test_dates_and_times_are_read_as_parts(text: str, dates: set[str]) -> None:
    assert read(text).dates == dates


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("I can't log in", 1),
        ("I cannot log in", 1),
        ("I am unable to log in", 1),
        ("I dont eat meat", 1),
        ("bread without yeast", 1),
        ("it is not impossible", 2),
        ("is this illegal", 1),
        ("is it raining or not", 0),
        ("Isn't it cold?", 0),
        ("It is cold, isn't it?", 0),
        ("I don't know how to swim", 0),
        ("not only cats", 0),
        ("No, the blue one", 0),
        ("Don't turn off the lights", 1),
        ("anything but jazz", 1),
        ("non-refundable tickets", 1),
        ("under the union of uncles", 0),
    ],
)
def test_negations_are_counted_where_they_deny(text: str, count: int) -> None:
    assert len(read(text).negated) == count


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("How do I cook rice?", "how"),
        ("Ways to cook rice", "how"),
        ("How much is rice?", "amount"),
        ("What is the price of rice?", "amount"),
        ("When was it built?", "when"),
        ("What year was it built?", "when"),
        ("Where is it?", "where"),
        ("Whose car is it?", "who"),
        ("Why is it red?", "why"),
        ("What is the reason for it?", "why"),
        ("Is it red?", "yesno"),
        ("Write a poem", "command"),
        ("Could you write a poem", "command"),
        ("How long is the bridge?", "span"),
    ],
)
def test_the_kind_of_question_is_read(text: str, kind: str) -> None:
    assert read(text).question == kind


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("what does os.path.join() do", {"os.path.join"}),
        ("run `git push` now", {"git push"}),
        ("the --force flag", {"--force"}),
        ("open /etc/hosts please", {"/etc/hosts"}),
        ("see https://example.com/a.", {"https://example.com/a"}),
        ("the getElementById function", {"getelementbyid"}),
        ("edit config.yaml", {"config.yaml"}),
        ("my iPhone and eBay", set()),
        ("e.g. a well-known fact", set()),
    ],
)
def test_code_is_told_from_words(text: str, code: set[str]) -> None:
    assert read(text).code == code


def test_names_are_entities_only_where_capitals_say_something() -> None:
    assert read("How do I delete my Facebook account?").entities == {"facebook"}
    assert "delete" not in read("How Do I Delete My Old Account Today?").entities
    assert read("what is a qwertzify").entities == {"qwertzify"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How do I cook rice?", "en"),
        ("Wie kann ich mein Passwort ändern?", "de"),
        ("¿Dónde está la estación?", "es"),
        ("Как дела", "cyrillic"),
        ("料理を学べますか", "kana"),
        ("rice cooker", ""),
    ],
)
def test_the_language_is_told_where_it_is_sure(text: str, language: str) -> None:
    assert read(text).language == language


@pytest.mark.parametrize(
    ("word", "lemma"),
    [("cities", "city"), ("running", "run"), ("froze", "freeze"), ("boxes", "box"), ("banned", "ban"), ("news", "news"),
     ("colours", "color"), ("used", "use"), ("qwertz", "qwertz")],
)  # fmt: skip
def test_words_have_a_base_form(word: str, lemma: str) -> None:
    assert lexicon.lemma(word) == lemma


def test_the_lexicon_knows_opposites_synonyms_and_alternatives() -> None:
    assert lexicon.antonyms("legality", "illegality")
    assert lexicon.antonyms("unfriend", "friend")
    assert lexicon.synonyms("buy", "purchase")
    assert not lexicon.synonyms("increase", "decrease")
    assert lexicon.siblings("france", "germany")
    assert lexicon.rivals("chrome", "firefox")
    assert lexicon.region("french") == lexicon.region("france") == "france"
    assert "WordNet" in lexicon.source()


@given(st.text(max_size=300), st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_and_no_rule_leaves_its_range(one: str, other: str) -> None:
    asked, kept = read(one), read(other)
    values = rule_values(asked, kept)
    assert len(values) == len(RULES)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert vetoed(asked, asked) == ""
    assert vetoed(asked, read(one)) == ""


_SAMPLE = """how do i not can't turn on off from to 5 10 km kg may 2021 7pm python 3.11 enable disable cat dog bite
paris usa france first last"""
_WORDS = st.lists(st.sampled_from(_SAMPLE.split()), max_size=12).map(" ".join)


@given(_WORDS, _WORDS)
@settings(max_examples=400, deadline=None)
def test_a_veto_does_not_depend_on_who_asks(one: str, other: str) -> None:
    asked, kept = read(one), read(other)
    assert bool(vetoed(asked, kept)) == bool(vetoed(kept, asked))


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1,",
        "a.b",
        "a_",
        "/a",
        "'",
        "-a",
        "$1.1:",
        "`",
        "not ",
        "A",
        "1",
        "a->b",
        '"',
        "U.S",
        "x(",
        "https://",
        "é",
        "1-",
        "@a.",
    ],
)
def test_a_text_of_100_kb_is_read_in_bounded_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    lexicon.prepare()
    before = time.process_time()
    asked, kept = read(text), read(text + "z")
    rule_values(asked, kept)
    assert time.process_time() - before < 0.5
    assert len(asked.text) <= 4_001
