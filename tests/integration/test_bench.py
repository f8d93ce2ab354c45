"""`cacheproxy bench` against real proxies with the scripted backend: short runs, whole reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

from cacheproxy.bench.overload import OverloadReport
from cacheproxy.bench.runs import Report
from cacheproxy.cli import main
from tests.support.proxy import ENCODERS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone; use the encoder that is prepared."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)
    monkeypatch.setenv("CACHEPROXY_ENCODER__CACHE_DIR", str(ENCODERS))


def bench(*words: str) -> tuple[int, str]:
    found = CliRunner().invoke(main, ["bench", *words])
    return found.exit_code, found.output


def test_a_load_is_measured_and_reported(tmp_path: Path) -> None:
    out, drawn = tmp_path / "report.json", tmp_path / "report.svg"
    code, said = bench(
        *("load", "--seconds", "1", "--warmup", "0.2", "--repeats", "2", "--connections", "4", "--stream", "0.3"),
        *("--mix", "exact=60,semantic=20,miss=20", "--slo-ms", "10000", "--json", str(out), "--plot", str(drawn)),
    )
    assert code == 0, said
    report = msgspec.json.decode(out.read_bytes(), type=Report, strict=True)
    found = report.figures
    assert report.command.endswith("bench load")
    assert any(told.startswith("the backend") for told in report.simulated)
    assert report.method["loop"] == "closed"
    assert found.errors == {}
    assert found.requests == found.latency["all"].requests == sum(found.mix.values()) > 20
    assert {"hit exact", "hit semantic", "miss", "hit exact, stream"} <= found.latency.keys()
    assert set(found.meant["exact"]) == {"hit exact", "hit exact, stream"}
    assert set(found.meant["miss"]) == {"miss", "miss, stream"}
    assert found.cpu_ms_per_request is not None
    assert report.rss_mb is not None
    assert report.rss_mb["most"] > 50
    assert {"read", "exact", "embed", "search", "judge", "render", "keep", "first_byte"} <= found.stages.keys()
    assert b"<svg" in drawn.read_bytes()
    assert "hit semantic" in said


def test_a_trace_is_replayed_with_an_empty_cache_each_time(tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.jsonl", tmp_path / "report.json"
    rows = [
        f'{{"timestamp": {number * 20}, "input_length": 9, "output_length": 5, "hash_ids": [{number % 3}]}}'
        for number in range(40)
    ]
    trace.write_text("\n".join(rows), encoding="utf-8")
    code, said = bench("replay", str(trace), "--repeats", "2", "--ttft-ms", "20", "--json", str(out))
    assert code == 0, said
    report = msgspec.json.decode(out.read_bytes(), type=Report, strict=True)
    assert report.method["arrivals"] == "trace"
    assert report.figures.requests == 80
    assert report.figures.latency["miss"].requests >= 2  # one at least in each repeat


@pytest.mark.slow
def test_an_overload_is_judged(tmp_path: Path) -> None:
    config, out = tmp_path / "small.toml", tmp_path / "report.json"
    config.write_text("[upstream]\nmax_concurrency = 2\nqueue = 4\n", encoding="utf-8")
    code, said = bench(
        *("overload", "--seconds", "2", "--slots", "2", "--ttft-ms", "100", "--peak-connections", "2"),
        *("--serve", f"--config {config}", "--json", str(out)),
    )
    report = msgspec.json.decode(out.read_bytes(), type=OverloadReport, strict=True)
    assert set(report.phases) == {"peak", "normal", "overload", "after"}
    assert report.phases["overload"].errors["http_503"] > 0
    assert report.goals["shed answers that say when to come back"].met
    assert code == (0 if all(goal.met for goal in report.goals.values()) else 1), said


@pytest.mark.slow
@pytest.mark.quiet
def test_ten_times_too_much_is_answered_as_far_as_it_can_be_and_all_is_well_again(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    code, said = bench("overload", "--seconds", "4", "--json", str(out))
    assert code in (0, 1), said  # how fast this machine is is not what is tested
    report = msgspec.json.decode(out.read_bytes(), type=OverloadReport, strict=True)
    loaded, after = report.phases["overload"], report.phases["after"]
    assert report.goals["goodput of the peak"].met, said
    assert report.goals["shed answers that say when to come back"].met
    assert set(loaded.errors) == {"http_503"}, "nobody is left without an answer"
    assert after.errors.get("http_503", 0) < 0.2 * after.requests


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("load", "--url", "http://192.0.2.1/v1"), "--allow-remote"),
        (("load", "--mix", "some=1"), "--mix"),
        (("load", "--bursts"), "--rate"),
        (("load", "--json", "no-such-folder/report.json"), "no-such-folder"),
        (("load", "--plot", "no-such-folder/report.svg"), "no-such-folder"),
        (("overload", "--json", "no-such-folder/report.json"), "no-such-folder"),
        (("load", "--url", "http://127.0.0.1:1/v1"), "does not answer"),
        (("load", "--upstream", "https://api.example.org/v1"), "--allow-remote"),
        (("load", "--rate", "5", "--connections", "4"), "--connections does nothing here"),
        (("load", "--zipf", "1", "--mix", "exact=1"), "--mix does nothing here"),
        (("load", "--verbatim", "0.5"), "--verbatim does nothing here"),
        (("load", "--url", "http://127.0.0.1:1/v1", "--ttft-ms", "5"), "--ttft-ms does nothing here"),
        (("load", "--pid", "5"), "--pid does nothing here"),
        (("overload", "--url", "http://127.0.0.1:1/v1", "--serve", "--policies strict"), "--serve does nothing here"),
        (("overload", "--upstream", "http://127.0.0.1:1/v1", "--slots", "5"), "--slots does nothing here"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(words: tuple[str, ...], told: str) -> None:
    code, said = bench(*words)
    assert code == 2
    assert told in said


def test_a_trace_that_tells_when_requests_come_takes_no_rate(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 9, "output_length": 5, "hash_ids": [1]}\n', encoding="utf-8")
    code, said = bench("replay", str(trace), "--rate", "5")
    assert code == 2
    assert "--rate does nothing here" in said
