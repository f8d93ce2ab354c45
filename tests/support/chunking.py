"""A byte string cut into pieces, for property tests of whatever reads a stream."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st


@st.composite
def chunkings(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """Return the bytes in pieces of any size: one, single bytes, or cut wherever; some may be empty."""
    match draw(st.sampled_from(["whole", "bytes", "cuts"])):
        case "whole":
            return [stream]
        case "bytes":
            return [stream[at : at + 1] for at in range(len(stream))]
    cuts = draw(st.lists(st.integers(0, len(stream)), max_size=8))
    return [stream[start:end] for start, end in pairwise(sorted([0, *cuts, len(stream)]))]
