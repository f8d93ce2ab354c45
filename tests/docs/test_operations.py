"""docs/operations.md is the reference of settings and metrics: nothing missing, nothing invented."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, get_type_hints

import msgspec
import pytest
from prometheus_client import Histogram

from cacheproxy.configure import load
from cacheproxy.settings import NamedUpstream, Secret, Settings
from cacheproxy.telemetry import Figures, Telemetry
from cacheproxy.upstream.route import Routes
from tests.support.markdown import documents, read
from tests.support.proxy import chat
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy import Proxy

OPERATIONS = read("docs/operations.md")
METRIC = re.compile(r"\b(cacheproxy_[a-z_]+[a-z])(?:\{([a-z_,]+)\})?")


def settings_with_defaults() -> dict[str, object]:
    found: dict[str, object] = {}
    for section in Settings.__struct_fields__:
        values = getattr(Settings(), section)
        for key in getattr(values, "__struct_fields__", ()):  # tables of any keys are in a table of their own
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


def test_the_table_of_named_backends_lists_every_key_with_its_default_and_no_other() -> None:
    defaults = {field.encode_name: field.default for field in msgspec.structs.fields(NamedUpstream)}
    told = {
        key.strip("`"): default.strip("`")
        for key, default, _ in OPERATIONS.table("backend's key", "default", "meaning")
    }
    assert list(told) == list(defaults)
    for key, default in defaults.items():
        if default is msgspec.NODEFAULT:
            assert told[key] == "required"
        elif default is not None:
            plain = default.reveal() if isinstance(default, Secret) else default
            assert tomllib.loads(f"value = {told[key]}")["value"] == plain


def test_the_example_of_several_backends_is_a_configuration_that_starts(tmp_path: Path) -> None:
    [example] = [block for block in OPERATIONS.blocks("toml") if "[upstreams." in block]
    file = tmp_path / "cacheproxy.toml"
    file.write_text(example, encoding="utf-8")
    settings = load(file, environ={"CACHEPROXY_UPSTREAMS__HOSTED__API_KEY": "sk-x"})
    routes = Routes(settings)
    for model, backends in {
        "gpt-4o": "default",
        "llama-3-70b": "gpu_a,gpu_b",
        "mistral-large": "hosted",
        "fast": "gpu_a,gpu_b",
    }.items():
        assert ",".join(routes.candidates(model)) == backends, model


def test_every_setting_that_the_text_names_exists() -> None:
    sections = [name for name in Settings.__struct_fields__ if hasattr(getattr(Settings(), name), "__struct_fields__")]
    setting = re.compile(rf"((?:{'|'.join(sections)})\.[a-z_]+)(?: = .+)?")
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
        metric.describe()[0].name + ("" if isinstance(metric, Histogram) else "_total"): metric
        for metric in vars(telemetry).values()
        if hasattr(metric, "describe")
    }
    counted = {hint.__metadata__[0] for hint in get_type_hints(Figures, include_extras=True).values()}
    labelled = {
        metric.name: [metric.labels] if isinstance(metric.labels, str) else list(metric.labels)
        for metric in counted
        if metric.labels
    }
    for name, labels in shown.items():
        if name in labelled:
            assert labels == labelled[name]
        else:
            known[name].labels(**dict.fromkeys(labels, "x"))
