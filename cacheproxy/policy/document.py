"""A tree of keys checked against a frozen struct, where every problem names its key, and in a TOML file its line."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import inspect

from cacheproxy.errors import PackError
from cacheproxy.policy.positions import key_lines

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterable, Iterator, Mapping

    from cacheproxy.policy.positions import Path

    Problem = tuple[Path, str]
    Place = tuple[int, int]
    """Which of a document's files, counted from 0, and which line."""

T = TypeVar("T")

_GREATEST = 10**15 - 1
"""TOML and JSON may bring whole numbers of any length: beyond this one no float is exact, and no setting is sane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed TOML file, perhaps laid over others, that remembers where its keys stand."""

    files: tuple[pathlib.Path, ...]
    """The file itself, then what it lies over, in this order."""
    tree: Mapping[str, Any]
    places: Mapping[Path, Place]

    @property
    def file(self) -> pathlib.Path:
        """The file that was asked for."""
        return self.files[0]

    def decode(self, type_: type[T]) -> T:
        """Return the file as a struct. Raises PackError with one line for each wrong, unknown or missing key."""
        self.refuse(flaws(self.tree, type_))
        try:
            return msgspec.convert(self.tree, type_)
        except msgspec.ValidationError as exc:
            raise PackError(f"{self.file}: {exc}") from exc

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raise what `refusal` returns; return when there is no problem."""
        if found := list(problems):
            raise self.refusal(*found)

    def refusal(self, *problems: Problem) -> PackError:
        """Return an error with one line for each problem, in the files' order."""
        placed = sorted((*self._place(path), f"{dotted(path)} {text}") for path, text in problems)
        return PackError("\n".join(f"{self.files[at]}:{line}: {text}" for at, line, text in placed))

    def line(self, path: Path) -> int:
        """Return the line of a key, or of the nearest table around it when the key itself is missing."""
        return self._place(path)[1]

    def over(self, base: Document) -> Document:
        """Return this document laid over another: tables merge, whatever else it holds replaces the base's."""
        offset = len(self.files)
        tree, replaced = _merged(self.tree, base.tree, ())
        places = {
            path: (at + offset, line)
            for path, (at, line) in base.places.items()
            if not any(path[:length] in replaced for length in range(1, len(path) + 1))
        }
        return Document(files=self.files + base.files, tree=tree, places={**places, **self.places})

    def without(self, *keys: str) -> Document:
        """Return this document without some of its outermost keys."""
        return Document(
            files=self.files,
            tree={key: value for key, value in self.tree.items() if key not in keys},
            places={path: place for path, place in self.places.items() if path[0] not in keys},
        )

    def _place(self, path: Path) -> Place:
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (0, 1))


def read_document(file: pathlib.Path) -> Document:
    """Read a TOML file. Raises PackError when it cannot be read or is not TOML, with the line."""
    try:
        text = file.read_bytes().decode("utf-8")
        tree = tomllib.loads(text)
    except OSError as exc:
        raise PackError(f"{file}: cannot be read ({exc.strerror}); a pack is a directory with a policy.toml") from exc
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise PackError(f"{file}:{line}: not UTF-8; save the file as UTF-8") from exc
    except tomllib.TOMLDecodeError as exc:
        raise PackError(f"{file}:{_syntax_line(str(exc), text)}: not valid TOML: {exc}") from exc
    except RecursionError as exc:
        raise PackError(f"{file}:1: nested too deeply to be a pack") from exc
    return Document(files=(file,), tree=tree, places={path: (0, line) for path, line in key_lines(text).items()})


def flaws(tree: object, type_: type) -> Iterator[Problem]:
    """Yield every wrong, unknown or missing key of a tree that should become a struct, in the tree's order."""
    return _problems(tree, inspect.type_info(type_), ())


