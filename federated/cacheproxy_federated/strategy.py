"""Flower's strategies by name, with what each needs of a course; what they average was let through by the guard."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, FedProx, FedTrimmedAvg, Krum, MultiKrum
from flwr.serverapp.strategy.multikrum import select_multikrum

from cacheproxy.errors import ConfigError
from cacheproxy_federated import wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flwr.serverapp import Grid
    from numpy.typing import NDArray

    from cacheproxy_federated.course import Course
    from cacheproxy_federated.guard import Update


_LEAST_ROBUST = 5
"""Fewest replies of which one that lies stands out (2f + 3)."""
_COLUMNS = 1 << 16
"""Components that are compared at a time: of whole layers there are millions."""
_HOSTILE = 10
"""`robust` bears one hostile node in so many."""


class Averaging:
    """One of Flower's strategies: makes the messages of a round, and one matrix of the updates that came back."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._flower = _flower(course, course.strategy)

    def messages(
        self, number: int, matrix: NDArray[np.float32], config: ConfigRecord, nodes: list[int]
    ) -> list[Message]:
        """Return one message to train for each node."""
        # Flower would wait for ever for nodes that left: it is shown those that are there.
        present = cast("Grid", _Present(nodes))
        made = self._flower.configure_train(number, wire.head_record(matrix), config, present)
        return sorted(made, key=lambda message: message.metadata.dst_node_id)

    def average(self, number: int, start: NDArray[np.float32], updates: Sequence[Update]) -> NDArray[np.float32]:
        """Return the new matrix; `start` was sent to train.

        Raises ConfigError where there is none or it is not finite.
        """
        flower, hostile = self._flower, self._hostile(len(updates))
        # A few cannot be told apart, and are averaged.
        if self._course.strategy == "robust" and len(updates) >= _LEAST_ROBUST:
            # How many pairs it has, a node only claims: one that passes must not outweigh the others by that.
            updates = [replace(update, examples=1) for update in _trusted(start, updates, hostile)]
        if isinstance(flower, MultiKrum) and not isinstance(flower, Krum):
            flower.num_malicious_nodes = hostile
            flower.num_nodes_to_select = max(1, len(updates) - hostile)
        arrays, _ = flower.aggregate_train(number, [_reply(update) for update in updates])
        if arrays is None:
            raise ConfigError(f"federated: {self._course.strategy} made nothing of {len(updates)} replies")
        made: NDArray[np.float32] = arrays[wire.MATRIX].numpy().astype(np.float32)
        if not np.isfinite(made).all():
            raise ConfigError(f"federated: {self._course.strategy} made a head that is not finite; lower server-lr")
        return made

    def _hostile(self, replies: int) -> int:
        """Return how many of so many replies are taken for hostile; never more than can be outvoted (2f + 3)."""
        if self._course.strategy != "robust":
            return self._course.malicious
        return min(max(self._course.malicious, replies // _HOSTILE), (replies - 3) // 2)

    @property
    def memory(self) -> dict[str, NDArray[np.float64]]:
        """What the strategy carries from round to round; empty for most."""
        if not isinstance(self._flower, FedAdam) or not self._flower.m_t or not self._flower.v_t:
            return {}
        return {
            name: np.ascontiguousarray(kept[wire.MATRIX], dtype=np.float64)
            for name, kept in (("m", self._flower.m_t), ("v", self._flower.v_t))
        }

    def remember(self, memory: dict[str, NDArray[np.float64]]) -> None:
        """Take up what an interrupted run carried."""
        if isinstance(self._flower, FedAdam) and memory:
            self._flower.m_t = {wire.MATRIX: memory["m"]}
            self._flower.v_t = {wire.MATRIX: memory["v"]}


def _trusted(start: NDArray[np.float32], updates: Sequence[Update], hostile: int) -> list[Update]:
    """Return the updates but those that Multi-Krum takes for `hostile`, and as many that go together; most stay.

    Both choose among all: what one of them leaves out wrongly must not make a liar look honest to the other.
    """
    contents = [_content(update) for update in updates]
    near = {id(one) for one in select_multikrum(contents, hostile, len(updates) - hostile)}
    most = max(0, min(hostile, (len(updates) - 1) // 2 - hostile))
    together = set(np.argsort(-_alike(start, updates), kind="stable")[:most].tolist())
    return [one for at, one in enumerate(updates) if id(contents[at]) in near and at not in together]


def _alike(start: NDArray[np.float32], updates: Sequence[Update]) -> NDArray[np.float64]:
    """Return for each update the highest cosine of its way with another's, without what all have in common.

    Ways are of unit length, or a long honest update would be a way of its own; nodes that lie together turn the same
    way, however short they keep to it, and honest ones are nearly at right angles.
    """
    whole, rows = np.reshape(start, -1), [np.reshape(update.matrix, -1) for update in updates]
    lengths = np.array([max(update.norm, np.finfo(np.float64).tiny) for update in updates])
    gram = np.zeros((len(rows), len(rows)))
    for at in range(0, whole.size, _COLUMNS):
        columns = slice(at, at + _COLUMNS)
        ways = np.stack([row[columns] - whole[columns] for row in rows]).astype(np.float64) / lengths[:, None]
        ways -= ways.mean(axis=0)
        gram += ways @ ways.T
    left = np.sqrt(np.maximum(np.diag(gram), np.finfo(np.float64).tiny))
    cosines = gram / left[:, None] / left
    np.fill_diagonal(cosines, -1.0)
    highest: NDArray[np.float64] = cosines.max(axis=1)
    return highest


class _Present:
    """The nodes of one round, as far as a strategy asks a grid for them."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> list[int]:
        return self._nodes


def _flower(course: Course, name: str) -> FedAvg:
    kinds: dict[str, type[FedAvg]] = {
        "robust": FedAvg,
        "fedavg": FedAvg,
        "fedprox": FedProx,
        "fedadam": FedAdam,
        "median": FedMedian,
        "trimmed-mean": FedTrimmedAvg,
        "krum": Krum,
        "multi-krum": MultiKrum,
    }
    own: dict[str, dict[str, float]] = {
        "fedprox": {"proximal_mu": course.proximal},
        "fedadam": {"eta": course.server_lr},
        "trimmed-mean": {"beta": course.trim},
        "krum": {"num_malicious_nodes": course.malicious},
        "multi-krum": {"num_malicious_nodes": course.malicious},
    }
    # Who is asked, and how many must answer, is decided before (rounds.py): Flower takes all that it is shown.
    counts = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1}
    keys = {"arrayrecord_key": wire.HEAD, "configrecord_key": wire.CONFIG, "weighted_by_key": wire.EXAMPLES}
    return kinds[name](**counts, **keys, **own.get(name, {}))  # type: ignore[arg-type]  # three kinds of values


def _reply(update: Update) -> Message:
    return Message(_content(update), 1, MessageType.TRAIN)


def _content(update: Update) -> RecordDict:
    return RecordDict({wire.HEAD: wire.head_record(update.matrix), wire.NUMBERS: wire.numbers(update.examples)})
