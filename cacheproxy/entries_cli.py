"""Commands for what is kept: look at it, remove it, fill it. They wrap the admin API of the proxy that runs."""

from __future__ import annotations

import re
import time
from itertools import count
from typing import IO, TYPE_CHECKING, Any

import click
import msgspec

from cacheproxy.admin_calls import DRY_RUN, NOT_BY_ALL, Admin, asks, cell, pages, segment, show_each, show_json
from cacheproxy.errors import ConfigError, RequestError
from cacheproxy.evaluate.progress import progress
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return the seconds of a time span, as 90, 15m, 12h, 7d. Raises BadParameter."""
    if value is None:
        return None
    found = _SPAN.fullmatch(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time span; write 90, 15m, 12h, 7d or 2w")
    return float(found[1]) * _SECONDS[found[2] or "s"]


@click.group()
def entries() -> None:
    """Look at kept answers, and remove them one by one.

    \b
    Example:
      cacheproxy entries list --category support --q password
    """


@entries.command(name="list")
@asks
@click.option("-c", "--category", default="", help="Of this category, or with it as the second one.")
@click.option("--q", default="", metavar="WORDS", help="With these words in the question.")
@click.option("--tag", default="", help="With this tag.")
@click.option("--tenant", default="", metavar="LABEL|HEX", help="Of this tenant.")
@click.option("--namespace", default="", help="Of this namespace.")
@click.option("--model", default="", help="Asked of this model.")
@click.option("--user", default="", metavar="NAME", help="Of this end user, as request bodies name it.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most entries shown.")
def list_entries(admin: Admin, as_json: bool, limit: int, **chosen: str) -> None:
    """List kept answers, oldest first.

    \b
    Examples:
      cacheproxy entries list --limit 20
      cacheproxy entries list --tenant webshop --json | jq -r .id
    """
    found = pages(admin, "entries", "entries", limit=limit, **chosen)
    columns = ("id", "category", "model", "dialect", "tags", "size_bytes", "has_vector", "text")
    show_each(found, columns, "no entries", as_json=as_json)


@entries.command(name="show")
@asks
@click.argument("entry_id", metavar="ID")
def show_entry(admin: Admin, as_json: bool, entry_id: str) -> None:
    """Show one entry with its question and its answer.

    \b
    Example:
      cacheproxy entries show 0123456789abcdef0123456789abcdef
    """
    found = admin.get(f"entries/{segment(entry_id)}")
    if as_json:
        show_json(found)
        return
    for name, value in {**found["entry"], "text": found["text"]}.items():
        click.echo(f"{name:<12}{cell(value)}")
    click.echo(f"{'answer':<12}{msgspec.json.encode(found['answer']).decode()}")


@entries.command(name="delete")
@asks
@click.argument("entry_id", metavar="ID")
@DRY_RUN
def delete_entry(admin: Admin, as_json: bool, entry_id: str, dry_run: bool) -> None:
    """Remove one entry: nobody is served from it any more. Exit code 1 when there is none, 3 as `purge`.

    \b
    Example:
      cacheproxy entries delete 0123456789abcdef0123456789abcdef
    """
    done = admin.call("DELETE", f"entries/{segment(entry_id)}", query={"dry_run": dry_run})
    _show_purged(done, as_json=as_json)
    _end_as(done)


@entries.command(name="share")
@asks
@click.argument("entry_id", metavar="ID")
@DRY_RUN
def share_entry(admin: Admin, as_json: bool, entry_id: str, dry_run: bool) -> None:
    """Let all tenants with virtual keys have this entry's answer to the very same request, until it expires.

    Exit code 1 where it may not be shared.

    \b
    Example:
      cacheproxy entries share 0123456789abcdef0123456789abcdef
    """
    done = admin.call("POST", f"entries/{segment(entry_id)}/share", query={"dry_run": dry_run})
    if as_json:
        show_json(done)
        return
    click.echo(f"{entry_id} {'would be' if dry_run else 'is'} shared as {done['entry']}")


@click.command()
@asks
@click.option("--id", "ids", multiple=True, metavar="ID", help="This entry; may be repeated.")
@click.option("--tag", help="Entries with this tag.")
@click.option("-c", "--category", help="Of this category.")
@click.option("--namespace", help="Of this namespace.")
@click.option("--tenant", metavar="LABEL|HEX", help="Of this tenant, and all that is remembered of it.")
@click.option("--user", metavar="NAME", help="Of this end user, and all that is remembered of it.")
@click.option("--model", help="Asked of this model.")
@click.option(
    "--older-than", callback=_seconds, metavar="SPAN", help="Answered longer ago than this: 90, 15m, 12h, 7d."
)
@click.option("--similar-to", metavar="TEXT", help="Questions like this one, within --radius.")
@click.option("--radius", type=click.FloatRange(0, 1), help="Cosine distance: 0.1 means a similarity of 0.9 or more.")
@click.option("--descendants", is_flag=True, help="Also remove what was made of them: promoted and shared entries.")
@click.option("--erase", is_flag=True, help="Also remove what else is remembered of these entries.")
@DRY_RUN
def purge(
    admin: Admin, as_json: bool, similar_to: str | None, radius: float | None, ids: tuple[str, ...], **chosen: Any
) -> None:
    """Remove entries for which all that is given holds.

    Exit code 1 while a part of it is still to be done, and it goes on by itself; 3 when it is done here, and some
    replica has not said so: it serves none of it once the time that is told is over.

    With --tenant or --user everything remembered of them goes, too: verdicts, logged lookups, near misses, snapshots.

    \b
    Examples:
      cacheproxy purge --category news --older-than 12h
      cacheproxy purge --similar-to "What does the Pro plan cost?" --radius 0.1 --dry-run
      cacheproxy purge --tenant webshop --user alice@example.com
    """
    body = {name: value for name, value in chosen.items() if value is not None and value is not False}
    if ids:
        body["ids"] = list(ids)
    if (similar_to is None) != (radius is None):
        raise ConfigError("--similar-to and --radius go together")
    if similar_to is not None:
        body["similar_to"] = {"text": similar_to, "radius": radius}
    done = admin.call("POST", "purge", body)
    _show_purged(done, as_json=as_json)
    _end_as(done)


def _show_purged(done: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(done)
        return
    many = done["purged"]
    click.echo(f"{many} {'entry' if many == 1 else 'entries'} {'would go' if done['dry_run'] else 'removed'}")
    for entry_id in done["ids"]:
        click.echo(f"  {entry_id}")
    if many > len(done["ids"]):
        click.echo(f"  and {many - len(done['ids'])} more")
    for part in done["parts"]:
        if part["pending"]:
            click.echo(f"not done yet: {part['part']} ({part['pending']}); it is tried again until it is", err=True)
    left_s = max(0.0, done["until_s"] - time.time())
    for name in done["laggards"]:
        click.echo(f"not heard from yet: {name}; it serves none of it after {left_s:.1f} s", err=True)


def _end_as(done: dict[str, Any]) -> None:
    """End with the exit code that a removal deserves."""
    if any(part["pending"] for part in done["parts"]):
        raise click.exceptions.Exit(1)
    if done["laggards"]:
        raise click.exceptions.Exit(NOT_BY_ALL)


_BATCH_ITEMS = 64
_BATCH_BYTES = 2 * 1024 * 1024
_MAX_LINE_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 60
_MOST_COMPLAINTS = 20


@click.command()
@asks
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--tenant", default="", metavar="LABEL|HEX", help="Of items that name neither tenant nor key.")
@click.option("--key", default="", envvar="CACHEPROXY_WARM_KEY", help="The same by a caller's key.")
@DRY_RUN
def warm(admin: Admin, as_json: bool, file: str, tenant: str, key: str, dry_run: bool) -> None:
    """Keep the answers in FILE (JSON lines, `-` for stdin), each judged as the backend's own would be.

    Exit code 1 when some were not kept. Running it again is safe: an answer replaces the one before it.

    \b
    {"text": "How do I reset my password?", "model": "gpt-4o-mini", "answer": "Use the link.", "tenant": "webshop"}
    {"messages": [...], "model": "gpt-4o-mini", "answer": "...", "category": "support", "ttl": 3600, "tags": ["v2"]}
    {"request": {...}, "answer": {...whole body...}, "key": "sk-..."}

    \b
    Examples:
      cacheproxy warm answers.jsonl --tenant webshop --dry-run
      cacheproxy warm answers.jsonl --tenant webshop
    """
    told = _Told(as_json=as_json)
    with click.open_file(file, "rb") as source, progress("warming", _lines_of(source)) as advance:
        for lines in _batches(source, told):
            body = {"items": [item for _, item in lines], "tenant": tenant, "key": key, "dry_run": dry_run}
            report = admin.call("POST", "warm", body)
            for (number, _), item in zip(lines, report["items"], strict=True):
                told.one(number, item)
            advance(len(lines))
    told.end(dry_run=dry_run)


class _Told:
    """What became of the lines, counted and told."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._counts = dict.fromkeys(("stored", "refused", "invalid", "failed"), 0)
        self._complaints = 0

    def one(self, number: int, item: dict[str, Any]) -> None:
        """Tell of one line."""
        self._counts[item["outcome"]] += 1
        if self._as_json:
            show_json({"line": number, **item})
        elif item["outcome"] != "stored" and self._complaints < _MOST_COMPLAINTS:
            self._complaints += 1
            click.echo(f"line {number}: {item['outcome']}: {cell(item['reason'])}", err=True)

    def end(self, *, dry_run: bool) -> None:
        """Tell of all; end with 1 when some were not kept."""
        if not self._as_json:
            counted = ", ".join(f"{many} {name}" for name, many in self._counts.items())
            click.echo(f"{counted}{' (dry run)' if dry_run else ''}")
        if self._counts["stored"] < sum(self._counts.values()):
            raise click.exceptions.Exit(1)


