"""Chains: histories of different shape never meet, and no ancestor's text leaves the exact key unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import assume, given
from hypothesis import strategies as st

from cacheproxy.model import Asking, Controls, Query, Scope
from cacheproxy.query.chain import plain
from cacheproxy.query.chat import read_chat
from cacheproxy.query.standalone import Spelled, restates, standalone
from cacheproxy.verify.chains import compare, verify_chains
from tests.support.verifiers import CosineScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

SCOPE = Scope(tenant="t" * 64)

WORDS = [
    "who",
    "what",
    "did",
    "it",
    "he",
    "the",
    "Ann",
    "Bob",
    "Reef",
    "reef",
    "not",
    "3",
    "4",
    "made",
    "tour",
    "in",
    "of",
]

texts = st.text(min_size=1, max_size=12)
wordings = st.lists(
    st.sampled_from(WORDS),
    min_size=1,
    max_size=8,
).map(" ".join)
contents: st.SearchStrategy[Any] = st.one_of(
    texts, st.lists(st.builds(dict, type=st.just("text"), text=texts), min_size=1, max_size=2)
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.one_of(contents, st.none())},
    optional={"name": st.sampled_from(["a", "b"]), "tool_calls": st.just([{"id": "1"}])},
)
histories = st.lists(messages, max_size=6)
chains = st.lists(wordings, min_size=1, max_size=3).map(lambda said: tuple(t for text in said for t in (text, text)))


def read(history: Sequence[dict[str, Any]], text: str = "Why?") -> Query:
    body = {"model": "m", "messages": [*history, {"role": "user", "content": text}]}
    return read_chat(body, SCOPE, Controls())


def shape(history: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return all but the texts of plain turns."""
    return [
        tuple(sorted((name, str(value)) for name, value in message.items() if name != "content")) for message in history
    ]


@given(one=histories, other=histories)
def test_histories_of_different_shape_never_share_a_partition(
    one: list[dict[str, Any]], other: list[dict[str, Any]]
) -> None:
    assume(shape(one) != shape(other))
    assert read(one).compatibility != read(other).compatibility


@given(history=histories, place=st.integers(0, 5), text=texts)
def test_changing_any_earlier_text_changes_the_exact_key(history: list[dict[str, Any]], place: int, text: str) -> None:
    assume(history)
    at = place % len(history)
    assume(history[at]["content"] != text)
    changed = [*history[:at], {**history[at], "content": text}, *history[at + 1 :]]
    assert read(history).fingerprint != read(changed).fingerprint


@given(one=histories, other=histories, ask=texts, again=texts)
def test_equal_exact_keys_mean_equal_requests(
    one: list[dict[str, Any]], other: list[dict[str, Any]], ask: str, again: str
) -> None:
    same = (one, ask) == (other, again)
    assert (read(one, ask).fingerprint == read(other, again).fingerprint) == same


@given(history=histories)
def test_a_chain_alternates_and_ends_with_the_assistant(history: list[dict[str, Any]]) -> None:
    chain = read(history).chain
    assert len(chain) % 2 == 0
    assert not chain or any(text.strip() for text in chain)
    for text in (text for text in chain if text):
        assert text.strip()


@given(one=chains, other=chains, ask=wordings, again=wordings)
def test_comparing_is_the_same_both_ways(one: tuple[str, ...], other: tuple[str, ...], ask: str, again: str) -> None:
    asked, kept = Asking(text=ask, chain=one), Asking(text=again, chain=other)
    there, back = compare(asked, kept), compare(kept, asked)
    assert bool(there.veto) == bool(back.veto)
    assert len(there.pairs) == len(back.pairs)


@given(one=chains, other=chains, ask=wordings, again=wordings)
def test_no_verdict_without_every_ancestor(one: tuple[str, ...], other: tuple[str, ...], ask: str, again: str) -> None:
    """A verifier that finds nothing alike leaves only what is the same by rule."""
    (word,) = verify_chains(
        Asking(text=ask, chain=one), [Asking(text=again, chain=other)], CosineScorer(bar=2.0), lambda *_: 0.9, 0.5
    )
    if word.probability >= 0.5:
        assert [plain(text) for text in one] == [plain(text) for text in other]


@given(chain=chains, short=wordings, long=wordings)
def test_restating_never_changes_a_number_a_negation_or_what_is_asked(
    chain: tuple[str, ...], short: str, long: str
) -> None:
    if restates(short, long, chain) is not Spelled.NO:
        for telling in ("not", "made", "tour", "3", "4"):
            assert short.split().count(telling) <= long.split().count(telling)
        assert ("not" in short.split()) == ("not" in long.split())
        new = {"3", "4"} & set(long.split()) - set(short.split())
        assert new <= {word for text in chain for word in text.split()}
    assert standalone(short, chain).startswith(short)
