"""Find a policy pack and load it, or say exactly what is wrong with it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import PackError
from cacheproxy.policy.document import dotted, flaws, read_document
from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.policy.pack import Pack, Rule
from cacheproxy.policy.rules import flaw
from cacheproxy.query.scope import CREDENTIALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cacheproxy.policy.document import Document, Problem
    from cacheproxy.policy.pack import Category

SCHEMA = 1
MOST_EXAMPLES = 2000
"""In all: what classifies by them compares each with each, at every change of them."""
POLICY_FILE = "policy.toml"

_EXTENDS = "extends"
_DEEPEST = 2
"""Bases under a pack: one that another one extends is understood; a longer way nobody follows."""
_ROUTES = ("chat", "completions", "responses", "embeddings")
_OWN = ("schema", "name", "description")
"""What a pack says of itself and never has from its base."""

_PACKAGE = Path(__file__).resolve().parents[1]
_SHELVES = (_PACKAGE / "_policies", _PACKAGE.parent / "policies")
"""Where shipped packs stand: in the installed wheel, else in the checkout."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of categories travel in headers and metric labels, those of bases in paths."""


def find_pack(name_or_dir: str) -> Path:
    """Return the directory of a pack: a directory given, else a shipped pack's.

    Raises PackError listing the shipped packs when there is no such one.
    """
    given = Path(name_or_dir).expanduser()
    if (given / POLICY_FILE).is_file():
        return given
    if given.name == name_or_dir:
        for shelf in _SHELVES:
            if (shelf / name_or_dir / POLICY_FILE).is_file():
                return shelf / name_or_dir
    if given.is_dir():
        raise PackError(f"{given}: holds no {POLICY_FILE}; give a pack's directory, or one of {_known()}")
    raise PackError(f"{name_or_dir!r} is neither a pack's directory nor a shipped pack; shipped: {_known()}")


def load_pack(directory: Path) -> Pack:
    """Load `policy.toml` and what it extends.

    Raises PackError with one line, `file:line: key problem`, for each thing that is wrong; the file is that in which
    the key stands, which may be a base's.
    """
    document = _layers(directory, ())
    pack = document.decode(Pack)
    document.refuse(_contradictions(pack))
    return pack


