"""Ports for what tests start themselves, out of the way of those that the kernel gives out."""

from __future__ import annotations

import random
import socket

HOST = "127.0.0.1"
BUS = 10_000
"""How far above its port a node of a Redis Cluster has another one."""
_FROM, _TO = 10_500, 20_500
_chance = random.SystemRandom()
"""Not one that a test may seed: tests in two processes would be given the same ports."""


def free_port() -> int:
    """Return a port that nobody listens on, and nobody on that of its bus.

    Connections, and whoever asks for any port, get theirs from the kernel, from 32,768 on. So nobody takes this one
    before it is used, and nobody else is found where a test means that nobody is.
    """
    while True:
        port = _chance.randrange(_FROM, _TO)
        if _is_free(port) and _is_free(port + BUS):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
