"""Replica: what makes this proxy one of several that share a cache. The first thing opened, before any key is needed.

All replicas key their scopes with one secret, from a file or agreed on in the engine. A replica that starts without the
engine, and never knew that secret, is apart: it passes requests on with a secret of its own, keeps and serves nothing,
and starts anew once the engine tells it the right one.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cacheproxy.access.keeper import keys_path
from cacheproxy.access.sharedkeys import KeyCopy, SharedKeys
from cacheproxy.errors import ConfigError, SharedUnavailable
from cacheproxy.install import keep_secret, known_secret, name_of
from cacheproxy.learn.sharedlabels import Labels
from cacheproxy.shared.address import is_shared
from cacheproxy.shared.flights import SharedFlights
from cacheproxy.shared.installs import SECRET_BYTES, Installs, secret_of
from cacheproxy.shared.layout import Layout

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from cacheproxy.ports import Clock
    from cacheproxy.settings import Settings
    from cacheproxy.shared.control import Control
    from cacheproxy.shared.elect import Election
    from cacheproxy.shared.link import Link
    from cacheproxy.shared.members import Members

PATIENCE_S = 10.0
"""How long a replica that is apart leaves it to those who know the secret to tell an engine that was emptied."""

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Joined:
    """The secret that this replica goes by. `rejoin` is set when the process must start anew to go by another."""

    secret: bytes = field(repr=False)
    installs: Installs
    data_dir: Path
    apart: bool = False
    """Whether the secret is this replica's own, since it does not know that of the others."""
    wrong: str = ""
    """What keeps it from being one of them until somebody changes it; "" when nothing does."""
    rejoin: asyncio.Event = field(default_factory=asyncio.Event)
    patience_s: float = PATIENCE_S
    _asked_s: float | None = None

    async def agree(self) -> None:
        """Make sure that this replica has the secret of all: a topic's `reload`, before anything is served.

        Raises SharedUnavailable where it has not, as long as it has not.
        """
        try:
            agreed = await self.installs.agree(self.secret, ours=not self.apart, publish=self._may_publish())
        except ConfigError as exc:  # the engine was emptied, and another install was first to come back
            log.error("install_mismatch", reason=exc.message)  # noqa: TRY400 - its message says it all
            self.wrong = exc.message
            raise SharedUnavailable(exc.message, fault="install") from exc
        self.wrong = ""
        if not self.apart:
            return
        await asyncio.to_thread(keep_secret, self.data_dir, agreed)
        if agreed == self.secret:
            self.apart = False
            return
        log.warning("install_joined", what="this replica starts anew, with the secret that the others have")
        self.rejoin.set()
        raise SharedUnavailable("this replica starts anew to join the others", fault="install")

    def _may_publish(self) -> bool:
        """Whether to make this secret that of all: who is apart knows none that was used, and lets others go first."""
        if not self.apart:
            return True
        now_s = asyncio.get_running_loop().time()
        if self._asked_s is None:
            self._asked_s = now_s
        return now_s - self._asked_s >= self.patience_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """This proxy's end of what replicas share."""

    link: Link
    layout: Layout
    joined: Joined
    members: Members
    control: Control
    election: Election
    """Who does what one replica should do for all."""
    flights: SharedFlights
    labels: Labels
    keys: KeyCopy | None = None
    """This replica's copy of the virtual keys, where callers need one."""


async def open_replica(
    settings: Settings, data_dir: Path, own_dir: Path, clock: Clock, stack: AsyncExitStack
) -> Replica | None:
    """Return this proxy's end of what replicas share; None where it shares nothing. Raises ConfigError.

    `own_dir` is its own, where several processes have one data directory.
    """
    if not is_shared(settings.store.url):
        if settings.replicas.secret_file:
            raise ConfigError("replicas.secret_file: only replicas share a secret; name their engine as store.url")
        return None
    from cacheproxy.shared.control import Control  # here, since they load the engine's client
    from cacheproxy.shared.elect import Election
    from cacheproxy.shared.link import Link
    from cacheproxy.shared.members import Members

    link = await stack.enter_async_context(Link(settings.store, settings.replicas, clock))
    layout = Layout(settings.store.prefix, link.shards)
    joined = await join(link, layout, settings, data_dir)
    members = await stack.enter_async_context(Members(link, layout, settings.replicas, clock))
    election = await stack.enter_async_context(Election(link, layout, members.replica, clock))
    most = settings.replicas.log_messages
    return Replica(
        link=link,
        layout=layout,
        joined=joined,
        members=members,
        control=Control(link, layout, members, log_messages=most),
        election=election,
        flights=SharedFlights(link, layout, clock),
        labels=Labels(link, layout, await asyncio.to_thread(name_of, own_dir)),
        keys=await _keys(SharedKeys(link, layout, joined.secret, log_messages=most), settings, data_dir),
    )


async def _keys(shared: SharedKeys, settings: Settings, data_dir: Path) -> KeyCopy | None:
    """Copy the virtual keys that replicas share, where callers need one: they are read next."""
    if settings.access.mode != "keys":
        return None
    copy = KeyCopy(shared, keys_path(settings, data_dir))
    await copy.tend()
    return copy


async def join(link: Link, layout: Layout, settings: Settings, data_dir: Path) -> Joined:
    """Agree on the secret, or go apart for now. Raises ConfigError."""
    given, known = _given(settings), known_secret(data_dir)
    if given is not None and known not in (None, given):
        raise ConfigError(
            f"replicas.secret_file: {data_dir} was used with another secret; give this replica a --data-dir of its "
            "own, empty at first"
        )
    from cacheproxy.shared.faults import must_be_mended  # here, since it loads the engine's client

    secret = given or known or secrets.token_bytes(SECRET_BYTES)
    installs = Installs(link, layout, by_file=given is not None)
    apart = False
    try:
        secret = await installs.agree(secret, ours=bool(given or known))
    except SharedUnavailable as exc:
        if must_be_mended(exc.fault):
            raise ConfigError(f"store.url: {exc.message}") from exc
        apart = not (given or known)
        if apart and settings.access.mode == "keys":
            raise ConfigError(
                "store.url: the engine cannot be reached, and this data directory does not know the virtual keys yet; "
                "start the engine first"
            ) from exc
        if apart:
            log.warning(
                "replica_apart", what="nothing is kept or served from the cache until the engine can be reached"
            )
    if not apart:
        keep_secret(data_dir, secret)
    return Joined(secret=secret, installs=installs, data_dir=data_dir, apart=apart)


def _given(settings: Settings) -> bytes | None:
    file = settings.replicas.secret_file
    return secret_of(Path(file).expanduser()) if file else None
