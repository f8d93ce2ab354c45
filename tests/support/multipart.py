"""Reads a multipart/form-data request, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.upstream import Received


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form."""

    data: bytes
    filename: str


def fields(request: Received) -> dict[str, Field]:
    """Return the fields by name. Raises ValueError when the body is not what its header says."""
    boundary = re.search(r'boundary="?([^";]+)"?', request.header("content-type") or "")
    if boundary is None:
        raise ValueError("no boundary")
    _, *parts, last = request.body.split(b"--" + boundary[1].encode())
    if last.strip() != b"--":
        raise ValueError("the form has no end")
    found = {}
    for part in parts:
        head, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        told = head.decode()
        name, filename = re.search(r'[ ;]name="([^"]*)"', told), re.search(r'filename="([^"]*)"', told)
        if name is None:
            raise ValueError("a field has no name")
        found[name[1]] = Field(data=data.removesuffix(b"\r\n"), filename=filename[1] if filename else "")
    return found
