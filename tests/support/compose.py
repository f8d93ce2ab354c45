"""Compose files as an engine reads them: variables put in, override files merged, anchors followed by YAML itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.markdown import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE, GPU_FILE = "docker-compose.yml", "docker-compose.gpu.yml"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


def text(name: str = FILE) -> str:
    """Return a file as it is written."""
    return (ROOT / name).read_text(encoding="utf-8")


def variables(name: str = FILE) -> set[str]:
    """Return the variables that a file reads from the environment of who starts it."""
    return {found["name"] for found in _VARIABLE.finditer(text(name)) if found["name"]}


def read(*names: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return files as one, the later ones over the earlier ones, with their variables put in."""
    merged: dict[str, Any] = {}
    for name in names or (FILE,):
        merged = _merge(merged, _put_in(yaml.safe_load(text(name)), environ or {}))
    return {key: value for key, value in merged.items() if not key.startswith("x-")}


def _put_in(value: Any, environ: Mapping[str, str]) -> Any:
    def one(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environ.get(found["name"]) or found["default"] or ""

    match value:
        case str():
            return _VARIABLE.sub(one, value)
        case list():
            return [_put_in(item, environ) for item in value]
        case dict():
            return {key: _put_in(item, environ) for key, item in value.items()}
    return value


def _merge(under: Any, over: Any) -> Any:
    """Merge as Compose does: mappings key by key, lists one after the other, anything else by replacement."""
    if isinstance(under, dict) and isinstance(over, dict):
        return {
            key: _merge(under[key], over[key]) if key in under and key in over else {**under, **over}[key]
            for key in {**under, **over}
        }
    if isinstance(under, list) and isinstance(over, list):
        return under + over
    return over
