"""Takes a JSON object apart while it comes: the elements of one of its arrays, and the rest.

A list of two thousand vectors is 60 MB of text. Decoded in one call it would hold the interpreter for half a second;
taken apart by its brackets, piece by piece, each element can be decoded by itself. Nothing is validated here: whoever
takes the elements and the rest decodes them.
"""

from __future__ import annotations

import math
import re

_OUTSIDE = re.compile(rb'["\[\]{}]')
_WITHIN = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _OPENING = ord('"'), ord("\\"), frozenset(b"[{")
_MARKS = 32
"""Most opening quotes and brackets for one element; a data object of a vector has eight."""
_ALLOWANCE = 32
"""As many elements' worth of them for all that stands beside the array."""


class ArraySplitter:
    """Splits off the objects (or arrays) in the top-level array `name`; in the rest, `0` stands for each.

    `doubled` tells that the array came more than once: then no split is right. `crowded` tells that there are more
    than `most` elements, or far more quotes and brackets than they can have: the rest is then not looked at, so that
    nonsense costs no time.
    """

    def __init__(self, name: str, *, most: int | None = None) -> None:
        self._most = math.inf if most is None else most
        self._marks = _MARKS * (self._most + _ALLOWANCE)
        self.crowded = False
        self.elements: list[bytes] = []
        self.rest = bytearray()
        self.doubled = False
        self._opened_by = re.compile(rb'[{,\s]"%b"\s*:\s*\Z' % re.escape(name.encode()))
        self._depth = 0
        self._found = self._within = False
        self._in_string = self._escaped = False
        self._element: bytearray | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        taken = position = 0
        while position < len(chunk) and not self.crowded:
            if self._in_string:
                position = self._skip_string(chunk, position)
                continue
            found = _OUTSIDE.search(chunk, position)
            if found is None:
                break
            at = found.start()
            position = at + 1
            self._marks -= 1
            self.crowded = self._marks < 0 or len(self.elements) > self._most
            if chunk[at] == _QUOTE:
                self._in_string = True
            elif chunk[at] in _OPENING:
                if self._depth <= 2:  # deeper, nothing begins
                    self._take(chunk[taken:at])
                    taken = at
                self._open(is_array=chunk[at] == ord("["))
            else:
                if self._depth <= 3:  # deeper, nothing ends
                    self._take(chunk[taken:position])
                    taken = position
                self._close()
        if self.crowded:
            self.elements, self.rest, self._element = [], bytearray(), None
        else:
            self._take(chunk[taken:])

    def _take(self, part: bytes) -> None:
        target = self.rest if self._element is None else self._element
        target += part

    def _open(self, *, is_array: bool) -> None:
        if self._within and self._depth == 2:
            self.rest += b"0"
            self._element = bytearray()
        elif self._depth == 1 and is_array and self._opened_by.search(self.rest[-256:]):
            self.doubled = self._found
            self._found = self._within = True
        self._depth += 1

    def _close(self) -> None:
        self._depth -= 1
        if self._element is not None and self._depth == 2:
            self.elements.append(bytes(self._element))
            self._element = None
        elif self._depth == 1:
            self._within = False

    def _skip_string(self, chunk: bytes, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        end = _WITHIN.match(chunk, position).end()  # type: ignore[union-attr]  # it matches nothing, too
        if end < len(chunk):  # at a quote, or at a backslash whose other half comes with the next chunk
            self._escaped = chunk[end] == _BACKSLASH
            self._in_string = self._escaped
        return end + 1
