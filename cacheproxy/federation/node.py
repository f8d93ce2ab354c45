"""A node beside a proxy: a SuperNode that trains on the pairs which that proxy collected."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cacheproxy.errors import ConfigError
from cacheproxy.federation.app import environment
from cacheproxy.federation.children import Child
from cacheproxy.federation.ports import free_port, is_loopback, parted
from cacheproxy.federation.server import NotTrained, toml
from cacheproxy.learn.pairfile import FILE, read_pairs

if TYPE_CHECKING:
    from pathlib import Path

_POLL_S = 0.3
_AGAIN_S = 5.0
_SHORT_S = 60.0
_MOST_SHORT = 60
"""So often in a row a node that ends at once is started again: for some ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """Which federation a node joins, and what it allows."""

    superlink: str
    data_dir: Path
    root_certificates: Path | None = None
    node_key: Path | None = None
    insecure: bool = False
    """Without TLS, also to other machines."""
    encoder: str = ""
    """`encoder.name`: where the weights are, for runs that train the encoder's own layers."""
    own: dict[str, Any]
    """The node's own limits: least-pairs, dp-clip, dp-noise."""

    @property
    def pairs(self) -> Path:
        """The file that the proxy beside it writes."""
        return self.data_dir / FILE

    @property
    def told(self) -> dict[str, Any]:
        """The node's own configuration; it is not sent."""
        encoder = {"encoder": self.encoder} if self.encoder else {}
        return {"pairs": str(self.pairs.resolve()), **encoder, **self.own}

    def check(self) -> None:
        """Raise ConfigError, saying what to do, for what cannot work or would be read on its way."""
        host, _ = parted(self.superlink)
        if self.root_certificates is None and not self.insecure and not is_loopback(host):
            raise ConfigError(
                f"--superlink {self.superlink} needs TLS: give --root-certificates, the ca.crt of the server; "
                "--insecure sends what is learnt in the clear"
            )
        if self.node_key is not None and self.root_certificates is None:
            raise ConfigError("--node-key needs TLS: give --root-certificates, the ca.crt of the server")
        for file in (self.root_certificates, self.node_key):
            if file is not None and not file.is_file():
                raise ConfigError(f"{file}: is not there; `cacheproxy federated keys` makes keys and certificates")
        if self.own.get("dp-noise") and not self.own.get("dp-clip"):
            raise ConfigError("--dp-noise needs --dp-clip: noise without a bound promises nothing")
        read_pairs(self.pairs, "")

    def command(self, home: Path) -> list[str]:
        """Return the SuperNode's command line; where its pairs are is in a file, not in the list of processes."""
        told = [sys.executable, "-m", "cacheproxy_federated.supernode", "--superlink", self.superlink]
        told += ["--host", "127.0.0.1", "--port", str(free_port()), "--node-config", str(home / "node.toml")]
        tls = ["--root-certificates", str(self.root_certificates)] if self.root_certificates else ["--insecure"]
        return [*told, *tls, *(["--auth-supernode-private-key", str(self.node_key)] if self.node_key else [])]


def join(joining: Joining) -> None:
    """Take part in runs until the command is ended. Raises ConfigError; NotTrained where the node cannot stay.

    A SuperNode waits for a server that is not there, but ends where it is not known yet: then it is started again.
    """
    joining.check()
    home = joining.data_dir / "federated" / "flower"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "node.toml").write_text(toml(joining.told))
    click.echo(f"joining {joining.superlink} with the pairs in {joining.pairs}")
    click.echo(f"weights and counts are sent, no text and no vector; log: {home / 'supernode.log'}; Ctrl-C to leave")
    short = 0
    while True:
        began = time.monotonic()
        with Child(joining.command(home), environment(home), home / "supernode.log") as node:
            while node.ended is None:
                time.sleep(_POLL_S)
        short = short + 1 if time.monotonic() - began < _SHORT_S else 0
        if short > _MOST_SHORT:
            raise NotTrained(f"the node does not stay; {node.log} ends with:\n{node.tail()}")
        click.echo(f"the node ended (see {node.log}); is its key enrolled at the server? Trying again", err=True)
        time.sleep(_AGAIN_S)
