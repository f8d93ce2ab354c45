"""The shipped packs do not take nonsense for something private."""

from __future__ import annotations

import pytest

from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.prepare import prepared
from tests.support.encoders import real_encoder


@pytest.mark.slow
def test_what_people_type_to_try_an_endpoint_out_is_not_taken_for_private() -> None:
    encoder = real_encoder("fp32")
    classify = prepared(load_pack(find_pack("balanced")), encoder.encode).classify
    assert classify is not None
    texts = [
        "User message 23",
        "ping 9f86d081884c",
        "What is e3b0c44298fc?",
        "hello 42",
        "request 7",
        "Prompt 3",
        "test",
    ]
    for vector, text in zip(encoder.encode(texts)[0], texts, strict=True):
        found = classify(vector)
        assert "personal" not in {found.category, found.second}, (text, found)
