"""What is asked in a benchmark: prepared request bytes, endless and the same for every run of one seed."""

from __future__ import annotations

import itertools
import json
import random
from typing import TYPE_CHECKING, Any

from cacheproxy.bench.questions import unheard

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-benchmark"

_SUBJECTS = (
    "the capital of Australia",
    "the boiling point of water at sea level",
    "the largest moon of Saturn",
    "the author of The Old Man and the Sea",
    "the currency used in Switzerland",
    "the process plants use to make sugar from light",
    "the best way to store fresh basil",
    "the difference between a virus and a bacterium",
    "the rule for the offside position in football",
    "the main cause of ocean tides",
    "the number of strings on a violin",
    "the year the Berlin wall came down",
    "the chemical symbol of potassium",
    "the safest way to thaw frozen chicken",
    "the reason why the sky looks blue",
    "the standard gauge of European railways",
    "the meaning of the word serendipity",
    "the longest river in South America",
    "the distance between the earth and the sun",
    "the way to undo the last commit in git",
)
_OPENINGS = ("", "hi, ", "hello, ", "hey, ", "please, ", "quickly: ", "so, ", "ok, ", "well, ", "um, ")
_ENDINGS = ("?", " ?", "??", "", " please?", ", please?", " thanks", "? thanks", "? thank you", "!", "...", "? :)")


def questions() -> list[str]:
    """The stored questions."""
    return [f"What is {subject}?" for subject in _SUBJECTS]


def variants(seed: int) -> list[str]:
    """Rewordings of the stored questions: more than the embedding memo holds, so that every one is encoded."""
    found = {
        f"{opening}{verb} {subject}{marks}{ending}"
        for opening, verb, subject, marks, ending in itertools.product(
            _OPENINGS, ("What is", "what is", "What's"), _SUBJECTS, ("", " "), _ENDINGS
        )
    } - set(questions())
    ordered = sorted(found)
    random.Random(seed).shuffle(ordered)
    return ordered


def request(text: str, *, stream: bool = False, headers: str = "", **fields: Any) -> bytes:
    """Return a whole chat completion request; `fields` are added to its body."""
    message = {"role": "user", "content": text}
    body = json.dumps({"model": "gpt-4o-mini", "messages": [message], "stream": stream, **fields}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEY}\r\n{headers}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# Raising the threshold to 1 forbids a hit by similarity: the lookup is done in full and always ends as a miss.
NEVER_SIMILAR = "x-cacheproxy-threshold: 1\r\n"


def scenario(name: str, seed: int, **fields: Any) -> Iterator[bytes]:
    """Return the endless requests of a scenario; `fields` are added to every body."""
    match name:
        case "exact hit":
            return itertools.cycle([request(text, **fields) for text in questions()])
        case "exact hit, stream":
            return itertools.cycle([request(text, stream=True, **fields) for text in questions()])
        case "semantic hit":
            return itertools.cycle([request(text, **fields) for text in variants(seed)])
        case "miss":
            return (request(text, headers=NEVER_SIMILAR, **fields) for text in unheard(seed))
        case "miss, stream":
            return (request(text, stream=True, headers=NEVER_SIMILAR, **fields) for text in unheard(seed + 1))
        case "pass-through":
            return itertools.repeat(
                f"GET /v1/models HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
            )
        case "backend alone":
            return (request(text, **fields) for text in unheard(seed + 2))
    raise ValueError(name)


SCENARIOS = ("exact hit", "exact hit, stream", "semantic hit", "miss", "miss, stream", "pass-through", "backend alone")
