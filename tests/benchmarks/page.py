"""Sections of docs/benchmarks.md that programs write: each stands between two markers that name it."""

from __future__ import annotations


def section(page: str, name: str) -> str:
    """Return what stands between the markers of a section. Raises ValueError for a page without them."""
    return _split(page, name)[1]


def written(page: str, name: str, text: str) -> str:
    """Return a page with a section replaced. Raises ValueError for a page without its markers."""
    before, _, after = _split(page, name)
    return f"{before}{text.strip()}\n{after}"


def _split(page: str, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, began, rest = page.partition(begin)
    inside, ended, after = rest.partition(end)
    if not began or not ended:
        raise ValueError(f"the page has no {begin.strip()} ... {end}")
    return before + begin, inside.strip(), end + after