def dotted(path: Path) -> str:
    """Return a path as one would write it: `categories.code.threshold`, `prices[0].model`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = re.fullmatch(r"[A-Za-z0-9_-]+", step)
            text += ("." if text else "") + (step if plain else json.dumps(step))
    return text


def _merged(over: Mapping[str, Any], base: Mapping[str, Any], at: Path) -> tuple[dict[str, Any], set[Path]]:
    """Return both tables as one, the base's keys first, and the paths of the base's values that are gone."""
    tree: dict[str, Any] = dict(base)
    replaced: set[Path] = set()
    for key, value in over.items():
        held = base.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            tree[key], inner = _merged(value, held, (*at, key))
            replaced |= inner
        else:
            tree[key] = value
            replaced.add((*at, key))
    return tree, replaced


def _syntax_line(message: str, text: str) -> int:
    found = re.search(r"\(at line (\d+)", message)
    return int(found.group(1)) if found else text.count("\n") + 1


def _problems(value: object, wanted: inspect.Type, path: Path) -> Iterator[Problem]:
    """Yield what is wrong with a value and all in it: msgspec stops at the first and does not name a table's key."""
    match wanted:
        case inspect.StructType():
            yield from _struct_problems(value, wanted, path)
        case inspect.DictType(value_type=inner):
            if isinstance(value, dict):
                for key, item in value.items():
                    yield from _problems(item, inner, (*path, key))
            else:
                yield path, f"must be a table, got {_shown(value)}"
        case inspect.VarTupleType(item_type=inner):
            if isinstance(value, list):
                for at, item in enumerate(value):
                    yield from _problems(item, inner, (*path, at))
            else:
                yield path, f"must be an array, got {_shown(value)}"
        case _:
            demand = _unmet(value, wanted)
            if demand:
                yield path, f"must be {demand}, got {_shown(value)}"


def _struct_problems(value: object, wanted: inspect.StructType, path: Path) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield path, f"must be a table, got {_shown(value)}"
        return
    fields = {field.encode_name: field for field in wanted.fields}
    for key, item in value.items():
        if key in fields:
            yield from _problems(item, fields[key].type, (*path, key))
        else:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            yield (*path, key), f"is not a known key; {hint}known: {', '.join(fields)}"
    for key, field in fields.items():
        if field.required and key not in value:
            yield (*path, key), "is missing; add it"


def _unmet(value: object, wanted: inspect.Type) -> str:
    """Return what a plain value should have been, or "" when it is that."""
    match wanted:
        case inspect.BoolType():
            return "" if isinstance(value, bool) else "true or false"
        case inspect.LiteralType(values=values):
            return "" if value in values else f"one of {', '.join(map(str, values))}"
        case inspect.StrType(min_length=shortest, max_length=longest):
            if not isinstance(value, str):
                return "text"
            if longest is not None and len(value) > longest:
                return f"text of at most {longest} characters"
            return "" if value.strip() or not shortest else "non-empty text"
        case inspect.IntType() | inspect.FloatType():
            return _unmet_number(value, wanted)
        case _:
            return ""


def _unmet_number(value: object, wanted: inspect.IntType | inspect.FloatType) -> str:
    whole = isinstance(wanted, inspect.IntType)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return "an integer" if whole else "a number"
    if isinstance(value, int) and abs(value) > _GREATEST:
        return f"of at most {len(str(_GREATEST))} digits"
    if not math.isfinite(value):
        return "finite"
    above = (wanted.ge is None or value >= wanted.ge) and (wanted.gt is None or value > wanted.gt)
    below = (wanted.le is None or value <= wanted.le) and (wanted.lt is None or value < wanted.lt)
    return "" if above and below else _range(wanted)


def _range(wanted: inspect.IntType | inspect.FloatType) -> str:
    lower = f"[{wanted.ge:g}" if wanted.ge is not None else f"({wanted.gt:g}" if wanted.gt is not None else "(-inf"
    upper = f"{wanted.le:g}]" if wanted.le is not None else f"{wanted.lt:g})" if wanted.lt is not None else "inf)"
    return f"in {lower}, {upper}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
