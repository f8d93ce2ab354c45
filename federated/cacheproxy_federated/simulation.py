"""Many clients on one machine: Flower's simulation engine (Ray), or one after another in this process.

Run as `python -m cacheproxy_federated.simulation ORDER` by `cacheproxy federated simulate`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from cacheproxy.learn.pairfile import PairRows
from cacheproxy_federated import client_app
from cacheproxy_federated.local import LocalGrid, node
from cacheproxy_federated.server_app import Place, train

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

_NAMES = "client-{:04}.npz"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A simulation: its course, its clients' files, and where the run is kept."""

    course: dict[str, Any]
    parts: str
    """Folder with one file a client: the fields of `PairRows` as numpy arrays, without pickle."""
    clients: int
    out: str
    key: str | None = None
    start: str | None = None
    resume: bool = False
    ray: bool = True
    cores: int = 1
    encoder: str = ""
    """Where the encoder's weights are, where its layers are trained."""

    @property
    def place(self) -> Place:
        """Where the run is kept and what it begins with."""
        key, start = (Path(told) if told else None for told in (self.key, self.start))
        return Place(out=Path(self.out), key=key, start=start, resume=self.resume)


def read_part(folder: str, context: Context, base: str) -> PairRows:
    """Return the pairs of the client that a context is of; simulated ones are all of the encoder of the run."""
    with np.load(Path(folder) / _NAMES.format(int(context.node_config["partition-id"])), allow_pickle=False) as part:
        return PairRows(
            a=part["a"],
            b=part["b"],
            right=part["right"],
            category=tuple(part["category"].tolist()),
            group=part["group"],
            held=part["held"],
            texts=tuple(map(tuple, part["texts"].tolist())) if "texts" in part else None,
        )


def simulate(order: Order) -> None:
    """Run an order to its end."""
    app = client_app.made(partial(read_part, order.parts), moments=True, encoder=order.encoder)
    if not order.ray:
        nodes = {at + 1: node(app, at + 1, {"partition-id": at}) for at in range(order.clients)}
        train(LocalGrid(nodes), order.course, order.place)
        return
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        train(grid, order.course, order.place)

    resources: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": order.cores, "num_gpus": 0, "include_dashboard": False, "logging_level": "error"},
    }
    run_simulation(server, app, order.clients, backend_config=resources)


if __name__ == "__main__":
    simulate(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order))
