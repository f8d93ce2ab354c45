"""What a node does: trains on its own pairs, counts on its held-back ones, and sends weights and counts. Nothing else.

Where the pairs are is known from the node's own configuration (`pairs`, and `least-pairs`, `dp-clip`, `dp-noise` for
nodes that are stricter than the run, `allow-moments` for those that allow more). No text, no path and no key is ever
part of a message, and of an error only a word of `wire.TROUBLES`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from cacheproxy.embed.head import Head
from cacheproxy.embed.layers import MOST_DEPTH, MOST_DIM, MOST_INNER, MOST_RANK, Form
from cacheproxy.embed.locate import locate
from cacheproxy.embed.tuned import fingerprints, refuse_form
from cacheproxy.errors import ConfigError
from cacheproxy.learn.pairfile import PairRows, read_pairs
from cacheproxy_federated import wire
from cacheproxy_federated.compress import moment
from cacheproxy_federated.course import MOST_BATCH, MOST_PAIRS
from cacheproxy_federated.noisy import histogram, noised
from cacheproxy_federated.pairs import Pairs
from cacheproxy_federated.privacy import private
from cacheproxy_federated.task import Training, counted, trained

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context
    from numpy.typing import NDArray

    from cacheproxy_federated.layers import Tuner

    RowsOf = Callable[[Context, str], PairRows]
    """Reads the pairs of the node in a context that are of an encoder, by its fingerprint. Raises ConfigError."""
    NodeOf = Callable[[Context, str], "Node"]
    Work = Callable[["Node", RecordDict, ConfigRecord], RecordDict]

LEAST_PAIRS = 20
"""Fewest pairs that a node trains on, unless its own `least-pairs` says otherwise."""
LEAST_HELD = 5
"""Fewest held-back pairs that a node counts."""
LEAST_CATEGORY = 20
"""Fewest pairs under which a node names a category, whatever the server asks."""
_BOUNDS = {"epochs": (1, 50), "batch": (2, 4096), "most-pairs": (200, 1_000_000), "dp-counts": (20, 1_000_000)}
_LAYERS = {
    "dim": (2, MOST_DIM),
    "inner": (1, MOST_INNER),
    "depth": (1, MOST_DEPTH),
    "layers": (1, MOST_DEPTH),
    "rank": (0, MOST_RANK),
}
"""What a node does, and which layers it looks at, whatever the server asks (the same as in `course.Course`)."""
_LEAST_SHARE = 4
"""A second moment under a head of fewer components than one in so many would tell chosen directions apart."""

_log = structlog.get_logger()


class Declined(Exception):
    """The node does not take part; the message is one word of `wire.TROUBLES`."""


class Node:
    """A node's pairs, and what its own configuration allows."""

    def __init__(self, context: Context, rows: PairRows, *, moments: bool = False, encoder: str = "") -> None:
        """Raise Declined where there are no pairs of the encoder that the server named."""
        if not len(rows.right):
            raise Declined("no-pairs")
        self._own = context.node_config
        self._rows = rows
        self._encoder = encoder or str(self._own.get("encoder", ""))
        self.sends_moments = moments or self._own.get("allow-moments") is True

    @property
    def training(self) -> Pairs:
        """The pairs to learn from, none of them held back. Raises Declined."""
        pairs = self._pairs(~self._rows.held)
        if len(pairs) < int(self._own.get("least-pairs", LEAST_PAIRS)):
            raise Declined("too-few-pairs")
        if not 0 < int(pairs.right.sum()) < len(pairs):
            raise Declined("one-label")
        return pairs

    def tuner(self, base: str, form: Form) -> Tuner:
        """Return the node's own copy of the encoder. Raises Declined where it is not the one of that fingerprint."""
        from cacheproxy_federated.layers import tuner  # transformers: seconds, which heads do without

        try:
            source = locate(self._encoder) if self._encoder else None
            if source is None or base not in fingerprints(source):
                raise Declined("no-encoder")
            refuse_form(form, source)
        except ConfigError as exc:
            raise Declined("no-encoder") from exc
        return tuner(source.directory, form)

    def with_texts(self) -> Node:
        """Return the node with those of its pairs alone whose texts it kept. Raises Declined."""
        rows = self._rows
        told = np.array([bool(a and b) for a, b in rows.texts or ()], dtype=np.bool_)
        if not told.any():
            raise Declined("no-texts")
        self._rows = PairRows(
            a=rows.a[told],
            b=rows.b[told],
            right=rows.right[told],
            category=tuple(name for name, kept in zip(rows.category, told, strict=True) if kept),
            group=rows.group[told],
            held=rows.held[told],
            texts=tuple(pair for pair, kept in zip(rows.texts or (), told, strict=True) if kept),
        )
        return self

    def held(self, most: int) -> Pairs:
        """Return the held-back pairs, at most so many. Raises Declined."""
        chosen = np.flatnonzero(self._rows.held)[:most]
        if len(chosen) < LEAST_HELD:
            raise Declined("too-few-pairs")
        return self._pairs(chosen)

    def privacy(self, config: ConfigRecord) -> tuple[float, float]:
        """Return clipping norm and noise, the stricter of the run's and the node's own; 0 is none. Raises Declined."""
        clips = [clip for told in (config, self._own) if (clip := float(str(told.get("dp-clip", 0.0)))) > 0]
        noise = max(float(str(told.get("dp-noise", 0.0))) for told in (config, self._own))
        if noise and not clips:
            raise Declined("own-limits")
        return min(clips, default=0.0), noise

    def _pairs(self, rows: NDArray[Any]) -> Pairs:
        own = self._rows
        whole = Pairs(a=own.a, b=own.b, right=own.right, category=own.category, group=own.group, texts=own.texts or ())
        return whole.at(rows)


