"""Decide: whether one candidate may be served. Pure; every answer carries its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.model import PLAIN_STREAM, Judgement
from cacheproxy.policy.freshness import freshness
from cacheproxy.policy.whole import calls_tools
from cacheproxy.query.variant import variant

if TYPE_CHECKING:
    from cacheproxy.model import Candidate, Embedding, Entry, Partition, Plan, Query, Verification


def near_enough(candidate: Candidate, plan: Plan) -> bool:
    """Whether a similarity reaches the plan's threshold. Written so that NaN never does."""
    return candidate.similarity >= plan.threshold


def exact_reason(entry: Entry, query: Query, plan: Plan, now_s: float) -> str:
    """Return why an entry found by fingerprint may not be served, or ""."""
    partition = entry.partition
    if entry.fingerprint != query.fingerprint or entry.tenant != query.scope.tenant:
        return "scope_violation"
    if partition.compatibility != query.compatibility:
        return "scope_violation"
    if partition.category != plan.category:
        return "other_category"
    return _unsuitable(entry, query, plan, now_s)


def judge(
    candidate: Candidate,
    entry: Entry | None,
    *,
    query: Query,
    plan: Plan,
    partition: Partition,
    embedding: Embedding,
    now_s: float,
    verified: Verification | None = None,
) -> Judgement:
    """Judge a candidate on its document, read just now; `entry` is None when there is none.

    Where the plan wants it verified and nothing else forbids it, it is served only once `verified` is there and says
    so: "not_verified" asks for it. Scope, compatibility, category and epoch are checked again here although the index
    was searched by them: the index is a hint.
    """
    reason = _refusal(candidate, entry, query, plan, partition, embedding, now_s) or _doubt(verified, plan)
    if reason or entry is None:
        return Judgement(candidate=candidate, served=False, reason=reason, verified=verified)
    stale = freshness(entry, plan, now_s).stale
    return Judgement(candidate=candidate, served=True, reason="similar", stale=stale, verified=verified)


def _doubt(verified: Verification | None, plan: Plan) -> str:
    """Return why a verifier's word is not enough to serve, or "". Written so that NaN never is."""
    if not plan.verify:
        return ""
    if verified is None:
        return "not_verified"
    if verified.veto:
        return f"veto_{verified.veto}"
    return "" if verified.probability >= plan.min_probability else "improbable"


def _refusal(
    candidate: Candidate,
    entry: Entry | None,
    query: Query,
    plan: Plan,
    partition: Partition,
    embedding: Embedding,
    now_s: float,
) -> str:
    if not near_enough(candidate, plan):
        return "below_threshold"
    if entry is None:
        return "document_missing"
    if entry.tenant != query.scope.tenant or entry.partition.compatibility != partition.compatibility:
        return "scope_violation"
    if entry.partition != partition:
        return "other_category" if entry.partition.category != partition.category else "other_epoch"
    if len(entry.chain) != len(query.chain) or not (plan.verify or entry.chain == query.chain):
        return "other_context"
    if entry.unseen != embedding.unseen:
        return "unseen_text_differs"
    if entry.origin == "augmented":  # for the very same request; the index may know an earlier answer to it
        return "augmented"
    return _unsuitable(entry, query, plan, now_s)


def _unsuitable(entry: Entry, query: Query, plan: Plan, now_s: float) -> str:
    if variant(query, entry.vary) != entry.variant:
        return "vary"
    if not plan.keep_tool_calls and calls_tools(query.dialect, entry.reply.body):
        return "tool_calls"
    if entry.reply.source == PLAIN_STREAM and (query.wire.include_usage or not query.wire.stream):
        return "no_usage"
    if entry.origin == "augmented" and not plan.augmented:
        return "augmented"
    return freshness(entry, plan, now_s).reason
