"""Servers that work together, as real processes: a master with replicas under three Sentinels, and a Cluster of six."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tests.support.polling import eventually_true
from tests.support.ports import HOST
from tests.support.redis import RedisServer, program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

SERVICE = "cache"
DOWN_AFTER_MS = 1000
"""After so long a silence a Sentinel, or a node of a Cluster, takes another one for dead."""
TOGETHER_S = 40.0
"""Longest wait until the members of a group know each other, on a busy machine."""


class Sentinel(RedisServer):
    """One Sentinel. It writes what it learns into its configuration, so it has one of its own."""

    def command(self) -> list[str]:
        """Return what is run."""
        return [self.program or program(), str(self.directory / "sentinel.conf"), "--sentinel"]


class SentinelGroup:
    """Three servers, the first of which begins as master, and three Sentinels that watch them."""

    def __init__(self, servers: Sequence[RedisServer], sentinels: Sequence[Sentinel]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """What goes into `store.url`."""
        return f"redis+sentinel://{','.join(f'{HOST}:{one.port}' for one in self.sentinels)}/{SERVICE}/0"

    async def master(self) -> RedisServer:
        """Return the server that most Sentinels take for the master."""
        told = [await _told(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for one in self.sentinels]
        ports = [int(one[1]) for one in told if one]
        return next(one for one in self.servers if one.port == max(set(ports), key=ports.count))

    async def settled(self) -> bool:
        """Whether every Sentinel names the same master, which says of itself that it is one."""
        told = [await _told(one, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE) for one in self.sentinels]
        return (
            None not in told
            and len({tuple(one) for one in told}) == 1
            and (_role(await _told(await self.master(), "ROLE")) == "master")
        )

    async def mended(self) -> None:
        """Start, or wake, every server, and return once the Sentinels are content with all of them."""
        for server in self.servers:
            if server.runs:
                server.resume()
            else:
                await server.start()
        await eventually_true(lambda: _watched(self), "the Sentinels know each other", TOGETHER_S)

    async def failed_over(self, old: RedisServer, within_s: float = TOGETHER_S) -> RedisServer:
        """Return the new master once all Sentinels that live know it and it takes writes."""

        async def changed() -> bool:
            new = await self.master()
            return new is not old and _role(await _told(new, "ROLE")) == "master"

        await eventually_true(changed, "another master", within_s)
        return await self.master()


class Cluster:
    """Six nodes: three masters with a replica each."""

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """What goes into `store.url`: two of its nodes are enough to find the others."""
        return f"redis+cluster://{','.join(f'{HOST}:{node.port}' for node in self.nodes[:2])}"

    async def owner(self, key: str) -> RedisServer:
        """Return the node that holds the slot of a key."""
        slot = int(await self._any("CLUSTER", "KEYSLOT", key))
        for start, end, master, *_ in await self._any("CLUSTER", "SLOTS"):
            if int(start) <= slot <= int(end):
                return next(node for node in self.nodes if node.port == int(master[1]))
        raise AssertionError(f"nobody holds slot {slot}")

    async def works(self) -> bool:
        """Whether every node that lives says that all slots are served."""
        for node in self.nodes:
            info = await _told(node, "CLUSTER", "INFO")
            if info is not None and b"cluster_state:ok" not in bytes(info):
                return False
        return True

    async def move(self, slots: int, source: RedisServer, target: RedisServer) -> None:
        """Move slots with the keys in them, as an operator does while the cluster is used."""
        ids = [(await node.ask("CLUSTER", "MYID")).decode() for node in (source, target)]
        await eventually_true(self._agrees, "the nodes agree", TOGETHER_S)
        await _cli(
            *("--cluster", "reshard", f"{HOST}:{source.port}", "--cluster-from", ids[0], "--cluster-to", ids[1]),
            *("--cluster-slots", str(slots), "--cluster-yes"),
        )

    async def _agrees(self) -> bool:
        """Whether all nodes know the same masters for all slots, as redis-cli asks before it changes anything."""
        told = [
            str(sorted((one[0], one[1], one[2]) for one in await _told(node, "CLUSTER", "SLOTS") or []))
            for node in self.nodes
        ]
        return len(set(told)) == 1

    async def _any(self, *command: str) -> Any:
        for node in self.nodes:
            answer = await _told(node, *command)
            if answer is not None:
                return answer
        raise AssertionError("no node answers")


@asynccontextmanager
async def sentinel_group(*flags: str) -> AsyncIterator[SentinelGroup]:
    """Run three servers and three Sentinels until the block ends; `flags` are the servers'."""
    with tempfile.TemporaryDirectory(prefix="sentinel-") as directory:
        servers = [RedisServer(_room(directory, f"server-{n}"), *flags) for n in range(3)]
        for server in servers[1:]:
            server.flags = (*flags, "--replicaof", HOST, str(servers[0].port))
        sentinels = [Sentinel(_room(directory, f"sentinel-{n}")) for n in range(3)]
        for sentinel in sentinels:
            (sentinel.directory / "sentinel.conf").write_text(
                f"port {sentinel.port}\nbind {HOST}\ndir {sentinel.directory}\nlogfile {sentinel.directory}/log\n"
                f"sentinel monitor {SERVICE} {HOST} {servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n",
                encoding="ascii",
            )
        group = SentinelGroup(servers, sentinels)
        async with _running([*servers, *sentinels]):
            await eventually_true(lambda: _watched(group), "the Sentinels know each other", TOGETHER_S)
            yield group


