"""Choosing a batch, and the memory of recent embeddings."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.embed.batch import Job, choose
from cacheproxy.embed.memo import Memo
from cacheproxy.model import Embedding


def jobs(*weights: int) -> dict[bytes, Job]:
    made = (
        Job(key=index.to_bytes(4, "big"), text="", weight=weight, queued_s=0.0) for index, weight in enumerate(weights)
    )
    return {job.key: job for job in made}


def embedding() -> Embedding:
    return Embedding(vector=np.ones(1, dtype=np.float32))


@given(weights=st.lists(st.integers(2, 256), min_size=1, max_size=200), max_texts=st.integers(1, 40))
def test_the_oldest_always_goes_within_both_bounds(weights: list[int], max_texts: int) -> None:
    pending = jobs(*weights)
    batch = choose(pending, max_texts=max_texts, max_tokens=512)
    assert batch[0] is pending[b"\0\0\0\0"]
    assert len(batch) == len(set(batch)) <= max_texts
    assert len(batch) == 1 or max(job.weight for job in batch) * len(batch) <= 512


def test_texts_of_similar_length_share_a_batch() -> None:
    batch = choose(jobs(10, 200, 12, 220, 11), max_texts=8, max_tokens=1024)
    assert [job.weight for job in batch] == [10, 11, 12]


def test_the_closest_in_length_are_taken_first() -> None:
    batch = choose(jobs(10, 20, 11, 19, 12), max_texts=3, max_tokens=1024)
    assert [job.weight for job in batch] == [10, 11, 12]


def test_a_text_above_the_token_bound_goes_alone() -> None:
    assert len(choose(jobs(256, 256), max_texts=8, max_tokens=256)) == 1


def test_the_memo_forgets_the_least_recently_used() -> None:
    memo = Memo(2)
    memo.put(b"a", embedding())
    memo.put(b"b", embedding())
    memo.get(b"a")
    memo.put(b"c", embedding())
    assert memo.get(b"b") is None
    assert memo.get(b"a") is not None
    assert len(memo) == 2


def test_a_memo_of_no_size_remembers_nothing() -> None:
    memo = Memo(0)
    memo.put(b"a", embedding())
    assert memo.get(b"a") is None
