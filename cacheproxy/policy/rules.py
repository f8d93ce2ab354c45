"""Rules: which category claims a query by what is known of it before its text is embedded."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import re2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.model import Query
    from cacheproxy.policy.pack import Category, Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compiled:
    category: str
    rule: Rule
    tenants: frozenset[str]
    text: Any
    system: Any
    headers: tuple[tuple[bytes, Any], ...]
    everywhere: bool
    """Whether `text` may also be found in the conversation's earlier questions: for what is never cached.

    In a list of inputs such a rule goes before all others, whichever input it claims."""

    def holds(self, query: Query) -> bool:
        """Whether everything that the rule asks for is so."""
        return self.stands(query) and any(self.finds(text) for text in self._texts(query))

    def stands(self, query: Query) -> bool:
        """Whether everything is so that it asks for beside the text."""
        rule, scope = self.rule, query.scope
        return (
            (not rule.models or any(fnmatchcase(query.model, pattern) for pattern in rule.models))
            and (not rule.routes or any(fnmatchcase(query.dialect, pattern) for pattern in rule.routes))
            and (not rule.tenants or scope.tenant in self.tenants)
            and (not rule.namespaces or scope.namespace in rule.namespaces)
            and all(_sent(query, name, pattern) for name, pattern in self.headers)
            and (self.system is None or self.system.search(query.system) is not None)
        )

    def finds(self, text: str) -> bool:
        """Whether a text is one that it asks for."""
        return self.text is None or self.text.search(text) is not None

    def _texts(self, query: Query) -> tuple[str, ...]:
        return (query.text, *query.earlier) if self.everywhere else (query.text,)


def _sent(query: Query, name: bytes, pattern: Any) -> bool:
    return any(sent == name and pattern.search(value.decode("latin-1")) for sent, value in query.headers)


class Rules:
    """The rules of all categories, in their order. Patterns are RE2's: their time grows with the text only linearly."""

    def __init__(self, categories: Mapping[str, Category], tenant_of: Callable[[str], str]) -> None:
        """Compile. `tenant_of` turns a virtual key's tenant label into a tenant. Raises ValueError as `flaw` tells."""
        self._rules = [
            _Compiled(
                category=name,
                rule=rule,
                tenants=frozenset(rule.tenants) | {tenant_of(label) for label in rule.tenants},
                text=_compile(rule.text) if rule.text else None,
                system=_compile(rule.system) if rule.system else None,
                headers=tuple((header.lower().encode(), _compile(value)) for header, value in rule.headers.items()),
                everywhere=not rules.allow_caching,
            )
            for name, rules in categories.items()
            for rule in rules.rules
        ]

    def claim(self, query: Query) -> str:
        """Return the category of the first rule that holds, or "".

        Of a list each input is claimed by itself: if any is of a category never cached, so is the list, else the first
        of the rules that claimed one decides.
        """
        if not query.inputs:
            return next((rule.category for rule in self._rules if rule.holds(query)), "")
        standing = [rule for rule in self._rules if rule.stands(query)]
        first = len(standing)
        for text in query.inputs:
            at = next((at for at, rule in enumerate(standing) if rule.finds(text)), len(standing))
            if at < len(standing) and standing[at].everywhere:
                return standing[at].category
            first = min(first, at)
        return standing[first].category if first < len(standing) else ""


def flaw(pattern: str) -> str:
    """Return what is wrong with a pattern, or ""."""
    try:
        _compile(pattern)
    except ValueError as exc:
        return f"is not an RE2 regular expression: {exc}"
    return ""


def _compile(pattern: str) -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as exc:
        said = exc.args[0] if exc.args else ""
        raise ValueError(said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)) from exc
