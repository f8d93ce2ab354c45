"""Packs of a test's own: the shipped one with some keys of its category set."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cacheproxy.policy.loader import POLICY_FILE, find_pack

if TYPE_CHECKING:
    from pathlib import Path


def changed_pack(folder: Path, **keys: bool | float) -> Path:
    """Write the balanced pack into a folder with these keys of its default category set, and return the folder."""
    table = "[categories.default]\n"
    text = (find_pack("balanced") / POLICY_FILE).read_text(encoding="utf-8")
    assert text.count(table) == 1
    for key in keys:
        text = re.sub(rf"(?m)^{key} = .*\n", "", text, count=1)
    lines = "".join(f"{key} = {str(value).lower()}\n" for key, value in keys.items())
    (folder / POLICY_FILE).write_text(text.replace(table, table + lines), encoding="utf-8")
    return folder
