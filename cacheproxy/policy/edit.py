"""Edits of a pack, as plain tables: one category read, merged, replaced or taken out; and what an edit changes.

A category is told with the threshold and the floor that it has for the encoder in use, as if they were keys of its own.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.policy.loader import pack_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.policy.pack import Pack

UNCALIBRATED = 1.0
"""The threshold that a new category gets for encoders that nobody has calibrated it for: it serves equal texts only."""

_CALIBRATED = {"threshold": "thresholds", "floor": "floors"}

Tree = dict[str, Any]


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One key that an edit changes; null stands for a key that is not there."""

    key: str
    before: Any
    after: Any


def category_tree(pack: Pack, name: str, epoch: str) -> Tree:
    """Return a category with every key, its threshold and its floor. Raises KeyError."""
    tree: Tree = pack_tree(pack)["categories"][name]
    return tree | {"threshold": pack.threshold(name, epoch), "floor": pack.floor(name, epoch)}


def with_category(pack: Pack, name: str, body: Mapping[str, Any], epoch: str) -> Tree:
    """Return the pack with this category put in place of the one of its name, if any. `epoch` is the encoder in use.

    A threshold of null takes it away. A category that may be served by similarity gets `UNCALIBRATED` where an encoder
    has no threshold of it and verifies nothing; for the encoder in use it must then bring its own.
    """
    tree = pack_tree(pack)
    values = dict(body)
    given = {key: values.pop(key) for key in _CALIBRATED if key in values}
    tree["categories"][name] = values
    for encoder in tree["encoders"].values():
        if encoder["fingerprint"] == epoch:
            for key, table in _CALIBRATED.items():
                encoder[table].pop(name, None)
                if given.get(key) is not None:
                    encoder[table][name] = given.pop(key)
        elif values.get("semantic") is True and not (values.get("verify", True) and encoder.get("verify_from")):
            encoder["thresholds"].setdefault(name, UNCALIBRATED)
    # What no encoder of the pack could take is left where it is refused by its name.
    values.update({key: value for key, value in given.items() if value is not None})
    return tree


def without_category(pack: Pack, name: str) -> Tree:
    """Return the pack without a category and its thresholds. Raises KeyError."""
    tree = pack_tree(pack)
    del tree["categories"][name]
    for encoder in tree["encoders"].values():
        for table in _CALIBRATED.values():
            encoder[table].pop(name, None)
    return tree


def merged(target: object, patch: object) -> Any:
    """Return what a JSON merge patch makes of a value: null takes a key away, objects merge (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Return every key that differs, by its path, in the order of `after`."""
    return list(_differences(before, after, ""))


def no_longer_kept(before: Pack, after: Pack) -> tuple[str, ...]:
    """Return the categories that `before` kept answers of and `after` must not hold: taken out, or never cached now."""
    kept = (name for name, rules in before.categories.items() if rules.allow_caching)
    return tuple(name for name in kept if name not in after.categories or not after.categories[name].allow_caching)


def told_by(pack: Pack) -> tuple[object, ...]:
    """Return all by which a query is told to be of a category, and of which nothing, or not everything, may be kept."""
    told = [
        (name, rules.allow_caching, rules.examples, rules.rules, rules.pii) for name, rules in pack.categories.items()
    ]
    return pack.default_category, pack.classifier, told


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[Difference]:
    for key in (*after, *(key for key in before if key not in after)):
        one, other = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{path}{key}.")
        elif one != other:
            yield Difference(key=f"{path}{key}", before=one, after=other)


def digest(pack: Pack) -> str:
    """Return what two packs share that say the same. A key left out and its default said are the same."""
    return hashlib.sha256(msgspec.json.encode(_lean(pack))).hexdigest()


def _lean(value: object) -> Any:
    """Return a struct without what is as by default: a key that a later version adds changes no digest."""
    if isinstance(value, msgspec.Struct):
        return {
            field.name: _lean(held)
            for field in msgspec.structs.fields(value)
            if (held := getattr(value, field.name)) != field.default
            and (field.default_factory is msgspec.NODEFAULT or held != field.default_factory())
        }
    if isinstance(value, dict):
        return {key: _lean(held) for key, held in value.items()}
    if isinstance(value, tuple):
        return [_lean(held) for held in value]
    return value