def _lines_of(file: IO[bytes]) -> int:
    """Return how many lines a file has, at least 1; of a pipe nobody knows."""
    if not file.seekable():
        return 1
    lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    file.seek(0)
    return max(1, lines)


def _batches(file: IO[bytes], told: _Told) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """Yield numbered items, as many at once as the proxy takes; a line that holds none is told and left out."""
    batch: list[tuple[int, dict[str, Any]]] = []
    size = 0
    for number in count(1):
        line = file.readline(_MAX_LINE_BYTES)
        if not line:
            break
        item = _item_of(file, line)
        if isinstance(item, str):
            if item:
                told.one(number, {"outcome": "invalid", "reason": item})
            continue
        if batch and (size + len(line) > _BATCH_BYTES or len(batch) == _BATCH_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append((number, item))
        size += len(line)
    if batch:
        yield batch


def _item_of(file: IO[bytes], line: bytes) -> dict[str, Any] | str:
    """Return the item of a line, or why it is none; "" for a blank line."""
    if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
        while (rest := file.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        return "longer than 4 MiB"
    if not line.strip():
        return ""
    try:
        return decode(line, _MAX_DEPTH)
    except RequestError as exc:
        return exc.message.replace("the request body", "the line")


COMMANDS = (entries, purge, warm)