@asynccontextmanager
async def redis_cluster(*flags: str) -> AsyncIterator[Cluster]:
    """Run a Cluster of six until the block ends; `flags` are each node's."""
    with tempfile.TemporaryDirectory(prefix="cluster-") as directory:
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_AFTER_MS), *flags)
        nodes = [RedisServer(_room(directory, f"node-{n}"), *own) for n in range(6)]
        cluster = Cluster(nodes)
        async with _running(nodes):
            places = [f"{HOST}:{node.port}" for node in nodes]
            await _cli("--cluster", "create", *places, "--cluster-replicas", "1", "--cluster-yes")
            await eventually_true(lambda: _whole(cluster), "the cluster works", TOGETHER_S)
            yield cluster


@asynccontextmanager
async def _running(servers: Sequence[RedisServer]) -> AsyncIterator[None]:
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield
    finally:
        for server in servers:
            await server.kill()


def _room(directory: str, name: str) -> Path:
    room = Path(directory) / name
    room.mkdir()
    return room


async def _watched(group: SentinelGroup) -> bool:
    for sentinel in group.sentinels:
        told = await _told(sentinel, "SENTINEL", "MASTER", SERVICE)
        known = dict(zip(told[::2], told[1::2], strict=True)) if told else {}
        if (known.get(b"num-other-sentinels"), known.get(b"num-slaves"), known.get(b"flags")) != (
            b"2",
            b"2",
            b"master",
        ):
            return False
    roles = [await _told(server, "ROLE") for server in group.servers]
    following = [role for role in roles if role and role[0] == b"slave" and role[3] == b"connected"]
    return len(following) == 2 and await group.settled()


async def _whole(cluster: Cluster) -> bool:
    roles = [await _told(node, "ROLE") for node in cluster.nodes]
    masters = sum(bool(role and role[0] == b"master" and role[2]) for role in roles)
    followers = sum(bool(role and role[0] == b"slave" and role[3] == b"connected") for role in roles)
    return masters == followers == 3 and await cluster.works()


def _role(told: Any) -> str:
    return told[0].decode() if told else ""


async def _told(server: RedisServer, *command: str) -> Any:
    """Return an answer, or None where the server does not give one."""
    with contextlib.suppress(RedisError, OSError, AssertionError):
        return await server.ask(*command, within_s=1)
    return None


async def _cli(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "redis-cli", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(process.communicate(), TOGETHER_S)
    assert process.returncode == 0, said.decode()[-2000:]
    return said.decode()
