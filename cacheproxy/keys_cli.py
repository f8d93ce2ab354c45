"""`cacheproxy keys`: make, list, change and revoke virtual keys. A running proxy takes changes up within a second.

Where `store.url` names an engine, the keys are those of all replicas, and all of them take changes up.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import msgspec

from cacheproxy import configure, logs
from cacheproxy.access.keeper import keys_path, read_spent
from cacheproxy.access.keyfile import change_keys, read_keys
from cacheproxy.access.keyring import KeyRecord, key_digest, new_id, new_key
from cacheproxy.errors import ConfigError
from cacheproxy.install import install_secret, open_data_dir
from cacheproxy.shared.address import is_shared

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import date

    from cacheproxy.keydesk import KeyDesk

_COUNT = click.IntRange(min=1)
_USD = click.FloatRange(min=0, min_open=True)
_LIMITS = (
    ("--rpm", "requests_per_minute", _COUNT, "Requests a minute; cache hits count, too."),
    ("--tpm", "tokens_per_minute", _COUNT, "Tokens a minute, of the backend's answers; a cache hit costs none."),
    ("--tokens-per-day", "tokens_per_day", _COUNT, "Tokens a day (UTC), counted alike."),
    ("--answer-ms", "answer_ms", _COUNT, "How long an answer should take, where a small model may give it."),
    ("--answer-usd", "answer_usd", _USD, "What it should cost; whoever most probably keeps both answers."),
)


class _Place:
    """Where the keys are, and the secret they are hashed under: a file, or the engine that replicas share."""

    def __init__(self, config: Path | None, data_dir: str | None) -> None:
        loaded = configure.load(config, flags={"data": {"dir": data_dir}} if data_dir else None)
        quiet = msgspec.structs.replace(loaded.log, level="warning") if loaded.log.level == "info" else loaded.log
        logs.configure(quiet)
        folder = open_data_dir(loaded)
        self.path = keys_path(loaded, folder)
        self.in_force = loaded.access.mode == "keys"
        self._desk: KeyDesk | None = None
        if is_shared(loaded.store.url):
            from cacheproxy.keydesk import KeyDesk  # it loads the engine's client

            self._desk = KeyDesk(loaded, folder)
        self.secret = install_secret(folder) if self._desk is None else self._desk.secret

    def __str__(self) -> str:
        return "the engine that replicas share" if self._desk else str(self.path)

    def change(self, change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> None:
        if self._desk is None:
            change_keys(self.path, self.secret, change)
        else:
            self._desk.change(change)

    def read(self) -> list[KeyRecord]:
        return read_keys(self.path, self.secret) if self._desk is None else self._desk.read()

    def used(self, today: date) -> dict[str, int]:
        """Return the tokens of the day by key."""
        if self._desk is not None:
            return self._desk.used()
        spent = read_spent(self.path)
        return spent.tokens if spent is not None and spent.day == today else {}


def _placed(command: Callable[..., Any]) -> Callable[..., Any]:
    config = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings.")
    return config(click.option("--data-dir", metavar="DIR", help="Data directory of the proxy.")(command))


def _limited(command: Callable[..., Any]) -> Callable[..., Any]:
    for option, name, kind, text in reversed(_LIMITS):
        command = click.option(option, name, type=kind, metavar="N", help=text)(command)
    return command


@click.group()
def keys() -> None:
    """Virtual keys: callers send a key of this proxy, and never see the backend's.

    \b
    Start to end:
      cacheproxy keys new webshop --model 'gpt-4o*' --rpm 60      # prints the key, once
      CACHEPROXY_ACCESS__MODE=keys CACHEPROXY_UPSTREAM__API_KEY=sk-... cacheproxy serve
      OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="sk-cp-...")

    Keys with the same tenant share cached answers, others never do. To rotate a key, make one with the same --tenant,
    move the clients, revoke the old one: the cache stays warm. Only a hash of a key is kept.
    """


@keys.command()
@_placed
@click.argument("name")
@click.option("--tenant", metavar="LABEL", help="Whose cached answers it shares.  [default: NAME, if no key has it]")
@click.option("--model", "models", multiple=True, metavar="PATTERN", help="Allowed model, as gpt-4o*; may be repeated.")
@_limited
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Last day it works (UTC).")
@click.option("--train", is_flag=True, help="Its callers let a similarity model be trained on what they ask.")
@click.option(
    "--upstream-key-env", default="", metavar="VAR", help="Variable, set where the proxy runs, with its backend key."
)
def new(
    config: Path | None,
    data_dir: str | None,
    name: str,
    tenant: str | None,
    models: tuple[str, ...],
    expires: datetime | None,
    train: bool,
    upstream_key_env: str,
    **limits: float | None,
) -> None:
    """Make a key called NAME and print it. It cannot be shown again.

    \b
    Examples:
      cacheproxy keys new webshop
      cacheproxy keys new intern --model 'gpt-4o-mini*' --rpm 20 --tokens-per-day 200000 --expires 2030-12-31
      cacheproxy keys new webshop-2 --tenant webshop            # rotate: same tenant, same cached answers
    """
    place, made = _Place(config, data_dir), new_key()

    def add(records: list[KeyRecord]) -> list[KeyRecord]:
        if tenant is None and any(record.tenant == name for record in records):
            raise ConfigError(
                f"another key has the tenant {name!r}; give --tenant {name} to share its answers, or another name"
            )
        record = {
            "id": new_id({record.id for record in records}),
            "name": name,
            "hash": key_digest(made.encode(), place.secret).hex(),
            "tenant": tenant or name,
            "models": models,
            "expires": expires.date() if expires else None,
            "train": train,
            "upstream_key_env": upstream_key_env,
            **limits,
        }
        try:
            return [*records, msgspec.convert(record, KeyRecord)]
        except msgspec.ValidationError as exc:
            raise ConfigError(f"this key cannot be made: {exc}") from exc

    place.change(add)
    click.echo(made)
    click.echo(_next_step(place, upstream_key_env), err=True)


@keys.command(name="list")
@_placed
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def list_keys(config: Path | None, data_dir: str | None, as_json: bool) -> None:
    """Show every key: id, name, tenant, models, limits, tokens of today, state. Never the keys or their hashes.

    \b
    Examples:
      cacheproxy keys list
      cacheproxy keys list --json | jq -r 'select(.state == "active").id'
    """
    place = _Place(config, data_dir)
    records, today = place.read(), datetime.now(UTC).date()
    used = place.used(today)
    rows = [_row(record, used.get(record.id, 0), today) for record in records]
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row).decode())
    else:
        click.echo(_table(rows))


@keys.command()
@_placed
@_limited
@click.argument("key_id", metavar="ID")
@click.option("--none", "none", is_flag=True, help="Take away every limit that is not given here.")
@click.option(
    "--train/--no-train", default=None, help="Whether a similarity model may be trained on what is asked from now on."
)
def limit(
    config: Path | None, data_dir: str | None, key_id: str, none: bool, train: bool | None, **limits: float | None
) -> None:
    """Change what the key ID may use; limits not given stay as they are.

    Without consent (--no-train) nothing new is trained on; what was collected goes by `cacheproxy purge --erase`.

    \b
    Examples:
      cacheproxy keys limit k1a2b3c4d --rpm 120
      cacheproxy keys limit k1a2b3c4d --none            # no limits any more
      cacheproxy keys limit k1a2b3c4d --no-train
    """
    if not none and train is None and not any(limits.values()):
        raise ConfigError(
            "nothing to change; give --rpm, --tpm, --tokens-per-day, --answer-ms, --answer-usd, --none, --train or "
            "--no-train"
        )
    given: dict[str, object] = {name: value for name, value in limits.items() if none or value is not None}
    if train is not None:
        given["train"] = train
    _change_one(_Place(config, data_dir), key_id, lambda record: msgspec.structs.replace(record, **given))
    click.echo(f"{key_id}: limits changed")


@keys.command()
@_placed
@click.argument("key_id", metavar="ID")
def revoke(config: Path | None, data_dir: str | None, key_id: str) -> None:
    """Refuse the key ID from now on, for good; a running proxy does so within a second.

    Answers under way are finished. Exit code 1 when no key has this id.

    \b
    Example:
      cacheproxy keys revoke k1a2b3c4d
    """
    _change_one(_Place(config, data_dir), key_id, lambda record: msgspec.structs.replace(record, revoked=True))
    click.echo(f"{key_id}: revoked")


def _change_one(place: _Place, key_id: str, change: Callable[[KeyRecord], KeyRecord]) -> None:
    def each(records: list[KeyRecord]) -> list[KeyRecord]:
        if all(record.id != key_id for record in records):
            _no_such_key(place, key_id)
        return [change(record) if record.id == key_id else record for record in records]

    place.change(each)


def _no_such_key(place: _Place, key_id: str) -> NoReturn:
    click.echo(f"cacheproxy: no key has the id {key_id!r} in {place}; `cacheproxy keys list` shows them", err=True)
    raise click.exceptions.Exit(1)


def _next_step(place: _Place, upstream_key_env: str) -> str:
    lines = [f"kept in {place}, as a hash only: copy the key now, it cannot be shown again"]
    if upstream_key_env:
        lines.append(f"set {upstream_key_env} where the proxy runs before it reads this file")
    if place.in_force:
        lines.append("a running proxy knows it within a second")
    else:
        lines.append(
            "unless your proxy is set up so already: set access.mode to `keys` (CACHEPROXY_ACCESS__MODE=keys), give "
            "the backend's own key as upstream.api_key (CACHEPROXY_UPSTREAM__API_KEY), and restart the proxy"
        )
    lines.append('clients use it as any API key: OpenAI(base_url="http://127.0.0.1:8080/v1", api_key=...)')
    return "\n".join(lines)


def _row(record: KeyRecord, used: int, today: date) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "tenant": record.tenant,
        "models": list(record.models),
        "rpm": record.requests_per_minute,
        "tpm": record.tokens_per_minute,
        "tokens_per_day": record.tokens_per_day,
        "answer_ms": record.answer_ms,
        "answer_usd": record.answer_usd,
        "today": used,
        "expires": record.expires,
        "train": record.train,
        "state": record.state(today),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no keys"
    shown = [
        {name: ", ".join(value) or "all" if isinstance(value, list) else _cell(value) for name, value in row.items()}
        for row in rows
    ]
    widths = {name: max(len(name), *(len(row[name]) for row in shown)) for name in shown[0]}
    lines = [{name: name for name in widths}, *shown]
    return "\n".join("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip() for row in lines)


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    return "-" if value is None else str(value)
