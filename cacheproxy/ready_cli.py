"""`cacheproxy ready`: whether a proxy can serve, for health checks of containers and supervisors."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import click

from cacheproxy.flags import load, with_flags

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = (
    ("--host", "server", "host", "ADDRESS", "Address of the data port.  [default: 127.0.0.1]"),
    ("--port", "server", "port", "PORT", "Data port.  [default: 8080]"),
)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command()
@with_flags(*_FLAGS)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=3.0, help="Seconds to wait.")
def ready(config: Path | None, timeout_s: float, **flags: str | None) -> None:
    """Ask the data port whether every part can serve: exit 0 when it can, 1 when it cannot or nothing listens.

    It takes address and port from the same settings as `serve`, so that a health check needs no options.
    """
    server = load(config, {"log__level": "error", **flags}).server
    host = _ANY.get(server.host, server.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}/readyz"
    why = _why_not(url, timeout_s)
    click.echo(f"{url}: {why or 'ready'}", err=bool(why))
    if why:
        raise SystemExit(1)


def _why_not(url: str, timeout_s: float) -> str:
    """Return what keeps a proxy from serving, "" when nothing does."""
    # Never through a proxy that the environment names: the question is whether this very process answers.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=timeout_s):
            return ""
    except urllib.error.HTTPError as exc:
        return _parts(exc.read()) or f"answered {exc.code}"
    except OSError as exc:
        return f"no answer ({getattr(exc, 'reason', exc)})"


def _parts(body: bytes) -> str:
    try:
        parts = json.loads(body)["parts"]
        return "; ".join(f"{name}: {why}" for name, why in parts.items() if why != "ok")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