def made(rows_of: RowsOf, *, moments: bool = False, encoder: str = "") -> ClientApp:
    """Return an app whose nodes find their pairs by `rows_of`; `moments` lets all send them, in simulations.

    `encoder` is where all find the encoder's weights, in simulations; else each one's configuration says it.
    """

    def node_of(context: Context, base: str) -> Node:
        return Node(context, rows_of(context, base), moments=moments, encoder=encoder)

    app = ClientApp()
    app.train()(partial(_answer, node_of, _train))
    app.evaluate()(partial(_answer, node_of, _evaluate))
    app.query(wire.MOMENTS.partition(".")[2])(partial(_answer, node_of, _moment))
    return app


def _answer(node_of: NodeOf, work: Work, message: Message, context: Context) -> Message:
    """Return the reply to a message: what `work` makes of it, or one word for why not."""
    try:
        config = _config(message.content)
        content = work(node_of(context, str(config[wire.BASE])), message.content, config)
        content[wire.ECHO] = wire.echo(config)
        return Message(content, reply_to=message)
    except Declined as exc:
        word = str(exc)
    except ConfigError as exc:
        word = "no-pairs-file"
        _log.warning("training_file_unreadable", problem=exc.message)
    except wire.Unreadable:
        word = "form"
    except Exception as exc:  # the border to Flower, which would send a traceback with this machine's paths
        word = "failed"
        _log.exception("training_failed", error=type(exc).__name__)
    _log.warning("round_declined", reason=word, why=wire.TROUBLES[word])
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, word), reply_to=message)


def _train(node: Node, content: RecordDict, config: ConfigRecord) -> RecordDict:
    form = _form(config)
    pairs = node.training if form is None else _with_texts(node).training
    matrix = _fitting(content, pairs, form)
    how = Training(
        epochs=_int(config, "epochs"),
        batch=_int(config, "batch"),
        lr=_float(config, "lr"),
        margin=_float(config, "margin"),
        scale=_float(config, "scale"),
        proximal=_float(config, "proximal-mu") if "proximal-mu" in config else 0.0,
    )
    seed = _int(config, wire.SEED)
    if form is None:
        found = trained(matrix, pairs, how, seed)
    else:
        if how.batch > MOST_BATCH:
            raise Declined("limits")
        found = node.tuner(str(config[wire.BASE]), form).trained(matrix[0], pairs, how, seed)[None]
    clip, noise = node.privacy(config)
    if clip:
        found = private(matrix, found, clip, noise, np.random.default_rng())
    # Under differential privacy all nodes weigh the same: how many pairs one has would tell of them without noise.
    examples = 1 if noise or _private(config) else min(len(pairs), _int(config, "most-pairs"))
    return RecordDict({wire.HEAD: wire.head_record(found), wire.NUMBERS: wire.numbers(examples)})


