"""The maps name every room of the house."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_room_is_on_the_map() -> None:
    told = set(re.findall(r"`(\w+)(?:\.py|/)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    rooms = {
        path.stem for path in (ROOT / "cacheproxy").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - told == {"__init__", "__main__"}


def test_the_directions_name_every_layer() -> None:
    told = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Directions")[2].split("```")[1]
    [house] = [
        contract
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    layers = set(re.findall(r"cacheproxy\.(\w+)", " ".join(house["layers"])))
    assert layers == set(re.findall(r"\w+", told)) - {"never", "each", "other"}
