"""Explain: every step of one decision with its evidence, and nothing changed by asking."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from cacheproxy.augment.constraint import NO_LIMIT
from cacheproxy.considered import Augmentation, augmentation
from cacheproxy.considered import lines as considered_lines
from cacheproxy.errors import InvalidRequest, PartUnavailable
from cacheproxy.model import Hit
from cacheproxy.query.chat import read_chat
from cacheproxy.query.completions import read_completion
from cacheproxy.query.controls import read_body_controls, read_controls
from cacheproxy.query.responses import read_responses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.augment.constraint import Limit
    from cacheproxy.journey import Journey
    from cacheproxy.model import Controls, Entry, Judgement, Outcome, Query, Scope
    from cacheproxy.pipeline import Pipeline
    from cacheproxy.ports import Budget

_NEAREST = 3


class ExplainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to explain: a question, or a whole request body; with whose key, and under which category."""

    text: str = ""
    model: str = ""
    request: dict[str, Any] | None = None
    key: str = ""
    category: str = ""

    def __repr__(self) -> str:
        """Show neither key nor text."""
        return f"ExplainRequest(model={self.model!r}, category={self.category!r})"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a verification and its value: a probability, log-odds, or how much a rule objects."""

    name: str
    value: float


class NearbyEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry near the question; `verdict` says why it is or is not served.

    `probability` (that its answer is right), `veto` (the rule that forbids it) and `steps` (what each step of the
    verification said) are there where the verifier was asked.
    """

    entry: str
    similarity: float
    text: str
    verdict: str
    probability: float | None = None
    veto: str = ""
    steps: list[Step] = []


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The decision, step by step. `candidates` are of the caller's own partition, `elsewhere` of all others."""

    outcome: str
    tier: str
    reason: str
    category: str
    category_source: str
    """`request`, `rule`, `examples`, `entry`, `default` or `unknown` (no embedding: the strictest rules apply)."""
    second_category: str
    """Searched as well, since the margin is small; the stricter rules of both apply."""
    margin: float | None
    category_scores: dict[str, float]
    """The best categories with their probabilities; "" stands for none of them."""
    policy_version: int
    load: float
    model: str
    tenant: str
    traits: list[str]
    exact_allowed: bool
    semantic_allowed: bool
    store_allowed: bool
    augment_allowed: bool
    """Whether policy lets a small model answer with kept answers as examples, where no kept answer may be served."""
    plan_reason: str
    threshold: float | None
    base_threshold: float | None
    """Before load lowered it and the caller raised it."""
    min_probability: float | None
    """Where a verifier decides: the least that is served; `threshold` is then only where it begins to be asked."""
    served_from: float | None
    """The same, as the error budget leaves it by now."""
    ttl_s: float
    base_ttl_s: float
    encoder: str
    unseen_text: bool
    similarity: float | None
    probability: float | None
    entry: str
    lookup_ms: float
    augmentation: Augmentation
    """Who would answer where no kept answer may be served, and with which examples."""
    candidates: list[NearbyEntry]
    elsewhere: list[NearbyEntry]


