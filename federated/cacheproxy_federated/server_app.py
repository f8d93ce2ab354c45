"""What the server does: opens a run's folder and trains. What it writes, and with which key, never enters a message."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from flwr.serverapp import ServerApp

from cacheproxy.embed import headfile
from cacheproxy.errors import CacheProxyError, ConfigError
from cacheproxy_federated.checkpoint import Folder
from cacheproxy_federated.course import course_from
from cacheproxy_federated.exchange import Exchange, WallClock
from cacheproxy_federated.rounds import Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.app import Context
    from flwr.serverapp import Grid

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy_federated.course import Course

OUT, KEY, FROM, RESUME = (f"CACHEPROXY_FEDERATED_{name}" for name in ("OUT", "KEY", "FROM", "RESUME"))
"""Environment variables of the server's process alone: a run's configuration is sent to every node, this is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run is kept and what it begins with."""

    out: Path
    key: Path | None = None
    start: Path | None = None
    resume: bool = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Place:
        """Return what the process that serves was told. Raises ConfigError."""
        if not environ.get(OUT):
            raise ConfigError(f"{OUT} is not set: start the run with `cacheproxy federated serve`")
        key, start = environ.get(KEY), environ.get(FROM)
        return cls(
            out=Path(environ[OUT]),
            key=Path(key) if key else None,
            start=Path(start) if start else None,
            resume=environ.get(RESUME) == "1",
        )


def train(grid: Grid, config: Mapping[str, object], place: Place) -> Artefact:
    """Train over the nodes of a grid, and return the last artefact. Raises ConfigError and RunEnded.

    However it ends, the last line of progress says so.
    """
    folder = Folder(place.out, signing_key(place.key) if place.key else None)
    try:
        course = course_from(config)
        start = headfile.read(place.start) if place.start else None
        if start is not None:
            _refuse(start, course, str(place.start))
        exchange = Exchange(grid, WallClock(), course.poll_s)
        return Run(course, exchange, folder).run(start, resume=place.resume)
    except CacheProxyError as exc:
        folder.say("ended", why=exc.message)
        raise
    except Exception as exc:  # told where operators look, and raised on
        folder.say("ended", why=f"{type(exc).__name__}; the log of the server says where")
        raise


def _refuse(start: Artefact, course: Course, where: str) -> None:
    """Raise ConfigError for a head that training cannot go on from."""
    headfile.refuse_base(start.manifest, course.base, where)
    if (start.layers.form if start.layers else None) != course.form:
        raise ConfigError(f"{where}: is of {start.manifest.mode}, or of other layers; give the same --mode as then")
    if start.head.dim_in != course.dim:
        raise ConfigError(f"{where}: is of vectors of length {start.head.dim_in}, the encoder's have {course.dim}")
    if course.dim_out > start.head.dim:
        raise ConfigError(f"{where}: has {start.head.dim} components; dim-out cannot be more ({course.dim_out})")


def signing_key(file: Path) -> Ed25519PrivateKey:
    """Return the Ed25519 key in a PEM file. Raises ConfigError."""
    try:
        key = load_pem_private_key(file.read_bytes(), None)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror}); name the signing key's file") from exc
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{file}: is no unencrypted PEM key; make one: {_MAKE_KEY}") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{file}: is no Ed25519 key; make one: {_MAKE_KEY}")
    return key


_MAKE_KEY = "openssl genpkey -algorithm ed25519 -out signing.pem"

app = ServerApp()
"""What a SuperLink runs."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run once."""
    train(grid, context.run_config, Place.from_environment(os.environ))