def problems_of(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what is wrong with a whole pack as plain tables and arrays: each dotted key and its problem."""
    return [(dotted(path), text) for path, text in _problems(tree)]


def pack_from(tree: Mapping[str, Any]) -> Pack:
    """Return a pack given as plain tables and arrays, whole. Raises PackError with a line `key problem` for each."""
    if problems := problems_of(tree):
        raise PackError("\n".join(f"{key} {text}".strip() for key, text in problems))
    return msgspec.convert(tree, Pack)


def pack_tree(pack: Pack) -> dict[str, Any]:
    """Return a pack as plain tables and arrays with every key, such that `pack_from` returns the same pack."""
    tree: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(pack))
    return tree


def _problems(tree: Mapping[str, Any]) -> Iterator[Problem]:
    if _EXTENDS in tree:
        yield (_EXTENDS,), "belongs in a policy.toml; a pack that is sent is sent whole"
    elif found := [*_wrong_schema(tree)] or [*flaws(tree, Pack)]:
        yield from found
    else:
        yield from _contradictions(msgspec.convert(tree, Pack))


def _layers(directory: Path, above: tuple[Path, ...]) -> Document:
    """Return a pack's document over that of its base. `above` are the packs that led here."""
    document = read_document(directory / POLICY_FILE)
    document.refuse(_wrong_schema(document.tree))
    name = document.tree.get(_EXTENDS)
    if name is None:
        return document
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise document.refusal(((_EXTENDS,), f"must be the name of one pack, got {name!r}"))
    base = _base(directory, name)
    if base is None:
        known = f"no pack beside this one and none that is shipped ({_known()})"
        raise document.refusal(((_EXTENDS,), f"names {known}, got {name!r}"))
    chain = (*above, directory)
    way = " -> ".join([*(pack.resolve().name for pack in chain), base.name])
    if base.resolve() in {pack.resolve() for pack in chain}:
        raise document.refusal(((_EXTENDS,), f"goes in a circle: {way}"))
    if len(chain) > _DEEPEST:
        raise document.refusal(((_EXTENDS,), f"is one base too many: {way} (at most {_DEEPEST})"))
    return document.without(_EXTENDS).over(_layers(base, chain).without(*_OWN))


def _base(directory: Path, name: str) -> Path | None:
    """Return the directory of a base: one beside the pack before a shipped one."""
    places = (directory.resolve().parent, *_SHELVES)
    return next((place / name for place in places if (place / name / POLICY_FILE).is_file()), None)


def _wrong_schema(tree: Mapping[str, Any]) -> Iterator[Problem]:
    schema = tree.get("schema")
    if type(schema) is int and schema != SCHEMA:
        yield ("schema",), f"must be {SCHEMA}, the schema this cacheproxy reads, got {schema}"


def _known() -> str:
    return (
        ", ".join(sorted({file.parent.name for shelf in _SHELVES for file in shelf.glob(f"*/{POLICY_FILE}")})) or "none"
    )


def _contradictions(pack: Pack) -> Iterator[Problem]:
    """Yield what every key alone cannot show: names that do not exist, twins, and rules that nothing can reach."""
    known = ", ".join(pack.categories) or "none"
    for name in pack.categories:
        if not _NAME.fullmatch(name):
            yield ("categories", name), "is not a usable name; use 1 to 64 letters, digits, '_', '.' or '-'"
        rules = pack.categories[name]
        for key in ("stale_if_error_s", "stale_while_revalidate_s"):
            if getattr(rules, key) > rules.max_stale_s:
                yield (
                    ("categories", name, key),
                    f"must be at most max_stale_s ({rules.max_stale_s:g}), which caps everything stale",
                )
        if rules.augment == "auto" and rules.allow_caching and not rules.semantic:
            yield (
                ("categories", name, "augment"),
                f'must be "off" where semantic = false: examples are found by similarity; set it, or '
                f"categories.{name}.semantic = true",
            )
        yield from _rule_problems(name, rules)
    if (guaranteed := sum(rules.quota for rules in pack.categories.values())) > 1.0 + 1e-9:
        yield ("categories",), f"guarantee more than the whole store: the quotas add up to {guaranteed:g}"
    if (examples := sum(len(rules.examples) for rules in pack.categories.values())) > MOST_EXAMPLES:
        yield ("categories",), f"have {examples} examples; {MOST_EXAMPLES} are the most that are told apart by"
    if pack.default_category not in pack.categories:
        yield ("default_category",), f"must be one of this pack's categories ({known}), got {pack.default_category!r}"
    yield from _encoder_contradictions(pack, known)
    for later, price in enumerate(pack.prices):
        for earlier in pack.prices[:later]:
            # A literal reading of the later pattern is exact for `*`; `?` and `[` could make it claim too much.
            if fnmatchcase(price.model, earlier.model) and not set("?[") & set(earlier.model):
                yield ("prices", later, "model"), f"is never reached: {earlier.model!r} above matches first; move it up"
                break


def _rule_problems(name: str, rules: Category) -> Iterator[Problem]:
    for at, kind in enumerate(rules.pii):
        if kind not in PII_KINDS:
            yield ("categories", name, "pii", at), f"must be one of {', '.join(PII_KINDS)}, got {kind!r}"
    for at, rule in enumerate(rules.rules):
        path = ("categories", name, "rules", at)
        if rule == Rule():
            yield path, "asks for nothing and would claim every query; name models, routes, text, ..."
        for key in ("text", "system"):
            if (pattern := getattr(rule, key)) and (wrong := flaw(pattern)):
                yield (*path, key), wrong
        for place, route in enumerate(rule.routes):
            if not any(fnmatchcase(known, route) for known in _ROUTES):
                yield (*path, "routes", place), f"matches none of {', '.join(_ROUTES)}, got {route!r}"
        for header, pattern in rule.headers.items():
            if header.lower().encode() in CREDENTIALS:
                yield (*path, "headers", header), "is a credential, which no rule sees; name the tenant instead"
            if wrong := flaw(pattern):
                yield (*path, "headers", header), wrong


def _encoder_contradictions(pack: Pack, known: str) -> Iterator[Problem]:
    owner: dict[str, str] = {}
    for name, encoder in pack.encoders.items():
        table = ("encoders", name)
        twin = owner.setdefault(encoder.fingerprint, name)
        if twin != name:
            yield (*table, "fingerprint"), f"is also that of {dotted(('encoders', twin))}; keep one of the two"
        for key in ("thresholds", "floors"):
            for category in getattr(encoder, key):
                if category not in pack.categories:
                    yield (*table, key, category), f"names no category of this pack; known: {known}"
        for category, floor in encoder.floors.items():
            if floor > (threshold := encoder.thresholds.get(category, 1.0)):
                yield (*table, "floors", category), f"must be at most its threshold ({threshold:g}), got {floor:g}"
        for category, rules in pack.categories.items():
            verified = rules.verify and encoder.verify_from > 0.0  # without a verifier it is exact matches only, then
            if rules.semantic and category not in encoder.thresholds and not verified:
                yield (
                    (*table, "thresholds", category),
                    f"is missing; calibrate it or set categories.{category}.semantic = false",
                )
