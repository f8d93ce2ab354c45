"""From token ids to text as they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

import codecs
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Detokenizer:
    """Joins the pieces of a byte-level BPE vocabulary. A character split over tokens is held back until it is whole.

    `pieces[i]` is the vocabulary's string for token i, or None for a token that has no text (a control token).
    """

    def __init__(self, pieces: Sequence[str | None]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes, perhaps ""."""
        piece = self._pieces[token]
        return self._decoder.decode(piece_bytes(piece)) if piece is not None else ""

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


class StopFilter:
    """Passes text through until one of the stop strings appears, which is left out. Finds it across pieces, too."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Return what may be shown: everything but a tail that could still become a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return the held tail: the text ended, so it was no stop string."""
        tail, self._held = self._held, ""
        return tail


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


def piece_bytes(piece: str) -> bytes:
    """Return the bytes that a byte-level BPE piece stands for (GPT-2's printable alphabet)."""
    alphabet = _alphabet()
    return bytes(alphabet[char] for char in piece)


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 stands for itself, every other byte for a code point from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
