"""`cacheproxy replicas`: who shares this proxy's cache, and whether each of them serves what is kept."""

from __future__ import annotations

from typing import Any

import click

from cacheproxy.admin_calls import NOT_BY_ALL, Admin, asks, show_json, show_table

_COLUMNS = ("replica", "state", "lease", "behind", "heard", "up")


@click.command()
@asks
def replicas(admin: Admin, as_json: bool) -> None:
    """List the replicas that share one cache: proxies with the same `store.url` and `store.prefix`.

    \b
    state    serving; syncing: it reads everything again, or cannot reach the engine yet, and the backend answers
             all; gone: not heard of for longer than its lease (one that was stopped is not listed, one that was
             killed for ten minutes)
    lease    for how long it may serve without another word from the engine
    behind   how old what it has applied is against what the farthest replica has
    heard    how long ago the engine heard of it
    up       since when it is there; its name is a new one at each start, and in its `server_started` event
    *        the replica that was asked

    Exit code 0 when all of them serve, 3 while one is syncing, 1 when the engine cannot be asked.

    \b
    Examples:
      cacheproxy replicas
      until cacheproxy replicas; do sleep 1; done     # before the next one is stopped, in a rolling upgrade
      cacheproxy replicas --json | jq '.members[] | select(.state != "serving")'
    """
    found = admin.get("replicas")
    members = found["members"]
    if as_json:
        show_json(found)
    else:
        nothing = "no replicas: this proxy shares its cache with nobody (store.url names none that is shared)"
        show_table((_row(one, found["replica"]) for one in members), _COLUMNS, nothing)
        if found["degraded"]:
            click.echo(f"{found['replica']} is degraded: {found['degraded']}", err=True)
    if any(one["state"] == "syncing" for one in members):
        raise click.exceptions.Exit(NOT_BY_ALL)


def _row(one: dict[str, Any], asked: str) -> dict[str, Any]:
    return {
        "replica": one["replica"] + (" *" if one["replica"] == asked else ""),
        "state": one["state"],
        "lease": span(one["lease_s"]),
        "behind": span(one["behind_s"]),
        "heard": f"{span(one['heard_s'])} ago",
        "up": "" if one["up_s"] is None else span(one["up_s"]),
    }


def span(seconds: float) -> str:
    """Return a span of time as a person reads it: 0.4 s, 12 min, 5 h, 3 d."""
    for unit_s, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
