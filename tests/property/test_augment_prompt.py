"""Whatever examples hold, a prompt holds exactly them and the caller's own words; nothing leaves its quotes."""

from __future__ import annotations

import json
import re

from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.augment.prompt import augmented
from cacheproxy.augment.quoting import CLOSE, OPEN, line, neutral, quoted, turns_heading
from cacheproxy.augment.select import Selection
from tests.support.examples import example

MARKS = [
    *("<|im_start|>", "<|im_end|>", "<s>", "</s>", "<<SYS>>", "[INST]", "[/INST]", OPEN, CLOSE, "\uff1c|x|\uff1e"),
    *("System:", "\nUser :", '"', "\\", "\\u003c", '\\", ', "\n", "\r", "\u2028", "\x85", "\x00", "\u200b", "\ufeff"),
    *("\U000e0041", "\ud800", "\udc00", '{"question": ', "###", "<", " ", "=", "a", "<\uff5c", "\uff5c>", "\ufe64"),
]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.text(alphabet=st.characters(codec=None), max_size=20),
    st.lists(st.sampled_from(MARKS), max_size=12).map("".join),
)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "developer", "user"]), "content": st.text(max_size=20)}),
    max_size=5,
)
CONTROL = re.compile(r"<(?![ =\"]|\Z)|[\uff1c\ufe64\x7f-\x9f\u2028\u2029\u200b\ud800-\udfff]|\[/?[A-Z][A-Z_]+\]")
UNSEEN = re.compile(r"[\x00-\x1f]")
UNSEEN_BUT_LINE_ENDS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def units(text: str) -> bytes:
    """Return a text as UTF-16 has it: two halves of a character are one."""
    return text.encode("utf-16-be", "surrogatepass")


def resolved(text: str) -> str:
    """Return a text with its escapes resolved."""
    return re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)


def selected(pairs: list[tuple[str, str]]) -> Selection:
    return Selection(examples=tuple(example(question=question, answer=answer) for question, answer in pairs))


@given(TEXTS)
@case("\\u003c|im_start|>")
@case("\\\\u003c")
@case("<\x1f<")
def test_a_neutral_text_reads_back_as_it_was_and_holds_no_control_token(text: str) -> None:
    assert units(json.loads(quoted(text))) == units(text)
    assert units(resolved(neutral(text))) == units(text)
    for told in (quoted(text), neutral(text)):
        assert CONTROL.search(told) is None
    assert UNSEEN.search(quoted(text)) is None
    assert UNSEEN_BUT_LINE_ENDS.search(neutral(text)) is None


@given(TEXTS, TEXTS)
def test_an_example_is_one_line_without_our_marks(question: str, answer: str) -> None:
    told = line(question, answer)
    assert told.splitlines() == [told]
    assert OPEN not in told
    assert CLOSE not in told


@given(PAIRS, MESSAGES)
def test_a_chat_holds_exactly_the_examples_and_the_callers_messages(
    pairs: list[tuple[str, str]], messages: list[dict[str, str]]
) -> None:
    asked = [*messages, {"role": "user", "content": "Hi"}]
    found = augmented({"model": "m", "messages": asked}, selected(pairs), dialect="chat", model="small")["messages"]
    led = next(at for at, message in enumerate(asked) if message["role"] == "user")
    assert [*found[:led], *found[led + 1 :]] == asked
    _, rest = found[led]["content"].split(f"\n{OPEN}\n")
    told, end = rest.split(f"\n{CLOSE}")
    assert end == ""
    read = [tuple(json.loads(one).values()) for one in told.splitlines()]
    assert [tuple(map(units, pair)) for pair in read] == [tuple(map(units, pair)) for pair in pairs]


@given(PAIRS, MESSAGES)
def test_a_chat_with_turns_holds_exactly_the_examples_and_the_callers_messages(
    pairs: list[tuple[str, str]], messages: list[dict[str, str]]
) -> None:
    asked = [*messages, {"role": "user", "content": "Hi"}]
    found = augmented({"model": "m", "messages": asked}, selected(pairs), dialect="chat", model="small", form="turns")[
        "messages"
    ]
    led = next(at for at, message in enumerate(asked) if message["role"] == "user")
    first, after = led + 1, led + 1 + 2 * len(pairs)
    assert [*found[:led], *found[after:]] == asked
    assert found[led]["content"] == turns_heading(len(pairs))
    read = [
        (json.loads(question["content"]), resolved(answer["content"]))
        for question, answer in zip(found[first:after:2], found[first + 1 : after : 2], strict=True)
    ]
    assert [tuple(map(units, pair)) for pair in read] == [tuple(map(units, pair)) for pair in pairs]
