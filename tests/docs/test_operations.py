"""docs/operations.md is the reference of settings and metrics: nothing missing, nothing invented."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import pytest

from cacheproxy.settings import Secret, Settings
from cacheproxy.telemetry import Telemetry
from tests.support.markdown import documents, read
from tests.support.proxy import chat
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from tests.support.proxy import Proxy

OPERATIONS = read("docs/operations.md")
METRIC = re.compile(r"\b(cacheproxy_[a-z_]+[a-z])(?:\{([a-z_,]+)\})?")


def settings_with_defaults() -> dict[str, object]:
    found: dict[str, object] = {}
    for section in Settings.__struct_fields__:
        values = getattr(Settings(), section)
        for key in values.__struct_fields__:
            value = getattr(values, key)
            found[f"{section}.{key}"] = value.reveal() if isinstance(value, Secret) else value
    return found


def test_the_table_lists_every_setting_with_its_default_and_no_other() -> None:
    rows = OPERATIONS.table("key", "default", "meaning")
    told = {key.strip("`"): tomllib.loads(f"value = {default.strip('`')}")["value"] for key, default, _ in rows}
    assert len(told) == len(rows)
    assert told == settings_with_defaults()
    assert all(meaning for _, _, meaning in rows)


def test_settings_are_listed_in_the_order_of_the_code() -> None:
    listed = [key.strip("`") for key, _, _ in OPERATIONS.table("key", "default", "meaning")]
    assert listed == list(settings_with_defaults())


def test_every_setting_that_the_text_names_exists() -> None:
    setting = re.compile(rf"((?:{'|'.join(Settings.__struct_fields__)})\.[a-z_]+)(?: = .+)?")
    named = {found[1] for span in OPERATIONS.spans if (found := setting.fullmatch(span))}
    assert named - settings_with_defaults().keys() == set()


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_that_is_named_is_exported(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    async with await Connection.open(proxy.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        rendered = (await connection.read_response("GET")).body.decode()
    exported = set(re.findall(r"^# TYPE (\w+) ", rendered, re.MULTILINE))
    documented = {
        found[1] for document in documents("README.md", "docs/*.md") for found in METRIC.finditer(document.text)
    }
    assert documented
    assert documented - exported == set()


def test_metrics_are_shown_with_the_labels_they_have() -> None:
    telemetry = Telemetry()
    shown = {found[1]: found[2].split(",") for found in METRIC.finditer(OPERATIONS.text) if found[2]}
    assert shown
    known = {
        f"{metric.describe()[0].name}_total": metric
        for metric in vars(telemetry).values()
        if hasattr(metric, "describe")
    }
    for name, labels in shown.items():
        known[name].labels(**dict.fromkeys(labels, "x"))
