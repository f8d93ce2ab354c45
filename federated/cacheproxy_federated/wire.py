"""What the messages of a run hold, both ways: a head, numbers, threshold counts, and what they are of."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType

from cacheproxy_federated.noisy import BINS
from cacheproxy_federated.thresholds import ALL, GRID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cacheproxy_federated.thresholds import Counts

HEAD, CONFIG, NUMBERS, ECHO, COUNTS, MOMENT = "head", "config", "numbers", "echo", "counts", "moment"
NOISY = "noisy-counts"
"""Names of the records."""
MATRIX, EXAMPLES = "matrix", "num-examples"
RIGHT, WRONG = "right", "wrong"
BASE, ROUND, PARENT, SEED = "base", "server-round", "parent", "seed"
MOMENTS = "query.moment"
"""Type of the message that asks for second moments."""
CATEGORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names that a policy pack may give; no other string of a node is ever passed on."""
MOST_CATEGORIES = 256
TROUBLES = {
    "no-pairs-file": "has no training pairs file: is `pairs` set, and does its proxy collect?",
    "no-pairs": "has no pairs of this encoder: is the same encoder configured, and does its proxy collect?",
    "too-few-pairs": "has too few pairs to take part yet",
    "no-texts": "has too few pairs with texts: set federated.keep_texts where its proxy runs, and wait",
    "no-encoder": "has no weights of this encoder to train: is the same encoder configured?",
    "one-label": "has only right or only wrong pairs",
    "shape": "was sent a head of another shape than its vectors",
    "no-moments": "sends second moments only if it was started with --allow-moments, and of no head of few components",
    "limits": "was asked for what no node does: more than 50 epochs, batches over 4,096, most-pairs under 200, "
    "or layers of an encoder of more than 256",
    "own-counts": "has a dp-noise of its own, and counts nothing in a run without dp-noise",
    "own-limits": "has a dp-noise of its own, and no dp-clip: noise without a bound promises nothing",
    "form": "was sent a message it does not understand: are the versions of cacheproxy the same?",
    "failed": "failed; its own log says why",
    "other": "failed before its app could answer; its own log says why",
}
"""What a node says when it cannot answer, and what an operator is told of it. Nothing else leaves it as an error."""


class Unreadable(Exception):
    """A record that is not as this app writes it; the message is one word for why, never what it holds."""


def head_record(matrix: NDArray[np.float32] | NDArray[np.float64]) -> ArrayRecord:
    """Return a matrix of shape (k, d) as a record."""
    return ArrayRecord({MATRIX: Array(np.ascontiguousarray(matrix))})


def matrix_of(content: RecordDict, name: str = HEAD) -> NDArray[Any]:
    """Return the one matrix of a message. Raises Unreadable."""
    record = content.get(name)
    if not isinstance(record, ArrayRecord) or len(content.array_records) != 1 or list(record) != [MATRIX]:
        raise Unreadable("form")
    try:
        return _parsed(record[MATRIX])
    except Unreadable:
        raise
    except Exception as exc:  # numpy's parser of headers has no list of what it raises
        raise Unreadable("form") from exc


def echo(config: ConfigRecord) -> ConfigRecord:
    """Return what a reply says of the message it answers: encoder, round, and the head it began with."""
    return ConfigRecord({key: config[key] for key in (BASE, ROUND, PARENT)})


def examples_of(content: RecordDict) -> int:
    """Return how many pairs a reply is of. Raises Unreadable."""
    record = content.get(NUMBERS)
    value = record.get(EXAMPLES) if isinstance(record, MetricRecord) else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Unreadable("numbers")
    return value


def numbers(examples: int) -> MetricRecord:
    """Return the record that says how many pairs a reply is of."""
    return MetricRecord({EXAMPLES: examples})


def counts_record(counts: Counts) -> ConfigRecord:
    """Return threshold counts by category as a record of integers."""
    return ConfigRecord({name: [int(value) for value in table.reshape(-1)] for name, table in sorted(counts.items())})


def counts_of(content: RecordDict) -> Counts:
    """Return the threshold counts of a reply, each of shape (101, 4). Raises Unreadable for what has another form."""
    record = content.get(COUNTS)
    if not isinstance(record, ConfigRecord) or len(record) > MOST_CATEGORIES:
        raise Unreadable("counts")
    return {name: _table(name, value) for name, value in record.items()}


def noisy_record(counts: NDArray[np.int64]) -> ConfigRecord:
    """Return noisy counts, shape (2, BINS), as a record of integers."""
    return ConfigRecord({RIGHT: counts[0].tolist(), WRONG: counts[1].tolist()})


def noisy_of(content: RecordDict) -> NDArray[np.int64]:
    """Return the noisy counts of a reply, shape (2, BINS). Raises Unreadable."""
    record = content.get(NOISY)
    if not isinstance(record, ConfigRecord) or set(record) != {RIGHT, WRONG}:
        raise Unreadable("counts")
    rows = [record[name] for name in (RIGHT, WRONG)]
    for row in rows:
        if not isinstance(row, list) or len(row) != BINS:
            raise Unreadable("counts")
        if not all(type(one) is int and abs(one) < 1 << 40 for one in row):
            raise Unreadable("counts")
    return np.array(rows, dtype=np.int64)


def folded(counts: Counts, least: int) -> Counts:
    """Return counts in which a category of fewer than `least` pairs, or of an odd name, has lost its name.

    What has no name is left out where it is fewer than that itself, beside others: it may be a single pair.
    """
    made: Counts = {}
    for name, table in sorted(counts.items()):
        kept = name if CATEGORY.fullmatch(name) and int(table[0].sum()) >= least else ALL
        made[kept] = made[kept] + table if kept in made else table
    if len(made) > 1 and ALL in made and int(made[ALL][0].sum()) < least:
        del made[ALL]
    return made


def _parsed(array: Array) -> NDArray[Any]:
    """Return a float matrix that shares its memory with the record; nothing is made of a size that it only claims."""
    file = io.BytesIO(array.data)
    if array.stype != SType.NUMPY or np.lib.format.read_magic(file) != (1, 0):
        raise Unreadable("form")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
    if (tuple(array.shape), np.dtype(array.dtype)) != (shape, dtype) or by_columns or len(shape) != 2:
        raise Unreadable("shape")
    if dtype.kind != "f" or math.prod(shape) * dtype.itemsize != len(array.data) - file.tell():
        raise Unreadable("shape")
    return np.frombuffer(array.data, dtype, offset=file.tell()).reshape(shape)


def _table(name: str, value: object) -> NDArray[np.int64]:
    named = name == ALL or CATEGORY.fullmatch(name)
    if not named or not isinstance(value, list) or len(value) != len(GRID) * 4:
        raise Unreadable("counts")
    if not all(type(one) is int and 0 <= one < 1 << 40 for one in value):
        raise Unreadable("counts")
    return np.array(value, dtype=np.int64).reshape(len(GRID), 4)
