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
_DEGRADED = "degraded: "
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@click.command()
@with_flags(*_FLAGS)
@click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=3.0, help="Seconds to wait.")
def ready(config: Path | None, timeout_s: float, **flags: str | None) -> None:
    """Ask the data port whether every part can serve: exit 0 when it can, 1 when it cannot or nothing listens.

    It takes address and port from the same settings as `serve`, so that a health check needs no options. A replica
    without its engine can serve, by the backend alone: "ready, degraded" says what is wrong and what to do, exit 0.

    \b
    Examples:
      cacheproxy ready
      cacheproxy ready --port 8090 --timeout 1 && echo "send it traffic"
    """
    server = load(config, {"log__level": "error", **flags}).server
    host = _ANY.get(server.host, server.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{server.port}/readyz"
    serves, why = _asked(url, timeout_s)
    said = f"ready, degraded: {why}" if serves and why else why or "ready"
    click.echo(f"{url}: {said}", err=not serves)
    if not serves:
        raise SystemExit(1)


def _asked(url: str, timeout_s: float) -> tuple[bool, str]:
    """Return whether a proxy can serve, and what is wrong with it, "" when nothing is."""
    # Never through a proxy that the environment names: the question is whether this very process answers.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=timeout_s) as answer:
            return True, _degraded(answer.read())
    except urllib.error.HTTPError as exc:
        told = (f"{name}: {why}" for name, why in _wrong(exc.read()).items())
        return False, "; ".join(told) or f"answered {exc.code}"
    except OSError as exc:
        return False, f"no answer ({getattr(exc, 'reason', exc)})"


def _degraded(body: bytes) -> str:
    """Return what is wrong with a proxy that can serve: what its replica says says all."""
    wrong = {name: why.removeprefix(_DEGRADED) for name, why in _wrong(body).items()}
    return wrong.get("replica") or "; ".join(f"{name}: {why}" for name, why in wrong.items())


def _wrong(body: bytes) -> dict[str, str]:
    try:
        return {str(name): str(why) for name, why in json.loads(body)["parts"].items() if why != "ok"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