def _evaluate(node: Node, content: RecordDict, config: ConfigRecord) -> RecordDict:
    form = _form(config)
    if form is None:
        pairs = node.held(_int(config, "most-pairs"))
        head = Head(matrix=_fitting(content, pairs), int8=bool(config.get("int8", False)))
    else:
        pairs = _with_texts(node).held(min(_int(config, "most-pairs"), MOST_PAIRS))
        own, flat = node.tuner(str(config[wire.BASE]), form), _fitting(content, pairs, form)[0]
        a, b = (own.embedded(flat, [pair[side] for pair in pairs.texts]) for side in (0, 1))
        pairs, head = replace(pairs, a=a, b=b), Head.identity(form.dim)
    _, noise = node.privacy(config)
    if noise and not _private(config):
        raise Declined("own-counts")
    if noise:
        most = _int(config, "dp-counts")
        told = noised(histogram(head, pairs, most), noise * most, np.random.default_rng())
        return RecordDict({wire.NOISY: wire.noisy_record(told)})
    counts = wire.folded(counted(head, pairs), max(LEAST_CATEGORY, _int(config, "least-category")))
    return RecordDict({wire.COUNTS: wire.counts_record(counts), wire.NUMBERS: wire.numbers(len(pairs))})


def _private(config: ConfigRecord) -> bool:
    """Whether a run asks for noise on everything that leaves a node."""
    return _float(config, "dp-noise") > 0


def _moment(node: Node, content: RecordDict, config: ConfigRecord) -> RecordDict:
    if not node.sends_moments:
        raise Declined("no-moments")
    pairs = node.training
    head = Head(matrix=_fitting(content, pairs))
    if head.dim * _LEAST_SHARE < head.dim_in:
        raise Declined("no-moments")
    questions = np.unique(np.concatenate([pairs.a, pairs.b]), axis=0)
    if len(questions) < head.dim:
        raise Declined("too-few-pairs")  # a second moment of fewer would tell their span
    sums = wire.head_record(moment(head, questions))
    return RecordDict({wire.MOMENT: sums, wire.NUMBERS: wire.numbers(len(questions))})


def _config(content: RecordDict) -> ConfigRecord:
    config = content.get(wire.CONFIG)
    if not isinstance(config, ConfigRecord) or not isinstance(config.get(wire.BASE), str):
        raise Declined("form")
    return config


def _form(config: ConfigRecord) -> Form | None:
    """Return which of the encoder's weights are trained, None for a head. Raises Declined."""
    if config.get("mode", "head") == "head":
        return None
    shape = {name: _int(config, name) for name in ("dim", "inner", "depth", "layers", "rank")}
    try:
        return Form(mode=str(config["mode"]), **shape)  # type: ignore[arg-type]  # it says what cannot be
    except ValueError as exc:
        raise Declined("form") from exc


def _with_texts(node: Node) -> Node:
    try:
        node.with_texts().training  # noqa: B018 - it says why not
    except Declined as exc:
        raise Declined("no-texts" if str(exc) == "too-few-pairs" else str(exc)) from exc
    return node


def _fitting(content: RecordDict, pairs: Pairs, form: Form | None = None) -> NDArray[np.float32]:
    matrix = wire.matrix_of(content)
    if form is not None:
        if matrix.dtype != np.float32 or matrix.shape != (1, form.size) or not np.isfinite(matrix).all():
            raise Declined("shape")
        return matrix
    if matrix.dtype != np.float32 or matrix.ndim != 2 or matrix.shape[1] != pairs.a.shape[1]:
        raise Declined("shape")
    return matrix


def _int(config: ConfigRecord, name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Declined("form")
    low, high = (_BOUNDS | _LAYERS).get(name, (value, value))
    if not low <= value <= high:
        raise Declined("limits")
    return value


def _float(config: ConfigRecord, name: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Declined("form")
    return float(value)


def _of_this_node(context: Context, base: str) -> PairRows:
    """Return the rows in the file that the node's own configuration names."""
    path = context.node_config.get("pairs")
    if not isinstance(path, str) or not path:
        raise ConfigError("node-config: `pairs` names no file; start the node with `cacheproxy federated join`")
    return read_pairs(Path(path), base)


app = made(_of_this_node)
"""What a SuperNode runs."""
