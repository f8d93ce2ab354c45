"""Teach: what a similarity model may be trained on, by category, caller and form of a question. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Plan, Query
    from cacheproxy.policy.active import Policy
    from cacheproxy.policy.pack import Category

NO_CONSENT = "no_consent"


def may_train(rules: Category | None) -> bool:
    """Whether a category lets its questions be trained on: never one that is not cached, or that is gone."""
    return rules is not None and rules.allow_caching and rules.train == "allowed"


def untaught(query: Query, plan: Plan) -> str:
    """Return why nothing may be trained on a question, "" where it may.

    That its caller did not consent is said only where nothing else speaks against it: an operator may answer for that.
    """
    if query.controls.no_store or not plan.store:
        return "no_store"
    if not plan.trains:
        return "category"
    if query.chain or query.earlier:
        return "conversation"  # what is said of two questions here holds in this conversation only
    if not query.text.strip() or query.inputs:
        return "no_text"
    return "" if query.scope.consents else NO_CONSENT


def barred(policy: Policy, asked: Query, vector: NDArray[np.float32]) -> bool:
    """Whether a question, with its unit vector of shape (dim,), is or may be of a category that never trains.

    By the policy in force, whatever an earlier one told of it.
    """
    names = [policy.rules.claim(asked)]
    if policy.classify is not None:
        seen = policy.classify(vector)
        if seen.source == "unknown":
            return True
        names += [seen.category, seen.second]
    return any(name and not may_train(policy.pack.categories.get(name)) for name in names)
