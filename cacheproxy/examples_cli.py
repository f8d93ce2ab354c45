"""Commands for the small model: its examples, and who answers misses. They wrap the running proxy's admin API."""

from __future__ import annotations

from typing import Any

import click

from cacheproxy.admin_calls import DRY_RUN, Admin, asks, cell, pages, segment, show_each, show_json, show_table

_IF_MATCH = click.option("--if-match", default="", metavar="ETAG", help="Refuse if it was marked or answered anew.")


@click.group()
def examples() -> None:
    """Look at the past answers that a small model learns from, and mark them one by one.

    \b
    Example:
      cacheproxy examples list --category support
    """


@examples.command(name="list")
@asks
@click.option("-c", "--category", default="", help="Of this category.")
@click.option("--tenant", default="", metavar="LABEL|HEX", help="Of this tenant.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Most shown.")
def list_examples(admin: Admin, as_json: bool, category: str, tenant: str, limit: int) -> None:
    """List what is known of examples, by the ids of their entries.

    \b
    Examples:
      cacheproxy examples list --limit 20
      cacheproxy examples list --json | jq 'select(.quality < 0.4).entry'
    """
    found = pages(admin, "examples", "examples", limit=limit, category=category, tenant=tenant)
    columns = ("entry", "category", "quality", "words", "offloads", "uses", "replays", "pinned", "quarantined", "text")
    show_each(found, columns, "no examples", as_json=as_json)


@examples.command(name="show")
@asks
@click.argument("entry_id", metavar="ID")
def show_example(admin: Admin, as_json: bool, entry_id: str) -> None:
    """Show one example, and why it is none if so. Its version goes to stderr, as --if-match takes it.

    \b
    Example:
      cacheproxy examples show 0123456789abcdef0123456789abcdef
    """
    found = admin.get(f"examples/{segment(entry_id)}")
    click.echo(f"etag {admin.etag}", err=True)
    if as_json:
        show_json(found)
        return
    for name, value in {**found["example"], "refusal": found["refusal"], "recorded": found["recorded"]}.items():
        click.echo(f"{name:<12}{cell(value)}")


@examples.command()
@asks
@click.argument("entry_id", metavar="ID")
@click.option("--undo", is_flag=True, help="Take the mark away.")
@DRY_RUN
@_IF_MATCH
def pin(admin: Admin, as_json: bool, entry_id: str, undo: bool, dry_run: bool, if_match: str) -> None:
    """Keep an example before all others, and vouch for its answer.

    \b
    Example:
      cacheproxy examples pin 0123456789abcdef0123456789abcdef
    """
    _mark(admin, entry_id, {"pinned": not undo}, as_json=as_json, dry_run=dry_run, if_match=if_match)


@examples.command()
@asks
@click.argument("entry_id", metavar="ID")
@click.option("--undo", is_flag=True, help="Lift the quarantine.")
@DRY_RUN
@_IF_MATCH
def quarantine(admin: Admin, as_json: bool, entry_id: str, undo: bool, dry_run: bool, if_match: str) -> None:
    """Keep an answer out of every prompt, until that is undone. It is served from the cache as before.

    \b
    Example:
      cacheproxy examples quarantine 0123456789abcdef0123456789abcdef
    """
    _mark(admin, entry_id, {"quarantined": not undo}, as_json=as_json, dry_run=dry_run, if_match=if_match)


def _mark(admin: Admin, entry_id: str, marks: dict[str, bool], *, as_json: bool, dry_run: bool, if_match: str) -> None:
    path = f"examples/{segment(entry_id)}"
    done = admin.call("PATCH", path, marks, query={"dry_run": dry_run}, if_match=if_match)
    if as_json:
        show_json(done)
        return
    marked = [name for name in ("pinned", "quarantined") if done[name]] or ["not marked"]
    click.echo(f"{entry_id} {'would be' if dry_run else 'is'} {' and '.join(marked)}")


@click.command()
@asks
@click.option("-c", "--category", default="", help="Only this category.")
def routing(admin: Admin, as_json: bool, category: str) -> None:
    """Show who answers misses, by category: how good each arm is thought to be, and what that saved.

    \b
    Examples:
      cacheproxy routing
      cacheproxy routing --category support --json | jq '.categories[0].gains'
    """
    found = admin.get("routing")
    found["categories"] = [one for one in found["categories"] if category in ("", one["category"])]
    if as_json:
        show_json(found)
        return
    tried = f"an arm that is not known is tried at {found['explored']:.0%} of the questions"
    click.echo(f"small model {cell(found['small_model'])}; {tried}")
    show_table([row for one in found["categories"] for row in _rows(one)], _ARMS, "no categories")


_ARMS = (
    *("category", "theta", "arm", "answers", "quality", "interval", "words", "known", "reliability"),
    *("price", "score", "median_s", "failures", "regret"),
)


def _rows(told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each arm of a category; where the small model may not answer there is nothing to tell."""
    if not told["allowed"]:
        return []
    offloads = told["offloads"]
    of_all = {"category": told["category"], "theta": told["theta"], "regret": offloads["regret"]}
    failed = {"failures": sum(offloads["failures"].values())}
    return [
        {
            **(of_all | failed if at == 0 else {}),
            **arm,
            "answers": offloads["answers"].get(arm["arm"], 0),
            "quality": arm["quality"]["estimate"],
            "interval": f"{arm['quality']['low']:.2f} to {arm['quality']['high']:.2f}",
            "words": arm["quality"]["rewards"],
        }
        for at, arm in enumerate(told["arms"])
    ]


COMMANDS = (examples, routing)
