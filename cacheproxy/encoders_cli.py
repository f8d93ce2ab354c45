"""Commands that change the similarity head of a running proxy. They wrap its admin API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cacheproxy.admin_calls import DRY_RUN, Admin, Refused, asks, cell, show_json
from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_S = 0.5
_WAIT = click.option("--wait/--no-wait", default=True, help="Wait until it serves.  [default: wait]")


@click.command()
@asks
@click.argument("head", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Let it serve even if this proxy's own pairs speak against it.")
@_WAIT
@DRY_RUN
def promote(admin: Admin, as_json: bool, head: Path, force: bool, wait: bool, dry_run: bool) -> None:
    """Let a trained similarity head serve, if it is better on this proxy's own pairs.

    HEAD is a folder with a manifest and its weights, as `federated serve` and `federated simulate` write it, of any
    mode: where the encoder's own layers were trained, texts are encoded to examine it, and then all that is kept, which
    takes its time. Requests go on meanwhile; `federated rollback` goes back. Exit code 1: it does not pass.

    \b
    Examples:
      cacheproxy federated promote run/final --dry-run
      cacheproxy federated promote run/final
    """
    from cacheproxy.embed.headfile import MANIFEST, WEIGHTS, parsed  # numpy: not for who asks for help only

    try:
        manifest, weights = (head / MANIFEST).read_bytes(), (head / WEIGHTS).read_bytes()
    except OSError as exc:
        raise ConfigError(f"{head}: cannot be read ({exc.strerror}); give the folder of a trained head") from exc
    body = {"promote": {"manifest": parsed(manifest, str(head / MANIFEST)), "weights": weights}, "force": force}
    done = admin.call("POST", "encoders", body, query={"dry_run": dry_run})
    if done["examining"]:
        if not wait:
            show_json(done) if as_json else click.echo(f"{done['epoch']} is being examined: see GET /admin/v1/encoders")
            return
        done = _await_verdict(admin, done["epoch"])
    if not as_json:
        _show(done["examined"])
    passed = not done["examined"]["problems"]
    if not (done["began"] or (dry_run and passed)):
        if as_json:
            show_json(done)
        raise Refused("the head was not promoted: " + "; ".join(done["examined"]["problems"]))
    _finish(admin, done, wait=wait, as_json=as_json)


@click.command()
@asks
@_WAIT
@DRY_RUN
def rollback(admin: Admin, as_json: bool, wait: bool, dry_run: bool) -> None:
    """Go back to the similarity head that served before, or to the encoder alone.

    \b
    Example:
      cacheproxy federated rollback
    """
    done = admin.call("POST", "encoders", {"rollback": True}, query={"dry_run": dry_run})
    _finish(admin, done, wait=wait, as_json=as_json, back=True)


@click.command()
@asks
@DRY_RUN
def cancel(admin: Admin, as_json: bool, dry_run: bool) -> None:
    """Stop a promotion or a way back that is under way; what serves now goes on serving.

    What was made of kept texts for it is deleted: promoting it again begins anew. Exit code 1: nothing is on its way.

    \b
    Example:
      cacheproxy federated cancel
    """
    done = admin.call("POST", "encoders", {"cancel": True}, query={"dry_run": dry_run})
    if not dry_run:
        while admin.get("encoders")["progress"]["step"] in {"examining", "filling"}:
            time.sleep(_POLL_S)
    if as_json:
        show_json(done)
        return
    click.echo(f"{done['epoch']} {'would be' if dry_run else 'was'} stopped")


def _finish(admin: Admin, done: Mapping[str, Any], *, wait: bool, as_json: bool, back: bool = False) -> None:
    if done["began"] and wait:
        done = {**done, "epoch": _await(admin, done["epoch"], back=back)}
    if as_json:
        show_json(done)
        return
    says = "serves" if done["began"] and wait else "is on its way" if done["began"] else "would serve"
    click.echo(f"{done['epoch']} {says}")


def _await_verdict(admin: Admin, epoch: str) -> Mapping[str, Any]:
    """Return what came of an encoder that is examined, showing how far it is. Raises Refused where nothing did."""
    click.echo("exporting the encoder, if it is a new one, to examine it", err=True)
    told = _while_exporting(admin, epoch)
    total = max(1, told["progress"]["total"])
    with progress("encoding the texts of held-back pairs", total) as advance:
        seen = 0
        while (way := told["progress"])["step"] == "examining" and way["epoch"] == epoch:
            done = min(total, way["done"])
            advance(done - seen)
            seen = done
            time.sleep(_POLL_S)
            told = admin.get("encoders")
    last: Mapping[str, Any] | None = told["last"]
    if last is None or last["epoch"] != epoch:
        raise Refused(f"{epoch}: {way['problem'] or 'another one took its place; see GET /admin/v1/encoders'}")
    return last


def _while_exporting(admin: Admin, epoch: str) -> Mapping[str, Any]:
    while True:
        told: Mapping[str, Any] = admin.get("encoders")
        way = told["progress"]
        if way["step"] != "examining" or way["epoch"] != epoch or way["total"]:
            return told
        time.sleep(_POLL_S)


def _await(admin: Admin, epoch: str, *, back: bool = False) -> str:
    """Return the epoch that serves in the end, showing how far it is. Raises Refused where it does not come to that.

    On the way `back` that may be an earlier one: what cannot be opened any more is passed over.
    """
    total = max(1, admin.get("encoders")["progress"]["total"])
    with progress("making vectors of what is kept", total) as advance:
        seen = 0
        while True:
            told = admin.get("encoders")
            way, searched = told["progress"], str(told["in_use"]["searched"])
            serves = searched == epoch
            done = total if serves else min(total, way["done"])
            advance(done - seen)
            seen = done
            if not way["step"] and (serves or back):  # written down, too
                return searched
            if way["step"] != "filling" or (way["epoch"] != epoch and not back):
                raise Refused(f"{epoch}: {way['problem'] or 'another one took its place; see GET /admin/v1/encoders'}")
            time.sleep(_POLL_S)


def _show(examined: Mapping[str, Any]) -> None:
    click.echo(f"{examined['pairs']} labelled pairs held back here")
    for name in ("precision", "recall", "f05", "hit_rate"):
        before, after = (examined[when].get(name) for when in ("before", "after"))
        click.echo(f"{name:<12}{cell(before):>8} -> {cell(after)}")
    if examined["gain"] is not None:
        click.echo(f"{'F0.5':<12}{examined['gain']:+.3f} [{examined['low']:+.3f}, {examined['high']:+.3f}]")
    for name, change in sorted(examined["categories"].items()):
        click.echo(f"{'':<2}{name:<10}{change:+.3f}")
    if examined["elsewhere"] is not None:
        click.echo(f"{'probes':<12}{examined['elsewhere']:+.3f}")
    for problem in examined["problems"]:
        click.echo(f"but: {problem}")
