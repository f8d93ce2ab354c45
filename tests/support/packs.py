"""Packs of a test's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tomli_w

from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack, pack_tree

if TYPE_CHECKING:
    from pathlib import Path


def changed_pack(folder: Path, **keys: bool | float | str) -> Path:
    """Write balanced into a folder with these keys of its default category set, and return the folder.

    Examples are left out, so that every question is of that category, and lifetimes are exact.
    """
    tree = pack_tree(load_pack(find_pack("balanced")))
    for encoder in tree["encoders"].values():
        if encoder["verify_from"] is None:  # TOML has no word for it
            del encoder["verify_from"]
    for category in tree["categories"].values():
        category["examples"] = []
    tree["categories"]["default"].update({"ttl_jitter": 0.0, **keys})
    (folder / POLICY_FILE).write_text(tomli_w.dumps(tree), encoding="utf-8")
    return folder


def one_category_pack(folder: Path, **keys: bool | float) -> Path:
    """Write a pack of one category with these keys into a folder, and return the folder: exact matches, no encoder."""
    lines = ["schema = 1", 'name = "one"', 'description = "One category."', 'default_category = "default"']
    lines += ["", "[categories.default]", *(f"{key} = {str(value).lower()}" for key, value in keys.items()), ""]
    (folder / POLICY_FILE).write_text("\n".join(lines), encoding="utf-8")
    return folder
