"""Calls to the admin port of the proxy that runs, and what they answer as tables or JSON."""

from __future__ import annotations

import functools
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cacheproxy import configure, logs
from cacheproxy.errors import CacheProxyError, ConfigError
from cacheproxy.install import running_admin_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_TIMEOUT_S = 150.0
_PLAIN_COLUMNS = 200
_WRONG_USE = frozenset({400, 401, 403, 413, 415, 422})
_PAGE = 500

NOT_BY_ALL = 3
"""Exit code: it is done here, and some replica has not done it, or cannot, yet."""
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only tell what would happen.")


class Refused(CacheProxyError):
    """The proxy understood, and the answer is no: what was named is not there, or has changed meanwhile."""


class Admin:
    """The admin API of one running proxy."""

    def __init__(self, config: Path | None, data_dir: str | None, url: str | None) -> None:
        """Find the proxy that owns the data directory, or take a URL. Raises ConfigError when none runs."""
        loaded = configure.load(config, flags={"data": {"dir": data_dir}} if data_dir else None)
        logs.configure(loaded.log)
        folder = loaded.data.path()
        found = url or running_admin_url(folder)
        if found is None:
            raise ConfigError(
                f"no proxy runs with the data directory {folder}; start it with `cacheproxy serve`, or name another "
                "one with --data-dir or --url"
            )
        if not found.startswith(("http://", "https://")):
            raise ConfigError("--url must be the address of an admin port, as http://127.0.0.1:8081")
        self._url = found.rstrip("/")
        self._token = loaded.admin.token.reveal()
        # The token goes to this one address, never through a proxy that the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self.etag = ""

    def get(self, path: str, **query: object) -> Any:
        """Return what a GET answers."""
        return self.call("GET", path, query=query)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        if_match: str = "",
    ) -> Any:
        """Return the decoded answer, and keep its `etag`; `query` values that are None, empty or False are left out.

        Raises Refused for a no, ConfigError for wrong use.
        """
        told = {name: _told(value) for name, value in (query or {}).items() if value not in (None, "", False)}
        target = f"{self._url}/admin/v1/{path}" + (f"?{urlencode(told)}" if told else "")
        headers = {"x-cacheproxy-actor": "cli"}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        if if_match:
            headers["if-match"] = if_match
        data = None
        if body is not None:
            headers["content-type"] = "application/json"
            data = _encoded(body)
        request = urllib.request.Request(target, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                self.etag = answer.headers.get("etag") or ""
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            message = _message_of(exc)
            if exc.code in _WRONG_USE:
                hint = "; set CACHEPROXY_ADMIN__TOKEN" if exc.code == 401 else ""
                raise ConfigError(f"{message}{hint}") from exc
            raise Refused(message) from exc
        except (OSError, ValueError) as exc:
            raise Refused(f"the proxy at {self._url} did not answer: {exc}") from exc


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing: the token is for one address."""


def asks(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the running proxy as `admin`, and `as_json`."""

    @functools.wraps(command)
    def run(config: Path | None, data_dir: str | None, url: str | None, **rest: Any) -> Any:
        return command(Admin(config, data_dir, url), **rest)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option("--url", metavar="URL", help="Admin port of another proxy.  [default: the one of the data dir]"),
        click.option("--data-dir", metavar="DIR", help="Data directory of the proxy."),
        click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings."),
    ):
        run = option(run)
    return run


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="")


def pages(admin: Admin, path: str, field: str, *, limit: int, **query: object) -> Iterator[dict[str, Any]]:
    """Yield up to `limit` items over as many pages as it takes."""
    cursor, left = "", limit
    while left > 0:
        page = admin.get(path, cursor=cursor, limit=min(left, _PAGE), **query)
        yield from page[field]
        left -= len(page[field])
        cursor = page["next"]
        if cursor is None:
            return


def read_json(file: Path) -> Any:
    """Return the JSON of a file, `-` for stdin. Raises ConfigError."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return msgspec.json.decode(raw)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror})") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file}: not JSON: {exc}") from exc


def show_json(value: object) -> None:
    """Print one JSON object or array."""
    click.echo(json.dumps(value, ensure_ascii=False))


def show_each(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], nothing: str, *, as_json: bool) -> None:
    """Print rows as a JSON object a line, as they come, or as a table."""
    if as_json:
        for row in rows:
            show_json(row)
    else:
        show_table(rows, columns, nothing)


def show_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], nothing: str) -> None:
    """Print rows as a table; what came from callers is shown without what would steer the terminal."""
    listed = list(rows)
    if not listed:
        click.echo(nothing)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for row in listed:
        table.add_row(*(Text(cell(row.get(column))) for column in columns))
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else _PLAIN_COLUMNS, force_terminal=terminal, highlight=False).print(table)


def cell(value: object) -> str:
    """Return a value as one line that a person reads."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
        case list() | tuple():
            return ", ".join(map(cell, value)) or "-"
        case dict():
            return ", ".join(f"{name}={cell(one)}" for name, one in value.items()) or "-"
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def _told(value: object) -> object:
    return "true" if value is True else value


def _encoded(body: object) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, msgspec.MsgspecError, TypeError) as exc:
        raise ConfigError("what is sent must be UTF-8 text") from exc


def _message_of(exc: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(exc.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"the proxy answered {exc.code} {exc.reason}"
