"""Commands that operate the proxy that runs: they wrap its admin API, call for call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cacheproxy.admin_calls import (
    DRY_RUN,
    Admin,
    asks,
    cell,
    pages,
    read_json,
    segment,
    show_each,
    show_json,
    show_table,
)
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_REASON = click.option("--reason", default="", help="Why, for the audit log.")
_IF_MATCH = click.option("--if-match", default="", metavar="ETAG", help="Refuse if another version is in force.")


@click.group()
def policies() -> None:
    """Look at the policy in force, change it while traffic flows, and take changes back.

    \b
    Example:
      cacheproxy policies patch support threshold=0.9 --dry-run
    """


@policies.command()
@asks
@click.argument("category", required=False, default="")
def show(admin: Admin, as_json: bool, category: str) -> None:
    """Show the pack in force as JSON, or one CATEGORY of it. Its version goes to stderr, as --if-match takes it.

    \b
    Examples:
      cacheproxy policies show > pack.json
      cacheproxy policies show support
    """
    found = admin.get(_path(category))
    click.echo(f"etag {admin.etag}", err=True)
    click.echo(json.dumps(found, ensure_ascii=False, indent=None if as_json else 2))


@policies.command()
@asks
@click.argument("category")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE...")
@_REASON
@_IF_MATCH
@DRY_RUN
def patch(admin: Admin, as_json: bool, category: str, changes: tuple[str, ...], **how: Any) -> None:
    """Change keys of a CATEGORY. A VALUE is JSON, or else text; `null` takes a key away.

    \b
    Examples:
      cacheproxy policies patch support threshold=0.92 ttl_s=3600 --reason "false hit in ticket 4711"
      cacheproxy policies patch finance allow_caching=false --dry-run
    """
    body = dict(_change(text) for text in changes)
    _show_change(_changed(admin, "PATCH", _path(category), body, **how), as_json=as_json)


@policies.command()
@asks
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("-c", "--category", default="", help="FILE holds this category only.")
@_REASON
@_IF_MATCH
@DRY_RUN
def put(admin: Admin, as_json: bool, file: Path, category: str, **how: Any) -> None:
    """Put the pack in FILE (JSON as `show` prints it, `-` for stdin) in force, whole.

    \b
    Example:
      cacheproxy policies put pack.json --dry-run
    """
    _show_change(_changed(admin, "PUT", _path(category), read_json(file), **how), as_json=as_json)


@policies.command()
@asks
def versions(admin: Admin, as_json: bool) -> None:
    """List the versions that were in force, newest first.

    \b
    Example:
      cacheproxy policies versions
    """
    found = admin.get("policies/versions")
    columns = ("version", "at", "actor", "action", "reason", "in_force")
    _show_list(found, found["versions"], columns, "no versions", as_json=as_json)


@policies.command()
@asks
@click.argument("version", type=click.IntRange(min=1))
@_REASON
@_IF_MATCH
@DRY_RUN
def rollback(admin: Admin, as_json: bool, version: int, **how: Any) -> None:
    """Put an earlier VERSION in force again, as a new one.

    \b
    Example:
      cacheproxy policies rollback 3
    """
    _show_change(_changed(admin, "POST", "policies/rollback", {"version": version}, **how), as_json=as_json)


@policies.command()
@asks
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def validate(admin: Admin, as_json: bool, file: Path) -> None:
    """Try the pack in FILE (JSON, `-` for stdin) without putting it in force; exit code 1 when something is wrong.

    \b
    Example:
      cacheproxy policies validate pack.json
    """
    found = admin.call("POST", "policies/validate", {"pack": read_json(file)})
    failed = [probe for probe in found["probes"] if not probe["passed"]]
    if as_json:
        show_json(found)
    else:
        for problem in found["problems"]:
            click.echo(f"{problem['key']}: {problem['problem']}", err=True)
        show_table(failed, ("cached", "asked", "expected", "found", "reason", "similarity"), "every probe passes")
        for one in found["changed"]:
            click.echo(f"  {_difference(one)}")
    if found["problems"] or failed:
        raise click.exceptions.Exit(1)


def _path(category: str) -> str:
    """Return where a category's policy is, or the whole pack for ""."""
    return f"policies/categories/{segment(category)}" if category else "policies"


def _changed(
    admin: Admin, method: str, path: str, body: object, *, reason: str, if_match: str, dry_run: bool
) -> dict[str, Any]:
    query = {"reason": reason, "dry_run": dry_run}
    done: dict[str, Any] = admin.call(method, path, body, query=query, if_match=if_match)
    return done


def _change(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ConfigError(f"{text!r} is no change; write KEY=VALUE, as threshold=0.9")
    try:
        return key, msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeEncodeError):
        return key, value


def _show_change(done: dict[str, Any], *, as_json: bool) -> None:
    """Print what a change of policy did, or would do."""
    if as_json:
        show_json(done)
        return
    changed = done.get("changed", done.get("differences", []))
    for one in changed:
        click.echo(f"  {_difference(one)}")
    if done["dropped"]:
        click.echo(f"entries go of: {', '.join(done['dropped'])}")
    in_force = f"version {done['version']} is in force"
    click.echo("dry run: nothing was changed" if done["dry_run"] else in_force if changed else f"no change: {in_force}")


def _difference(one: dict[str, Any]) -> str:
    return f"{one['key']}: {cell(one['before'])} -> {cell(one['after'])}"


