"""Reading the settings: file, environment and flags become one checked tree."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints
from urllib.parse import quote

import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.settings import ENV_PREFIX, NamedUpstream, Secret, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_NAMED = "upstreams."
_FILE = "_file"
_MOST_SECRET_BYTES = 64 * 1024
_NAME = re.compile(r"(?!default$)[a-z0-9]+([_-][a-z0-9]+)*")
_CHOICES = {
    ("access", "mode"): ("pass", "keys"),
    ("index", "vectors"): ("float32", "int8"),
    ("encoder", "device"): ("auto", "cpu", "cuda", "mps"),
    ("encoder", "precision"): ("fp32", "int8"),
    ("federated", "collect"): ("all", "consenting", "none"),
    ("log", "format"): ("json", "text"),
    ("log", "level"): ("debug", "info", "warning", "error"),
    ("small", "form"): ("auto", "block", "turns"),
}


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> Settings:
    """Merge file, environment and flags into one checked tree. Raises ConfigError naming where a bad value is from."""
    tree: dict[str, dict[str, object]] = {}
    origin: dict[tuple[str, str], str] = {}
    for source, layer in (
        (str(file), _read_file(file) if file else {}),
        ("environment", _read_environment(os.environ if environ is None else environ)),
        ("command line", flags or {}),
    ):
        for section, values in _tables(source, layer):
            tree.setdefault(section, {})
            origin[section, ""] = source
            for key, value in values.items():
                tree[section][key] = value
                origin[section, key] = source
    _check_names(tree, origin)
    named = {section: tree.pop(section) for section in [*tree] if section.startswith(_NAMED)}
    try:
        settings = msgspec.convert(tree, Settings, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{_where(str(exc), origin)}: {exc}; see docs/operations.md for every key") from exc
    upstreams = {section.removeprefix(_NAMED): _named(section, table, origin) for section, table in named.items()}
    settings = msgspec.structs.replace(settings, upstreams=upstreams)
    for (section, key), allowed in _CHOICES.items():
        value = getattr(getattr(settings, section), key)
        if value not in allowed:
            where = origin.get((section, key), "default")
            raise ConfigError(f"{where}: {section}.{key} must be one of {', '.join(allowed)}, got {value!r}")
    return _with_password(settings, origin)


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); give an existing TOML file to --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: not valid TOML: {exc}") from exc


def _read_environment(environ: Mapping[str, str]) -> dict[str, dict[str, object]]:
    tree: dict[str, dict[str, object]] = {}
    for name, value in environ.items():
        section, found, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if name.startswith(ENV_PREFIX) and found:
            values = tree.setdefault(section, {})
            if section == "upstreams" and "__" in key:
                of, _, key = key.partition("__")
                inner = values.get(of)
                values[of] = inner = inner if isinstance(inner, dict) else {}
                values = inner
            values[key] = value
    for section, values in tree.items():
        named = values.values() if section == "upstreams" else [values]
        for table in named:
            if isinstance(table, dict):
                _read_secrets(section, table)
    return tree


def _read_secrets(section: str, table: dict[str, object]) -> None:
    """Put the content of the files that `..._FILE` names in the place of a secret; other keys stay as they are."""
    kind = NamedUpstream if section == "upstreams" else type(getattr(Settings(), section, None))
    secrets = [key for key, hint in get_type_hints(kind).items() if hint is Secret]
    for key in secrets:
        file = table.pop(key + _FILE, None)
        if file is None:
            continue
        where = f"environment: {section}.{key}"
        if key in table:
            raise ConfigError(f"{where} is given twice, as itself and by a file; leave one of them out")
        table[key] = _secret_in(Path(str(file)), where)


def _secret_in(file: Path, where: str) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_SECRET_BYTES)
        secret = raw.decode("utf-8").rstrip("\r\n")
    except OSError as exc:
        raise ConfigError(
            f"{where}: {file}: cannot be read ({exc.strerror}); name a file that this user may read"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{where}: {file}: not UTF-8 text") from exc
    if not secret or "\n" in secret or len(raw) == _MOST_SECRET_BYTES:
        raise ConfigError(f"{where}: {file}: must hold the secret, on one line, and nothing else")
    return secret


def _with_password(settings: Settings, origin: Mapping[tuple[str, str], str]) -> Settings:
    """Put `store.password` where clients of an engine expect it: into the address."""
    password = settings.store.password.reveal()
    if not password:
        return settings
    where = f"{origin.get(('store', 'password'), 'settings')}: store.password"
    scheme, found, rest = settings.store.url.partition("://")
    if not found or not scheme.startswith("redis"):
        raise ConfigError(f"{where}: only an engine that is asked over the network has one; give its store.url")
    user, at, hosts = rest.rpartition("@")
    if ":" in user:
        raise ConfigError(f"{where}: store.url holds a password already; leave one of them out")
    url = f"{scheme}://{user}:{quote(password, safe='')}@{hosts if at else rest}"
    return msgspec.structs.replace(settings, store=msgspec.structs.replace(settings.store, url=url))


def _tables(source: str, layer: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield a layer's tables; `[upstreams.NAME]` is one of its own, under that name."""
    for section, values in layer.items():
        if section not in Settings.__struct_fields__:
            raise ConfigError(f"{source}: unknown section {section!r}; known: {', '.join(Settings.__struct_fields__)}")
        tables = {section: values}
        if section == "upstreams" and isinstance(values, dict):
            tables = {_NAMED + name: table for name, table in values.items()}
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigError(f"{source}: {name} must be a table, such as [{name}]")
            if name.startswith(_NAMED) and not _NAME.fullmatch(name.removeprefix(_NAMED)):
                raise ConfigError(
                    f"{source}: {name}: give another name: lower-case letters and digits, joined by single - or _, "
                    "and not `default`, which is [upstream]"
                )
            yield name, table


def _named(section: str, table: dict[str, object], origin: Mapping[tuple[str, str], str]) -> NamedUpstream:
    models = table.get("models")
    if isinstance(models, str):
        table = {**table, "models": [model.strip() for model in models.split(",") if model.strip()]}
    try:
        return msgspec.convert(table, NamedUpstream, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as exc:
        told = str(exc).replace("`$.", f"`$.{section}.")
        where = _where(told, origin) if "`$." in told else origin[section, ""]
        raise ConfigError(f"{where}: {section}: {told}; see docs/operations.md for every key") from exc


def _check_names(tree: Mapping[str, Mapping[str, object]], origin: Mapping[tuple[str, str], str]) -> None:
    for section, values in tree.items():
        if section == "aliases":
            _check_aliases(values, origin)
            continue
        kind = NamedUpstream if section.startswith(_NAMED) else type(getattr(Settings(), section))
        known: tuple[str, ...] = kind.__struct_fields__
        for key in values:
            if key not in known:
                where = origin[section, key]
                raise ConfigError(f"{where}: unknown key {section}.{key}; known: {', '.join(known)}")


def _check_aliases(aliases: Mapping[str, object], origin: Mapping[tuple[str, str], str]) -> None:
    for alias, model in aliases.items():
        if not alias or not isinstance(model, str) or not model:
            raise ConfigError(f"{origin['aliases', alias]}: aliases.{alias} must be the name of a model, as text")


def _where(problem: str, origin: Mapping[tuple[str, str], str]) -> str:
    path = re.search(r"`\$\.([\w.-]+)\.(\w+)", problem)
    return origin.get((path[1], path[2]), "settings") if path else "settings"


def _decode_secret(type_: type, value: object) -> object:
    if type_ is not Secret:
        raise NotImplementedError(type_)
    if not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)