async def explain(
    pipeline: Pipeline,
    request: ExplainRequest,
    identify: Callable[[list[tuple[bytes, bytes]]], Scope],
    limited: Callable[[list[tuple[bytes, bytes]]], Limit] = lambda _: NO_LIMIT,
) -> Explanation:
    """Walk the line up to the decision, for whoever `identify` says the key is, `limited` as it is.

    Raises InvalidRequest for an empty question or an unknown category, and what `identify` raises.
    """
    body = request.request or {"model": request.model, "messages": [{"role": "user", "content": request.text}]}
    headers = [(b"authorization", b"Bearer " + request.key.encode())] if request.key else []
    if request.category:
        headers.append((b"x-cacheproxy-category", request.category.encode("utf-8", "replace")))
    controls, namespace = read_controls(headers)
    if "cache" in body:
        controls, namespace = read_body_controls(controls, namespace, body["cache"])
        body = {name: value for name, value in body.items() if name != "cache"}
    model = body.get("model")
    asked = model if isinstance(model, str) else ""
    variant = pipeline.parts.resolve(asked).variant(asked)
    query = reader_of(body)(body, replace(identify(headers), namespace=namespace), controls, variant)
    if not query.text.strip():
        raise InvalidRequest("nothing to explain: give a question, or a body whose last message has text")
    journey = pipeline.set_out(query)
    journey.limit = limited(headers)
    outcome = await pipeline.look_up(journey, remember=False)
    candidates = await _candidates(pipeline, outcome)
    considered = await augmentation(pipeline, journey, outcome, body)
    return Explanation(
        outcome=type(outcome).__name__.lower(),
        tier=outcome.tier.value if isinstance(outcome, Hit) else "",
        reason=outcome.reason,
        augmentation=considered,
        candidates=candidates,
        elsewhere=await _elsewhere(pipeline, journey, {near.entry for near in candidates}),
        **_evidence(query, journey, outcome, pipeline.parts.epoch or "", pipeline.parts.budget),
    )


def reader_of(body: Mapping[str, Any]) -> Callable[[Mapping[str, Any], Scope, Controls, bytes], Query]:
    """Return what reads this body: the field that holds the question tells its API."""
    if "messages" not in body and "prompt" in body:
        return read_completion
    if "messages" not in body and "input" in body:
        return read_responses
    return read_chat


def render(explanation: Explanation) -> str:
    """Return an explanation as text, one step a line."""
    e = explanation
    tiers = [name for name, allowed in (("exact", e.exact_allowed), ("semantic", e.semantic_allowed)) if allowed]
    threshold = "none" if e.threshold is None else f"{e.threshold:.4f}"
    lines = [
        f"query      model {e.model or '(none)'}, tenant {e.tenant[:12] or '(no key: anonymous)'}",
        f"traits     {', '.join(e.traits) or 'none'}",
        f"category   {e.category} by {e.category_source}"
        + (f"; {e.second_category} is searched as well, under the stricter rules of both" if e.second_category else "")
        + (f"; margin {e.margin:.2f}" if e.margin is not None else ""),
        f"plan       read {' and '.join(tiers) or 'nothing'}; keep the answer: {'yes' if e.store_allowed else 'no'}"
        + ("; a small model may answer with examples" if e.augment_allowed else "")
        + (f"; because {e.plan_reason}" if e.plan_reason else ""),
        f"threshold  {threshold} for encoder {e.encoder or '(none)'}; entries live {e.ttl_s:g} s",
    ]
    if e.min_probability is not None:
        lines.append(
            f"verified   entries from the threshold on; one is served if its answer is right with a probability of "
            f"{e.min_probability:.3f} or more"
            + (f"; the error budget leaves {e.served_from:.3f}" if (e.served_from or 0.0) > e.min_probability else "")
        )
    if e.category_scores:
        shown = ", ".join(f"{name or '(none of them)'} {score:.2f}" for name, score in e.category_scores.items())
        lines.insert(3, f"near to    {shown}")
    if e.load:
        lines.append(
            f"load       {e.load:.2f}: without it the threshold is {e.base_threshold}, the life {e.base_ttl_s:g} s"
        )
    if e.unseen_text:
        lines.append("long text  its middle is outside the encoder's window and must be equal in a candidate")
    lines += [_line("candidate", near) for near in e.candidates] or ["candidate  none in this caller's partition"]
    lines += [_line("elsewhere", near) for near in e.elsewhere]
    lines += considered_lines(e.augmentation)
    tier = f" ({e.tier})" if e.tier else ""
    lines.append(f"outcome    {e.outcome}{tier}: {e.reason}, decided in {e.lookup_ms:.2f} ms")
    return "\n".join(lines)


def _line(label: str, near: NearbyEntry) -> str:
    line = f"{label}  {near.similarity:.4f}  {near.entry}  {near.verdict}: {near.text[:80]!r}"
    if near.probability is None:
        return line
    steps = "".join(f", {step.name} {step.value:.3g}" for step in near.steps)
    veto = f", forbidden by the rule {near.veto!r}" if near.veto else ""
    return f"{line}\n{'':11}probability {near.probability:.4f}{veto}{steps}"


