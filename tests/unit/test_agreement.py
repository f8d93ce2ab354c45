from __future__ import annotations

import pytest

from cacheproxy.policy.agreement import agree, told


@pytest.mark.parametrize(
    ("cached", "fresh", "similarity", "expected"),
    [
        ("Open the settings.", "open the  settings", None, True),
        ("Paris.", "**Paris**", 0.2, True),
        ("Yes, you can.", "No, that is not possible.", 0.95, False),
        ("It is 1969.", "It is 1968.", 0.99, False),
        ("About 5 km.", "It takes an hour.", 0.6, None),
        ("Boil it for ten minutes, then rinse it well.", "Cook for ten minutes and rinse.", 0.95, True),
        (
            "It was founded by two students in 1998, one spring.",
            "Two students founded it, some say in 2001.",
            0.95,
            None,
        ),
        ("An answer of some words here.", "Another one with other words.", 0.6, None),
        ("An answer of some words here.", "Nothing like it at all.", 0.1, False),
        ("An answer of some words here.", "Another one with other words.", None, None),
        ("", "Something.", 0.9, None),
        ("...", "Something.", 0.1, None),
    ],
)
def test_two_answers_agree_differ_or_cannot_be_told(
    cached: str, fresh: str, similarity: float | None, expected: bool | None
) -> None:
    assert agree(cached, fresh, similarity) is expected
    if similarity is None or expected is not None:
        assert agree(fresh, cached, similarity) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"choices": [{"message": {"content": "a"}}]}, "a"),
        ({"choices": [{"text": "a"}]}, "a"),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, ""),
        ({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "a"}, {"text": "b"}]}]}, "ab"),
        ({"output": [{"type": "function_call"}]}, ""),
        ({"output": [{"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}]}, ""),
        ({"data": []}, ""),
    ],
)
def test_the_one_text_of_an_answer_is_read_in_every_dialect(body: dict[str, object], expected: str) -> None:
    assert told(body) == expected
