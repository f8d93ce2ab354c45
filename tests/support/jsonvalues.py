"""JSON for property tests: any value, any spelling of it, and any small change to it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from random import Random

Path = tuple[str | int, ...]

_BLANKS = ("", "", "", " ", "\n", "\r\n\t ")
_INTEGERS = st.integers() | st.integers(-(10**40), 10**40)

scalars = st.none() | st.booleans() | _INTEGERS | st.floats(allow_nan=False, allow_infinity=False) | st.text()
"""Every JSON value that holds no other."""

values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
"""Any JSON value."""

objects = st.dictionaries(st.text(), values, max_size=5)
"""Any JSON object."""


def reference(value: object) -> str:
    """Return a value's one spelling as the standard library has it: types, text and order of lists count."""
    return json.dumps(value, sort_keys=True)


def spelled(value: object, random: Random, twice: bool = False) -> str:
    """Write a value with random blanks, key order and escapes; `twice` repeats one key of every object."""

    def blank() -> str:
        return random.choice(_BLANKS)

    match value:
        case dict():
            pairs = list(value.items())
            if twice and pairs:
                pairs.append((random.choice(pairs)[0], random.choice(("::", 1, None, {"a:": ":"}))))
            random.shuffle(pairs)
            told = (f"{_quoted(k, random)}{blank()}:{blank()}{spelled(v, random, twice)}" for k, v in pairs)
            return "{" + blank() + f"{blank()},{blank()}".join(told) + blank() + "}"
        case list():
            return "[" + blank() + f"{blank()},{blank()}".join(spelled(v, random, twice) for v in value) + blank() + "]"
        case str():
            return _quoted(value, random)
        case _:
            return json.dumps(value)


def _quoted(text: str, random: Random) -> str:
    return '"' + "".join(_character(character, random) for character in text) + '"'


def _character(character: str, random: Random) -> str:
    plain = json.dumps(character, ensure_ascii=False)[1:-1]
    escaped = json.dumps(character)[1:-1]
    code = ord(character)
    numbered = f"\\u{code:04{random.choice('xX')}}" if code < 0x10000 else escaped
    return random.choice((plain, plain, escaped, numbered))


@st.composite
def changed(draw: st.DrawFn, value: Any, path: Path = ()) -> tuple[Path, Any]:
    """Return where, and the value with one thing in it changed: a value, a type, a key, an item more or less."""
    inside = draw(st.booleans()) if isinstance(value, dict | list) and value else False
    if isinstance(value, dict):
        if inside:
            key = draw(st.sampled_from(sorted(value)))
            where, new = draw(changed(value[key], (*path, key)))
            return where, {**value, key: new}
        return path, draw(_object_changed(value))
    if isinstance(value, list):
        if inside:
            at = draw(st.integers(0, len(value) - 1))
            where, new = draw(changed(value[at], (*path, at)))
            return where, [*value[:at], new, *value[at + 1 :]]
        return path, draw(_list_changed(value))
    return path, draw(_another(value))


def _another(value: Any) -> st.SearchStrategy[Any]:
    return values.filter(lambda new: reference(new) != reference(value))


def _object_changed(value: dict[str, Any]) -> st.SearchStrategy[Any]:
    fresh = st.text().filter(lambda key: key not in value)
    ways: list[st.SearchStrategy[Any]] = [
        _another(value),
        st.builds(lambda key, new: {**value, key: new}, fresh, values),
    ]
    if value:
        key = st.sampled_from(sorted(value))
        ways.append(key.map(lambda gone: {name: told for name, told in value.items() if name != gone}))
        ways.append(
            st.builds(lambda old, new: {new if name == old else name: told for name, told in value.items()}, key, fresh)
        )
    return st.one_of(ways)


def _list_changed(value: list[Any]) -> st.SearchStrategy[Any]:
    at = st.integers(0, len(value))
    ways = [_another(value), st.builds(lambda where, new: [*value[:where], new, *value[where:]], at, values)]
    if value:
        ways.append(st.integers(0, len(value) - 1).map(lambda gone: [*value[:gone], *value[gone + 1 :]]))
    return st.one_of(ways)
