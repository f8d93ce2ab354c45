"""Deltas merged into what they add up to, by the rules clients use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

SET_ONCE = frozenset({"role", "id", "type", "name"})
"""Texts that a stream may repeat, and that are never joined."""


class Malformed(Exception):
    """An event that no client could make sense of."""


class Texts:
    """The texts that a stream tells in pieces: gathered, and joined once, since old + new again and again is quadratic.

    Until `join`, such a text stands in its object as a list of its pieces of a type of its own.
    """

    def __init__(self) -> None:
        self._owners: list[tuple[dict[str, Any], str]] = []

    def add(self, owner: dict[str, Any], key: str, new: str) -> None:
        """Add a piece to the text in `owner[key]`."""
        old = owner.get(key)
        if isinstance(old, _Pieces):
            old.append(new)
        elif not old or not new:
            owner[key] = old or new
        else:
            owner[key] = _Pieces((old, new))
            self._owners.append((owner, key))

    def join(self) -> None:
        """Make every text whole."""
        for owner, key in self._owners:
            if isinstance(told := owner[key], _Pieces):
                owner[key] = "".join(told)
        self._owners.clear()


class _Pieces(list[str]):
    """A text that is still being told."""


_TEXT = str | _Pieces  # made once, not at each delta


def merge_message(message: dict[str, Any], delta: Mapping[str, Any], texts: Texts) -> None:
    """Add a delta: texts are joined, lists extended, tool calls merged by index, else the last told value counts."""
    for key, value in delta.items():
        old = message.get(key)
        if key == "tool_calls" and value is not None:
            if old is None:
                old = message[key] = []
            _merge_tool_calls(old, listed(value), texts)
        elif isinstance(value, str) and isinstance(old, _TEXT):
            if not (key in SET_ONCE and old):
                texts.add(message, key, value)
        elif isinstance(value, dict) and isinstance(old, dict):
            merge_message(old, value, texts)
        elif not (key in SET_ONCE and isinstance(value, str) and old):
            message[key] = _extended(old, value)


def update(known: dict[str, Any], news: Mapping[str, Any], *left_out: str) -> None:
    """Add the fields beside a delta: lists are extended, objects updated, and the last value that is not null counts.

    Texts are not joined: beside a delta stand verdicts (a finish reason, a filter's severity), not pieces.
    """
    for key, value in news.items():
        if key in left_out:
            continue
        if value is None:
            known.setdefault(key)
        else:
            known[key] = _updated(known.get(key), value)


def listed(value: Any) -> list[dict[str, Any]]:
    """Return a list of objects. Raises Malformed for anything else."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed
    return value


def _extended(old: Any, new: Any) -> Any:
    if new is None or old is None:
        return old if new is None else new
    if isinstance(old, list) and isinstance(new, list) and not isinstance(old, _Pieces):
        old.extend(new)
        return old
    return new


def _updated(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        update(old, new)
        return old
    return _extended(old, new)


def _merge_tool_calls(calls: Any, deltas: list[dict[str, Any]], texts: Texts) -> None:
    if not isinstance(calls, list):
        raise Malformed
    for delta in deltas:
        index = delta.get("index", len(calls))
        if not isinstance(index, int) or not 0 <= index <= len(calls):
            raise Malformed
        if index == len(calls):
            calls.append({})
        call, told = calls[index], delta.get("id")
        if not isinstance(call, dict):
            raise Malformed
        if told and call.get("id") and told != call["id"]:
            raise Malformed  # some backends give every call of a turn index 0: joined, two calls would make nonsense
        merge_message(call, {key: value for key, value in delta.items() if key != "index"}, texts)
