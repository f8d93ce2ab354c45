"""A Flower grid whose nodes are functions of this process: a whole run in one thread, for trying out and for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from flwr.clientapp import ClientApp
    from flwr.supercore.run import Run

    Answer = Callable[[Message], Message | None]
    """What a node makes of a message; None is a node that never answers."""


class LocalGrid(Grid):
    """Delivers each message when it is pushed, and hands out each reply once."""

    def __init__(self, nodes: Mapping[int, Answer]) -> None:
        # Every message names the task that made it, which Flower's engines set for their process.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._nodes = dict(nodes)
        self._replies: dict[str, Message] = {}
        self._run: Run | None = None

    def set_run(self, run: Run) -> None:
        """Keep a run; nothing here depends on it."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that was set. Raises ValueError before."""
        if self._run is None:
            raise ValueError("no run was set")
        return self._run

    def create_message(  # Flower's signature
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are there."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages, each with an id of its own."""
        pushed = []
        for message in messages:
            number = uuid4().hex
            message.metadata.__dict__["_message_id"] = number  # as Flower's own grids do
            pushed.append(number)
            answer = self._nodes.get(message.metadata.dst_node_id)
            reply = answer(message) if answer else None
            if reply is not None:
                self._replies[number] = reply
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages that are there."""
        return [self._replies.pop(number) for number in list(message_ids) if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, and pull what is there; there is nothing to wait for."""
        return self.pull_messages(self.push_messages(messages))


def node(app: ClientApp, number: int, config: Mapping[str, str | int | float | bool]) -> Answer:
    """Return a node that runs an app with a configuration of its own."""
    context = Context(run_id=0, node_id=number, node_config=dict(config), state=RecordDict(), run_config={})
    return lambda message: app(message, context)