@click.command()
@asks
def stats(admin: Admin, as_json: bool) -> None:
    """Show what each category does, and whether caching it pays.

    \b
    Example:
      cacheproxy stats
    """
    found = admin.get("stats")
    if found["degraded"]:
        click.echo(f"degraded: {found['degraded']}", err=True)
    _show_list(found, map(_stats_row, found["categories"]), _STATS, "no categories", as_json=as_json)


_STATS = (
    *("category", "lookups", "hits", "hit_rate", "break_even", "near_misses", "false_hits", "threshold"),
    *("min_probability", "entries", "saved_ms", "saved_usd", "verdict"),
)


def _stats_row(told: dict[str, Any]) -> dict[str, Any]:
    return {**told, **told["total"], "false_hits": told["false_hits"]["rate"]}


@click.command()
@asks
@click.argument("category")
@click.argument("thresholds", nargs=-1, type=click.FloatRange(0, 1, min_open=True))
@click.option(
    *("-p", "--probability", "probabilities"),
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="A least probability, where a verifier decides; may be repeated.",
)
def sweep(
    admin: Admin, as_json: bool, category: str, thresholds: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    """Estimate from logged lookups what other THRESHOLDS, or least probabilities, would have done in a CATEGORY.

    \b
    Examples:
      cacheproxy sweep support -p 0.80 -p 0.90 -p 0.95
      cacheproxy sweep support 0.80 0.85 0.90
    """
    asked = {"thresholds": list(thresholds), "probabilities": list(probabilities)}
    found = admin.call("POST", "sweep", {"category": category, **asked})
    if as_json:
        show_json(found)
        return
    least = found["min_probability"]
    verified = "" if least is None else f", least probability {cell(least)}"
    click.echo(f"{found['lookups']} lookups logged; in force: threshold {cell(found['threshold'])}{verified}")
    rows = [_flat(row) for row in found["swept"]]
    show_table(rows, tuple(rows[0]) if rows else (), "nothing to show")


@click.group(name="near-misses")
def near_misses() -> None:
    """Look at questions that a kept answer nearly served, and say yes.

    \b
    Example:
      cacheproxy near-misses list --category support
    """


@near_misses.command(name="list")
@asks
@click.option("-c", "--category", default="", help="Of this category.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Most shown.")
def list_near_misses(admin: Admin, as_json: bool, category: str, limit: int) -> None:
    """List near misses, the latest first.

    \b
    Example:
      cacheproxy near-misses list --json | jq -r .id
    """
    rows = pages(admin, "near-misses", "near_misses", limit=limit, category=category)
    columns = ("id", "category", "times", "similarity", "threshold", "probability", "text", "entry_text")
    show_each(rows, columns, "no near misses", as_json=as_json)


@near_misses.command()
@asks
@click.argument("near_miss_id", metavar="ID")
@DRY_RUN
def promote(admin: Admin, as_json: bool, near_miss_id: str, dry_run: bool) -> None:
    """Let the entry near to a question answer it from now on.

    \b
    Example:
      cacheproxy near-misses promote 0123456789abcdef01234567
    """
    done = admin.call("POST", f"near-misses/{segment(near_miss_id)}/promote", query={"dry_run": dry_run})
    if as_json:
        show_json(done)
    else:
        click.echo(f"{done['entry']} {'would answer' if dry_run else 'answers'} as {done['source']} does")


@click.group()
def recommendations() -> None:
    """Look at changes of policy that the logged lookups speak for, and make them.

    \b
    Example:
      cacheproxy recommendations list
    """


@recommendations.command(name="list")
@asks
def list_recommendations(admin: Admin, as_json: bool) -> None:
    """List what is recommended now; most often nothing.

    \b
    Example:
      cacheproxy recommendations list
    """
    found = admin.get("recommendations")
    columns = ("id", "kind", "category", "why", "expected")
    _show_list(found, found["recommendations"], columns, "nothing is recommended", as_json=as_json)


@recommendations.command()
@asks
@click.argument("recommendation_id", metavar="ID")
@DRY_RUN
@_IF_MATCH
def apply(admin: Admin, as_json: bool, recommendation_id: str, dry_run: bool, if_match: str) -> None:
    """Change the policy as recommended; `policies rollback` takes it back.

    \b
    Example:
      cacheproxy recommendations apply support-threshold --dry-run
    """
    path = f"recommendations/{segment(recommendation_id)}/apply"
    _show_change(admin.call("POST", path, query={"dry_run": dry_run}, if_match=if_match), as_json=as_json)


@click.command()
@asks
def upstreams(admin: Admin, as_json: bool) -> None:
    """Show the state of every backend.

    \b
    Example:
      cacheproxy upstreams
    """
    found = admin.get("upstreams")
    rows = [_flat(row) for row in found["upstreams"]]
    _show_list(found, rows, tuple(rows[0]) if rows else (), "no backends", as_json=as_json)


@click.command()
@asks
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Most lines shown.")
def audit(admin: Admin, as_json: bool, limit: int) -> None:
    """Show who changed what, the latest first.

    \b
    Example:
      cacheproxy audit --limit 20
    """
    found = admin.get("audit", limit=limit)
    columns = ("n", "at", "actor", "action", "target", "outcome")
    _show_list(found, found["deeds"], columns, "nothing was changed yet", as_json=as_json)


def _show_list(
    found: dict[str, Any], rows: Iterable[dict[str, Any]], columns: Sequence[str], nothing: str, *, as_json: bool
) -> None:
    """Print a whole answer as one JSON object, or the rows of it as a table."""
    if as_json:
        show_json(found)
    else:
        show_table(rows, columns, nothing)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose nested fields are columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    return flat


COMMANDS = (policies, stats, sweep, near_misses, recommendations, upstreams, audit)
