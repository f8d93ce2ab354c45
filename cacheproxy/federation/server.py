"""The server of a federation on this machine: a SuperLink, one run on it, and the artefact that comes of it."""

from __future__ import annotations

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cacheproxy.embed import headfile
from cacheproxy.errors import CacheProxyError, ConfigError
from cacheproxy.federation.app import app_folder, environment, need_folder
from cacheproxy.federation.children import Child, wait_until
from cacheproxy.federation.keys import AUTHORITY, CERTIFICATE, CERTIFICATE_KEY
from cacheproxy.federation.ports import is_loopback, need_free
from cacheproxy.federation.tale import Tale

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheproxy.embed.headfile import Artefact

HOME = "flower"
"""Folder beside a run where Flower keeps what it needs."""
_NAME = "cacheproxy"
_READY_S = 60.0
_POLL_S = 0.3


class NotTrained(CacheProxyError):
    """A run ended without a head."""

    code = "not_trained"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Where a server listens, whom it lets in, and where its run is kept."""

    out: Path
    host: str
    port: int
    certificates: Path | None = None
    """Folder with ca.crt, server.crt and server.key."""
    nodes: tuple[Path, ...] = ()
    """Public keys of the nodes that may take part; all that come where there are none."""
    key: Path | None = None
    start: Path | None = None
    resume: bool = False

    @property
    def local(self) -> str:
        """The address that this machine's own processes use."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "localhost") else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def check(self) -> None:
        """Raise ConfigError, saying what to do, for what cannot work or would be open to anybody."""
        if self.certificates is None and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} is reached from elsewhere and needs TLS: give --certificates; "
                "`cacheproxy federated keys` makes them"
            )
        if self.nodes and self.certificates is None:
            raise ConfigError("--node needs TLS: give --certificates; `cacheproxy federated keys` makes them")
        need_folder(self.out)
        for file in (*self._tls, *self.nodes, *([self.key] if self.key else [])):
            if not file.is_file():
                raise ConfigError(f"{file}: is not there; `cacheproxy federated keys` makes keys and certificates")
        if self.start is not None:
            headfile.read(self.start)
        need_free(self.host, self.port)

    @property
    def _tls(self) -> tuple[Path, ...]:
        folder = self.certificates
        return (folder / CERTIFICATE, folder / CERTIFICATE_KEY, folder / AUTHORITY) if folder else ()

    @property
    def command(self) -> list[str]:
        """The SuperLink's command line."""
        told = [sys.executable, "-m", "cacheproxy_federated.superlink", "--host", self.host, "--port", str(self.port)]
        told.append("--disable-runtime-dependency-installation")
        if not self._tls:
            return [*told, "--insecure"]
        options = ("--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile")
        told += [word for pair in zip(options, map(str, self._tls), strict=True) for word in pair]
        return [*told, *(["--enable-supernode-auth"] if self.nodes else [])]

    @property
    def environment(self) -> dict[str, str]:
        """What only the server's process is told: a run's configuration goes to every node."""
        told = {"OUT": str(self.out.resolve()), "RESUME": "1" if self.resume else "0"}
        told |= {"KEY": str(self.key.resolve())} if self.key else {}
        told |= {"FROM": str(self.start.resolve())} if self.start else {}
        return {f"CACHEPROXY_FEDERATED_{name}": value for name, value in told.items()}

    @property
    def connection(self) -> str:
        """The SuperLink in Flower's config.toml."""
        secure = f"root-certificates = {json.dumps(str(self._tls[2].resolve()))}" if self._tls else "insecure = true"
        return f'[superlink]\ndefault = "{_NAME}"\n\n[superlink.{_NAME}]\naddress = "{self.local}"\n{secure}\n'

    def is_healthy(self) -> bool:
        """Whether the SuperLink answers."""
        url = f"{'https' if self._tls else 'http'}://{self.local}/health"
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        try:
            if self._tls:
                trust = ssl.create_default_context(cafile=str(self._tls[2]))
                handlers.append(urllib.request.HTTPSHandler(context=trust))
            with urllib.request.build_opener(*handlers).open(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def serve(serving: Serving, course: Mapping[str, Any]) -> Artefact:
    """Serve one run to its end, saying how it goes. Raises ConfigError and NotTrained. All it started ends with it."""
    serving.check()
    home = serving.out / HOME
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(serving.connection)
    (home / "run.toml").write_text(toml(course))
    env = environment(home, serving.environment)
    tale = Tale(serving.out)
    with ExitStack() as stack:
        link = stack.enter_context(Child(serving.command, env, home / "superlink.log"))
        wait_until(serving.is_healthy, link, _READY_S, "the SuperLink")
        least = max(course["quorum"], course["first"])
        click.echo(f"serving on {serving.host}:{serving.port}; waiting for {least} nodes")
        for node in serving.nodes:
            _enrol(node, env, home)
        command = ["flwr", "run", str(app_folder()), _NAME, "--stream", "--run-config", str(home / "run.toml")]
        run = stack.enter_context(Child(command, env, home / "run.log"))
        while run.ended is None and link.ended is None and not tale.finished and not tale.why_ended:
            _say(tale)
            time.sleep(_POLL_S)
        _say(tale)
    if tale.why_ended:
        raise NotTrained(tale.why_ended)
    if not tale.finished:
        raise NotTrained(f"the run ended without a word; {run.log} ends with:\n{run.tail()}")
    return headfile.read(serving.out / "final")


def toml(course: Mapping[str, Any]) -> str:
    """Return plain settings as TOML."""
    words: dict[type, Any] = {bool: lambda value: str(value).lower(), str: json.dumps}
    return "".join(f"{name} = {words.get(type(value), repr)(value)}\n" for name, value in course.items())


def _enrol(node: Path, env: Mapping[str, str], home: Path) -> None:
    """Let a node take part that has the private half of a key. Raises ConfigError."""
    with Child(["flwr", "supernode", "register", str(node), _NAME], env, home / "enrol.log") as enrolling:
        while enrolling.ended is None:
            time.sleep(_POLL_S)
        if enrolling.ended:
            raise ConfigError(f"{node}: was not taken as a node's key; {enrolling.log} ends with:\n{enrolling.tail()}")
    click.echo(f"enrolled {node.name}")


def _say(tale: Tale) -> None:
    for line in tale.lines():
        click.echo(line)
