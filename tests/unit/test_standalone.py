from __future__ import annotations

import pytest

from cacheproxy.query.standalone import Spelled, asking, restates, standalone
from cacheproxy.query.words import words

BAND = (
    "What group disbanded?",
    "Zappa and the Mothers of Invention were not faring well.",
    "When did they form?",
    "The band formed in 1964 in Pomona.",
)
HIM = ("Did he have siblings?", "I don't know.")
KOHLI = ("What sport does Kohli play?", "Cricket, for India, since the World Cup of 2008.")

RESTATED: dict[str, tuple[tuple[str, ...], str, str, Spelled]] = {
    "a pronoun": (BAND, "When did they disband?", "When did the Mothers of Invention disband?", Spelled.INNER),
    "his": (KOHLI, "What is his team?", "What is Kohli's team?", Spelled.INNER),
    "a first name": (KOHLI, "How old is Kohli?", "How old is Virat Kohli?", Spelled.INNER),
    "agreement": (BAND, "Did they have hits?", "Did Zappa have hits?", Spelled.INNER),
    "what was meant": (BAND, "Who was the drummer?", "Who was the drummer of the Mothers of Invention?", Spelled.INNER),
    "but for what was said": (
        KOHLI, "Does he play other sports?", "Besides cricket, does Kohli play other sports?", Spelled.INNER
    ),
    "a name that was never told": (HIM, "Where was he born?", "Where was Scooter Libby born?", Spelled.OUTER),
    "another question": (BAND, "When did they disband?", "Why did the Mothers of Invention disband?", Spelled.NO),
    "another verb": (BAND, "When did they disband?", "When did the Mothers of Invention tour?", Spelled.NO),
    "a negation": (BAND, "Did they disband?", "Did the Mothers of Invention not disband?", Spelled.NO),
    "a number": (BAND, "When did they tour?", "When did the Mothers of Invention tour in 1971?", Spelled.NO),
    "a region": (KOHLI, "How is cricket played?", "How is cricket played in Germany?", Spelled.NO),
    "a scope": (KOHLI, "How is cricket played?", "How is cricket played by beginners?", Spelled.NO),
    "somebody else": (KOHLI, "How old is he?", "How old is Napoleon?", Spelled.GUESSED),
    "another first name": (
        ("Who was Jo Steiner?", "A critic."), "Where was he born?", "Where was Rudolf Steiner born?", Spelled.GUESSED
    ),
    "another pronoun": (BAND, "What did he do?", "What did they do?", Spelled.NO),
    "another thing of it": (BAND, "What is Pomona?", "What is a suburb of Pomona?", Spelled.NO),
    "tense": (BAND, "Is it a band?", "Was it a band?", Spelled.NO),
    "no context": ((), "When did they disband?", "When did the Mothers disband?", Spelled.NO),
    "a long text": (BAND, "When did they disband?", "When did they disband?" + " x" * 300, Spelled.NO),
}  # fmt: skip


@pytest.mark.parametrize(("chain", "short", "long", "spelled"), RESTATED.values(), ids=RESTATED)
def test_only_references_may_be_spelled_out(chain: tuple[str, ...], short: str, long: str, spelled: Spelled) -> None:
    assert restates(short, long, chain) is spelled


def test_a_name_is_but_a_guess_where_the_conversation_names_somebody() -> None:
    chain = ("Where was he born?", "Walter Scott was born in Edinburgh.")
    assert restates("When was he born?", "When was Kurt Gödel born?", chain) is Spelled.GUESSED
    assert restates("When was he born?", "When was Walter Scott born?", chain) is Spelled.INNER


ALONE: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a pronoun": ("who painted it", ("Describe the Mona Lisa.", "A painting."), "who painted it (mona lisa)"),
    "an ellipsis": ("And why?", ("What is photosynthesis?", "A process."), "And why? (photosynthesis)"),
    "the latest topic": ("Who won it?", ("Who is Ann?", "A.", "What is the Tour?", "B."), "Who won it? (tour)"),
    "a question with a name": ("Who is Newton?", ("What is gravity?", "A force."), "Who is Newton?"),
    "a whole question": (
        "how do plants turn sunlight into sugar", ("What is a leaf?", "A part."),
        "how do plants turn sunlight into sugar",
    ),
    "no context": ("who painted it", (), "who painted it"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "chain", "told"), ALONE.values(), ids=ALONE)
def test_a_question_that_only_refers_is_told_with_its_topic(text: str, chain: tuple[str, ...], told: str) -> None:
    assert standalone(text, chain) == told


def test_words_know_names_and_stems() -> None:
    told = {word.text: word for word in words("When did Scooter Libby's parents marry? They married in 1970.")}
    assert [text for text, word in told.items() if word.name] == ["scooter", "libby", "1970"]
    assert told["married"].stem != ""
    assert words("plays playing played")[0].stem == words("played")[0].stem == words("playing")[0].stem


@pytest.mark.parametrize(("text", "word"), [("When was it?", "when"), ("Was it good?", ""), ("Tell me whose", "whose")])
def test_the_word_a_question_asks_by(text: str, word: str) -> None:
    assert asking(text) == (words(word)[0].stem if word else "")