def _evidence(query: Query, journey: Journey, outcome: Outcome, epoch: str, budget: Budget | None) -> dict[str, Any]:
    plan, embedding = journey.plan, journey.embedding
    found, told, seen = getattr(outcome, "evidence", None), journey.told, journey.seen or journey.told
    return {
        "category": plan.category,
        "category_source": told.source if told else "default",
        "second_category": plan.second,
        "margin": seen.margin if seen else None,
        "category_scores": dict(seen.scores) if seen else {},
        "policy_version": journey.policy.version,
        "load": plan.load,
        "model": query.model,
        "tenant": query.scope.tenant,
        "traits": sorted(trait.value for trait in query.traits),
        "exact_allowed": plan.exact,
        "semantic_allowed": plan.semantic,
        "store_allowed": plan.store,
        "augment_allowed": plan.augment is not None,
        "plan_reason": plan.reason,
        "threshold": plan.threshold if plan.semantic else None,
        "base_threshold": plan.base_threshold if plan.semantic else None,
        "min_probability": plan.min_probability if plan.verify and plan.semantic else None,
        "served_from": budget.least(plan) if budget and plan.verify and plan.semantic else None,
        "ttl_s": plan.ttl_s,
        "base_ttl_s": plan.base_ttl_s,
        "encoder": epoch,
        "unseen_text": bool(embedding and embedding.unseen),
        "similarity": found.similarity if found else None,
        "probability": found.probability if found else None,
        "entry": outcome.entry.id if isinstance(outcome, Hit) else "",
        "lookup_ms": found.lookup_ms if found else 0.0,
    }


async def _candidates(pipeline: Pipeline, outcome: Outcome) -> list[NearbyEntry]:
    found = getattr(outcome, "evidence", None)
    return [await _near(pipeline, judgement) for judgement in (found.judgements if found else ())]


async def _near(pipeline: Pipeline, judgement: Judgement) -> NearbyEntry:
    entry, verified = await _entry(pipeline, judgement.candidate.entry_id), judgement.verified
    return NearbyEntry(
        entry=judgement.candidate.entry_id,
        similarity=judgement.candidate.similarity,
        text=entry.text if entry else "",
        verdict=judgement.reason,
        probability=verified.probability if verified else None,
        veto=verified.veto if verified else "",
        steps=[Step(name=name, value=value) for name, value in verified.steps] if verified else [],
    )


async def _elsewhere(pipeline: Pipeline, journey: Journey, known: set[str]) -> list[NearbyEntry]:
    """Return the nearest entries that this caller's partition does not hold, with what sets them apart."""
    embedder, store = pipeline.parts.embedder, pipeline.parts.store
    if embedder is None:
        return []
    nearest: list[tuple[float, str]] = []  # a heap of the best so far: the store may hold a million
    try:
        embedding = journey.embedding or await embedder.embed(journey.query.text, scope=journey.query.scope.tenant)
        async for partition, entry_id, vector in store.scan(embedder.epoch):
            if entry_id not in known and partition.compatibility != journey.query.compatibility:
                near = float(np.dot(vector, embedding.vector)), entry_id
                if len(nearest) < _NEAREST:
                    heapq.heappush(nearest, near)
                else:
                    heapq.heappushpop(nearest, near)
    except PartUnavailable:
        return []
    found = []
    for similarity, entry_id in sorted(nearest, reverse=True):
        entry = await _entry(pipeline, entry_id)
        if entry is not None:
            same = entry.tenant == journey.query.scope.tenant
            verdict = "another model, parameters or history" if same else "another tenant"
            text = entry.text if same else "(not shown)"
            found.append(NearbyEntry(entry=entry_id, similarity=similarity, text=text, verdict=verdict))
    return found


async def _entry(pipeline: Pipeline, entry_id: str) -> Entry | None:
    try:
        return await pipeline.parts.store.get(entry_id)
    except PartUnavailable:
        return None  # the decision is explained without the entry's text
