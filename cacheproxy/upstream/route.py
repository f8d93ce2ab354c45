"""Routes: which model a request is for, and which backends may answer it. Pure: settings in, names out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate
from typing import TYPE_CHECKING

from cacheproxy.errors import ConfigError
from cacheproxy.model import Destination

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cacheproxy.settings import Settings

DEFAULT = "default"
"""The name of `[upstream]` among the backends."""

_WILD = re.compile(r"\[[^]]*\]|[*?]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    """One name or pattern, and the backends that list it. A name without wildcards is the most specific of all."""

    text: str
    exact: bool
    matches: re.Pattern[str]
    backends: tuple[str, ...]

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Sorts the most specific first: names, then patterns by how many characters they spell out."""
        return (not self.exact, -len(_WILD.sub("", self.text)), self.text)


class Routes:
    """Aliases, patterns and weights of one configuration. Raises ConfigError naming what cannot be followed."""

    def __init__(self, settings: Settings) -> None:
        self._aliases = {alias: _follow(alias, settings.aliases) for alias in settings.aliases}
        self.weights = {DEFAULT: 1, **{name: upstream.weight for name, upstream in settings.upstreams.items()}}
        self._patterns = _patterns(settings)
        _check_weights(self._patterns, self.weights)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Every alias with the model it stands for in the end."""
        return self._aliases

    @property
    def shared(self) -> frozenset[str]:
        """The backends that some other one may stand in for."""
        return frozenset(name for found in self._patterns if len(found.backends) > 1 for name in found.backends)

    @property
    def trivial(self) -> bool:
        """Whether every request goes to the default backend under its own model's name."""
        return not self._patterns and not self._aliases

    def resolve(self, model: str) -> Destination:
        """Return the model a backend will be asked for, and by which route ("" for the default backend)."""
        if self.trivial:
            return Destination(model=model)
        model = self._aliases.get(model, model)
        candidates = self.candidates(model)
        return Destination(model=model, name="" if candidates == (DEFAULT,) else ",".join(candidates))

    def candidates(self, model: str) -> tuple[str, ...]:
        """Return the backends that may answer for a model or an alias: those of the most specific pattern."""
        model = self._aliases.get(model, model)
        for pattern in self._patterns:
            if pattern.matches.fullmatch(model):
                return pattern.backends
        return (DEFAULT,)


def _follow(alias: str, aliases: Mapping[str, str]) -> str:
    seen = [alias]
    while (model := aliases.get(seen[-1])) is not None:
        if model in seen:
            raise ConfigError(f"aliases.{alias}: goes round in a circle ({' -> '.join([*seen, model])}); break it")
        seen.append(model)
    return seen[-1]


def _patterns(settings: Settings) -> tuple[_Pattern, ...]:
    listed: dict[str, list[str]] = {}
    for name, upstream in settings.upstreams.items():
        if not upstream.models or not all(upstream.models):
            raise ConfigError(f'upstreams.{name}.models: list the models it answers for, such as ["llama-*"]')
        for model in dict.fromkeys(upstream.models):
            listed.setdefault(model, []).append(name)
    found = (
        _Pattern(
            text=text,
            exact=_WILD.search(text) is None,
            matches=re.compile(translate(text)),
            backends=tuple(sorted(names)),
        )
        for text, names in listed.items()
    )
    return tuple(sorted(found, key=lambda pattern: pattern.rank))


def _check_weights(patterns: tuple[_Pattern, ...], weights: Mapping[str, int]) -> None:
    for pattern in patterns:
        if not any(weights[name] for name in pattern.backends):
            named = ", ".join(f"upstreams.{name}.weight" for name in pattern.backends)
            raise ConfigError(f"{named}: all are 0 for the models {pattern.text!r}; give at least one a weight")
