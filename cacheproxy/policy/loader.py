"""Find a policy pack and load it, or say exactly what is wrong with it."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from cacheproxy.errors import PackError
from cacheproxy.policy.document import dotted, read_document
from cacheproxy.policy.pack import Pack, Rule
from cacheproxy.policy.rules import flaw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cacheproxy.policy.document import Problem
    from cacheproxy.policy.pack import Category

SCHEMA = 1
POLICY_FILE = "policy.toml"

_PACKAGE = Path(__file__).resolve().parents[1]
_SHELVES = (_PACKAGE / "_policies", _PACKAGE.parent / "policies")
"""Where shipped packs stand: in the installed wheel, else in the checkout."""

_CATEGORY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Category names travel in headers and metric labels."""


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
    """Load `policy.toml`. Raises PackError with one line, `file:line: key problem`, for each thing that is wrong."""
    document = read_document(directory / POLICY_FILE)
    schema = document.tree.get("schema")
    if type(schema) is int and schema != SCHEMA:
        document.refuse([(("schema",), f"must be {SCHEMA}, the schema this cacheproxy reads, got {schema}")])
    pack = document.decode(Pack)
    document.refuse(_contradictions(pack))
    return pack


def _known() -> str:
    return (
        ", ".join(sorted({file.parent.name for shelf in _SHELVES for file in shelf.glob(f"*/{POLICY_FILE}")})) or "none"
    )


def _contradictions(pack: Pack) -> Iterator[Problem]:
    """Yield what every key alone cannot show: names that do not exist, twins, and rules that nothing can reach."""
    known = ", ".join(pack.categories) or "none"
    for name in pack.categories:
        if not _CATEGORY_NAME.fullmatch(name):
            yield ("categories", name), "is not a usable name; use 1 to 64 letters, digits, '_', '.' or '-'"
        rules = pack.categories[name]
        for key in ("stale_if_error_s", "stale_while_revalidate_s"):
            if getattr(rules, key) > rules.max_stale_s:
                yield (
                    ("categories", name, key),
                    f"must be at most max_stale_s ({rules.max_stale_s:g}), which caps everything stale",
                )
        yield from _rule_problems(name, rules)
    if (guaranteed := sum(rules.quota for rules in pack.categories.values())) > 1.0 + 1e-9:
        yield ("categories",), f"guarantee more than the whole store: the quotas add up to {guaranteed:g}"
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
    for at, rule in enumerate(rules.rules):
        path = ("categories", name, "rules", at)
        if rule == Rule():
            yield path, "asks for nothing and would claim every query; name models, routes, text, ..."
        for key in ("text", "system"):
            if (pattern := getattr(rule, key)) and (wrong := flaw(pattern)):
                yield (*path, key), wrong
        for header, pattern in rule.headers.items():
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
        for category, rules in pack.categories.items():
            if rules.semantic and category not in encoder.thresholds:
                yield (
                    (*table, "thresholds", category),
                    f"is missing; calibrate it or set categories.{category}.semantic = false",
                )
