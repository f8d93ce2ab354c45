"""Whatever lists were asked before, in any order and encoding: every answer is what the backend says to that list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.embeddings_wire import PATH, request, whole

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = st.sampled_from(["a", "b c", "zwölf", "\U0001f600 d", '"data":[{', "\\"])
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=3)
INPUTS = TEXTS | TOKENS | st.lists(TEXTS, min_size=1, max_size=6) | st.lists(TOKENS, min_size=1, max_size=6)
FIELDS = st.fixed_dictionaries(
    {}, optional={"encoding_format": st.sampled_from(["float", "base64"]), "dimensions": st.sampled_from([1, 8])}
)


def of_tokens(value: Any) -> bool:
    return isinstance(value, list) and not isinstance(value[0], str)


def distinct(value: Any) -> set[str]:
    return {repr(one) for one in (value if isinstance(value, list) and not isinstance(value[0], int) else [value])}


@settings(max_examples=60)
@given(asked=st.lists(st.tuples(INPUTS, FIELDS), min_size=1, max_size=6))
async def test_any_lists_in_any_order_are_answered_as_the_backend_answers_them(
    proxy: Proxy, module_upstream: ScriptedUpstream, asked: list[tuple[Any, dict[str, Any]]]
) -> None:
    key, held = f"sk-{uuid4().hex}", set[tuple[int, str]]()
    for value, fields in asked:
        module_upstream.reset()
        answered = await proxy.ask(request(value, **fields), key=key, target=PATH)
        wanted = whole(request(value, **fields))
        told = answered.json()
        assert (answered.status, told["data"], told["model"]) == (200, wanted["data"], wanted["model"])
        if of_tokens(value):  # a text's tokens are the backend's to know; within a list they can only be estimated
            assert told["usage"] == wanted["usage"]
        needed = {(fields.get("dimensions", 0), one) for one in distinct(value)}
        assert (answered.outcome == "hit") is (needed <= held)
        sent = [one for received in module_upstream.requests for one in distinct(received.json()["input"])]
        assert sorted(sent) == sorted(one for _, one in needed - held)
        held |= needed
