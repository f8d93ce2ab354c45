"""The table of clients says what the tests install."""

from __future__ import annotations

import json
import re

from tests.support.markdown import ROOT, read

CLIENTS = ROOT / "tests" / "clients"


def test_the_versions_of_tested_clients_are_those_installed() -> None:
    rows = read("docs/operations.md").table("client", "versions")
    told = {found for _, versions in rows for found in re.findall(r"`([\w@/.-]+)` (\d[\d.]*\d)", versions)}
    installed = set(json.loads((CLIENTS / "node" / "package.json").read_text())["dependencies"].items())
    for file in (CLIENTS / "python").glob("*.txt"):
        pins = re.findall(r"^([\w-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        installed |= {(name.lower(), version) for name, version in pins}
    assert len(told) >= 10
    assert told - installed == set()
