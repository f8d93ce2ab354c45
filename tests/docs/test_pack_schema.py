"""docs/packs.md holds every key of a pack with its default, and its example is a pack."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import msgspec
import pytest

from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.policy.loader import load_pack
from cacheproxy.policy.pack import Category, Classifier, Encoder, Pack, Price, Rule
from cacheproxy.policy.probes import load_probes
from tests.support.markdown import read

if TYPE_CHECKING:
    from pathlib import Path

TABLES: dict[str, type[msgspec.Struct]] = {
    "key": Pack,
    "key of `[classifier]`": Classifier,
    "key of `[categories.NAME]`": Category,
    "key of `[[categories.NAME.rules]]`": Rule,
    "key of `[encoders.NAME]`": Encoder,
    "key of `[[prices]]`": Price,
}


def shown(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    match default:
        case bool():
            return f"`{str(default).lower()}`"
        case int() | float():
            return f"`{default:g}`"
        case str():
            return f'`"{default}"`'
        case tuple():
            return "`[]`"
        case dict():
            return "`{}`"
        case _:
            return "its own"


@pytest.mark.parametrize("head", TABLES)
def test_every_key_is_documented_with_its_default(head: str) -> None:
    rows = read("docs/packs.md").table(head, "value", "default", "meaning")
    assert {key.strip("`"): default for key, _, default, _ in rows} == {
        field.encode_name: shown(field) for field in msgspec.structs.fields(TABLES[head])
    }


def test_every_kind_of_personal_data_is_documented() -> None:
    spans = set(read("docs/packs.md").spans)
    assert set(PII_KINDS) <= spans


def test_the_example_is_a_pack_with_probes(tmp_path: Path) -> None:
    policy, probes = read("docs/packs.md").blocks("toml")
    (tmp_path / "policy.toml").write_text(policy, encoding="utf-8")
    (tmp_path / "probes.toml").write_text(probes, encoding="utf-8")
    pack = load_pack(tmp_path)
    assert pack.name == tomllib.loads(policy)["name"]
    assert not pack.categories["billing"].allow_caching
    assert pack.categories["support"].semantic
    assert len(load_probes(tmp_path, pack)) == 2
