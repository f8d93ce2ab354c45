from __future__ import annotations

import gzip
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import pytest

from cacheproxy.bench.arrivals import Arrival, bursty, fitted, poisson, shaped
from cacheproxy.bench.traces import read_shape, read_trace
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47]}
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "trace"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("make", [poisson, bursty])
def test_arrivals_come_at_their_rate_in_order_and_alike_for_a_seed(make: object) -> None:
    found = list(make(50.0, 400.0, 7))  # type: ignore[operator] # both take the same
    assert found == list(make(50.0, 400.0, 7))  # type: ignore[operator] # as above
    assert found != list(make(50.0, 400.0, 8))  # type: ignore[operator] # as above
    assert len(found) == pytest.approx(50 * 400, rel=0.15)
    assert all(one.at_s <= other.at_s < 400 for one, other in pairwise(found))


def in_seconds(arrivals: list[Arrival]) -> list[int]:
    counts = [0] * 400
    for one in arrivals:
        counts[int(one.at_s)] += 1
    return counts


def dispersion(counts: list[int]) -> float:
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts) / len(counts) / mean


def test_counts_a_second_of_bursty_arrivals_spread_far_wider_than_those_of_a_poisson_process() -> None:
    assert dispersion(in_seconds(list(poisson(50.0, 400.0, 7)))) == pytest.approx(1, abs=0.3)
    assert dispersion(in_seconds(list(bursty(50.0, 400.0, 7)))) > 5


def test_a_shape_is_squeezed_into_the_time_and_followed() -> None:
    found = list(shaped([1.0, 0.0, 3.0], 100.0, 30.0, 1))
    thirds = [sum(third * 10 <= one.at_s < third * 10 + 10 for one in found) for third in range(3)]
    assert thirds[1] == 0
    assert thirds[2] == pytest.approx(3 * thirds[0], rel=0.2)
    assert len(found) == pytest.approx(3000, rel=0.1)


def test_a_trace_begins_at_its_first_arrival_and_is_bounded() -> None:
    trace = [Arrival(at_s=100.0 + second) for second in range(50)]
    assert [one.at_s for one in fitted(trace, speed=2, seconds=2.0, most=99)] == [0.0, 0.5, 1.0, 1.5]
    assert len(list(fitted(trace, speed=2, seconds=100.0, most=3))) == 3


def test_azures_traces_are_read(tmp_path: Path) -> None:
    first, second = read_trace(written(tmp_path, AZURE))
    assert second.at_s - first.at_s == pytest.approx(4.314579, abs=1e-4)
    assert (first.tokens_in, first.tokens_out, first.key) == (374, 44, "")


def test_mooncakes_requests_share_a_key_where_they_share_the_whole_prompt(tmp_path: Path) -> None:
    first, second, third = read_trace(written(tmp_path, MOONCAKE))
    assert second.at_s - first.at_s == pytest.approx(3.053)
    assert first.key == second.key != third.key


def test_burstgpts_failed_requests_are_left_out(tmp_path: Path) -> None:
    assert [(one.at_s, one.tokens_out) for one in read_trace(written(tmp_path, BURSTGPT))] == [(5.0, 18), (118.0, 276)]


def test_a_gzipped_trace_in_seconds_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.gz"
    file.write_bytes(gzip.compress(b'{"t": 0.0, "in": 3, "out": 5}\n\n{"t": 1.5, "in": 3, "out": 5}\n'))
    assert [one.at_s for one in read_trace(file)] == [0.0, 1.5]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no requests"),
        ("when,what\n1,2\n", "row 1 has no time"),
        ('{"t": 2}\n{"t": 1}\n', "row 2 is earlier"),
        ('{"t": 2}\n{"t": \n', "line 2 is not JSON"),
        ("t,in\nsoon,2\n", "row 1: could not convert"),
    ],
)
def test_what_is_wrong_with_a_trace_is_told_with_its_row(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(read_trace(written(tmp_path, text)))


def test_a_load_a_minute_is_known_from_a_trace(tmp_path: Path) -> None:
    assert read_shape(written(tmp_path, AZURE)) is None
    assert read_shape(written(tmp_path, '{"week1_min": [{"t": 0, "tps": 30.1}, {"t": 2, "tps": 5}]}')) == [
        30.1,
        0.0,
        5.0,
    ]
    with pytest.raises(ConfigError, match="tells no load"):
        read_shape(written(tmp_path, '{"week1_min": []}'))


def test_arrivals_without_end_are_not_made_beforehand() -> None:
    assert len(list(islice(poisson(1e6, 1e9, 1), 10))) == 10
