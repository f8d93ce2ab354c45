"""What is in the key of a legacy completion: everything but the wire form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cacheproxy.model import Controls, Scope
from cacheproxy.query.completions import read_completion
from tests.support.jsonvalues import changed, objects, reference, values

if TYPE_CHECKING:
    from cacheproxy.model import Query

TENANT = Scope(tenant="t" * 64)
WIRE = ("stream", "stream_options")
KNOWN = [
    "model",
    "suffix",
    "best_of",
    "echo",
    "logprobs",
    "n",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "user",
    "guided_json",
]

texts = st.text(min_size=1)
fields = st.dictionaries(
    st.sampled_from(KNOWN) | st.text().filter(lambda name: name not in ("prompt", *WIRE)), values, max_size=4
)
requests = st.builds(lambda more, prompt: {**more, "prompt": prompt}, fields, texts)


def read(body: dict[str, Any]) -> Query:
    return read_completion(body, TENANT, Controls())


@given(data=st.data(), body=requests)
@settings(max_examples=150)
def test_a_change_anywhere_but_in_the_prompt_changes_both_fingerprints(
    data: st.DataObject, body: dict[str, Any]
) -> None:
    where, other = data.draw(changed(body))
    assume(where != ("prompt",) and isinstance(other, dict) and not set(WIRE) & set(other))
    assume(reference(other) != reference(body))
    one, two = read(body), read(other)
    assert one.compatibility != two.compatibility
    assert one.fingerprint != two.fingerprint


@given(body=requests, other=values.filter(lambda value: not isinstance(value, str)))
def test_a_prompt_of_another_type_changes_the_exact_fingerprint(body: dict[str, Any], other: object) -> None:
    assume(other != [body["prompt"]])
    assert read(body).fingerprint != read({**body, "prompt": other}).fingerprint


@given(body=requests, text=texts)
def test_a_change_of_the_prompts_text_changes_only_the_exact_fingerprint(body: dict[str, Any], text: str) -> None:
    assume(text != body["prompt"])
    one, two = read(body), read({**body, "prompt": text})
    assert one.compatibility == two.compatibility
    assert one.fingerprint != two.fingerprint


@given(body=objects | st.fixed_dictionaries({"prompt": values, "stream": values, "stream_options": values}))
def test_reading_a_request_never_fails(body: dict[str, Any]) -> None:
    assert len(read(body).fingerprint) == 32
