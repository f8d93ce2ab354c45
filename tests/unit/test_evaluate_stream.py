from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.evaluate.replay import Asked
from cacheproxy.evaluate.stream import Ask, evaluate_stream, read_stream
from cacheproxy.evaluate.streamscore import Truth
from cacheproxy.evaluate.tables import render_stream
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.settings import Settings, Store
from tests.support.angles import AngleEncoder
from tests.support.encoders import real_encoder

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.evaluate.stream import StreamReport

CONTRACT = {"n", "hits", "false_hits", "stale_hits", "evictions", "by_category", "hit_rate", "false_hit_rate"}
EPOCH = AngleEncoder().fingerprint

# Of equal numbers the cosine is 1: the nearest entry decides, and 0.9 is the threshold.
Row = tuple[str, str, float]
STREAM: list[Row] = [
    ("pay", "p1", 0.0),  # a miss: new
    ("pay please 0.95", "p1", 1.0),  # a right hit
    ("lend 0.92", "l1", 2.0),  # a false hit: near, and of another answer
    ("pay", "p2", 3.0),  # an exact hit, false by now: stale
    ("pay please 0.95", "p2", 4.0),  # a similar one, stale as well
    ("pay", "p2", 200.0),  # a miss: a hundred seconds are over
    ("pay please 0.95", "p2", 201.0),  # right again
    ("far away 0.1", "f1", 202.0),  # a miss
]


def pack(**categories: Category) -> Pack:
    return Pack(
        schema=1,
        name="mine",
        description="",
        default_category="default",
        categories={"default": Category(semantic=True, ttl_s=100.0), **categories},
        encoders={
            "angles": Encoder(
                fingerprint=EPOCH, calibrated_on="", thresholds={"default": 0.9, **dict.fromkeys(categories, 0.9)}
            )
        },
    )


def write(file: Path, rows: list[Row], **extra: object) -> Path:
    told = [{"text": text, "answer_id": answer, "t": at_s, **extra} for text, answer, at_s in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in told))
    return file


async def evaluated(
    folder: Path, rows: list[Row], rules: Pack | None = None, *, store: Store | None = None, **asked: Any
) -> StreamReport:
    config = Settings(store=store or Store())
    category = asked.pop("under", None)
    file = write(folder / "stream.jsonl", rows, **asked)
    return await evaluate_stream(file, rules or pack(), AngleEncoder(), None, config, ask=Ask(category=category))


async def test_the_report_counts_by_hand_and_has_the_contracts_keys(tmp_path: Path) -> None:
    report = await evaluated(tmp_path, STREAM)
    told = msgspec.json.decode(msgspec.json.encode(report))
    assert told.keys() >= CONTRACT | {"encoder", "policies", "intervals"}
    assert (report.n, report.hits, report.exact_hits, report.false_hits, report.stale_hits) == (8, 5, 1, 3, 2)
    assert (report.repeated, report.bypasses, report.evictions) == (4, 0, 0)
    assert (report.hit_rate, report.false_hit_rate, report.error_rate) == (5 / 8, 3 / 5, 3 / 8)
    assert (report.encoder, report.policies) == (EPOCH, "mine")
    low, high = told["intervals"]["hit_rate"]
    assert low < 5 / 8 < high
    by_default = told["by_category"]["default"]
    assert {key: by_default[key] for key in ("n", "hits", "false_hits")} == {"n": 8, "hits": 5, "false_hits": 3}


async def test_a_category_of_the_pack_has_its_own_rules_and_its_own_row(tmp_path: Path) -> None:
    rows = [("pay", "p1", 0.0), ("pay", "p1", 50.0)]
    quick = pack(quick=Category(semantic=True, ttl_s=10.0), never=Category(allow_caching=False))
    by_line = {
        name: (await evaluated(tmp_path, rows, quick, category=name)).by_category for name in ("quick", "never", "none")
    }
    assert [(name, row[name].hits, row[name].bypasses) for name, row in by_line.items()] == [
        ("quick", 0, 0),
        ("never", 0, 2),
        ("none", 1, 0),
    ]
    overruled = await evaluated(tmp_path, rows, quick, category="never", under="quick")
    assert [*overruled.by_category] == ["quick"]
    assert overruled.bypasses == 0
    with pytest.raises(PackError, match="no category 'unknown'"):
        await evaluated(tmp_path, rows, quick, under="unknown")


@pytest.mark.parametrize(("ttl_s", "evicted"), [(1000.0, True), (5.0, False)])
async def test_what_the_stores_caps_push_out_is_an_eviction_and_what_expires_is_not(
    tmp_path: Path, ttl_s: float, evicted: bool
) -> None:
    rows = [(f"question {number} ?", f"a{number}", number * 10.0) for number in range(30)]
    rules = pack(plain=Category(ttl_s=ttl_s))
    report = await evaluated(tmp_path, rows, rules, store=Store(max_entries=10), category="plain")
    assert (report.evictions >= 15) is evicted
    assert (report.evictions == 0) is not evicted
    assert report.by_category["plain"].evictions == report.evictions


async def test_lines_without_time_are_asked_a_second_apart_and_time_never_goes_back(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text('{"text": "a", "answer_id": 7}\n\n{"text": "b", "answer_id": "x", "t": 9}\n'
                    '{"text": "c", "answer_id": "x", "t": 3}\n{"text": "d", "answer_id": "x"}\n')  # fmt: skip
    items = read_stream(file)
    assert [(item.asked.answer_id, item.at_s) for item in items] == [("7", 0.0), ("x", 9.0), ("x", 9.0), ("x", 10.0)]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "holds no question"),
        ('{"text": "secret"}', r":1: .*answer_id"),
        ('{"text": "secret", "answer_id": "a"}\nsecret', r":2: "),
        ('{"text": "secret", "answer_id": []}', r":1: "),
    ],
)
async def test_a_bad_file_is_refused_by_line_and_without_its_text(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=what) as raised:
        read_stream(file)
    assert "secret" not in raised.value.message


def test_an_answer_is_superseded_once_any_question_got_another_one() -> None:
    truth = Truth()
    assert not truth.take(Asked(text="a", answer_id="v1"))
    assert not truth.superseded("v1", "v2")
    assert not truth.take(Asked(text="a", answer_id="v2"))
    assert truth.superseded("v1", "v2")
    assert not truth.superseded("v2", "v1")
    assert truth.take(Asked(text="a", answer_id="v1"))  # and back again
    assert truth.superseded("v2", "v1")
    assert not truth.superseded("v1", "v2")


async def test_the_table_says_what_the_report_says(tmp_path: Path) -> None:
    text = render_stream(await evaluated(tmp_path, STREAM))
    assert "8 questions, 4 with an answer given before: 5 hits (1 exact), 3 false, 2 of them stale" in text
    assert "false-hit rate  0.600" in text


@pytest.mark.slow
async def test_a_rephrasing_hits_and_another_question_misses_with_the_real_encoder(tmp_path: Path) -> None:
    rows = [
        ("How do I reset my password?", "password", 0.0),
        ("How can I reset my password?", "password", 1.0),
        ("How long should I boil an egg?", "egg", 2.0),
    ]
    file = write(tmp_path / "stream.jsonl", rows, category="default")
    report = await evaluate_stream(file, load_pack(find_pack("balanced")), real_encoder("fp32"), None, Settings())
    assert (report.n, report.hits, report.false_hits) == (3, 1, 0)
