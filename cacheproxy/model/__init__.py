"""The nouns: frozen values that every room shares, and nothing that acts. Their names are imported from here.

Similarities are cosines in [-1, 1], higher is closer. Times are seconds since the epoch (`_s`) unless a name says
otherwise. No repr shows prompt text or an answer.
"""

from cacheproxy.model.entry import (
    ALIAS_TAG,
    COMMON_TAG,
    CONSENT_TAG,
    OPERATOR,
    PLAIN_STREAM,
    PRINCIPAL_TAG,
    SHARED_TAG,
    Entry,
    Holding,
    Quota,
    Reply,
    Selector,
    entry_id,
)
from cacheproxy.model.likeness import FARTHER, Asking, Candidate, Embedding, Partition, Verification
from cacheproxy.model.outcome import Augment, Bypass, Hit, Judgement, Looked, Lookup, Miss, Offload, Outcome, Stale
from cacheproxy.model.plan import Augmenting, Destination, Plan, Shared, Staleness
from cacheproxy.model.query import Classification, Common, Controls, Query, Scope, Tier, Trait, Wire

__all__ = [
    "ALIAS_TAG",
    "COMMON_TAG",
    "CONSENT_TAG",
    "FARTHER",
    "OPERATOR",
    "PLAIN_STREAM",
    "PRINCIPAL_TAG",
    "SHARED_TAG",
    "Asking",
    "Augment",
    "Augmenting",
    "Bypass",
    "Candidate",
    "Classification",
    "Common",
    "Controls",
    "Destination",
    "Embedding",
    "Entry",
    "Hit",
    "Holding",
    "Judgement",
    "Looked",
    "Lookup",
    "Miss",
    "Offload",
    "Outcome",
    "Partition",
    "Plan",
    "Query",
    "Quota",
    "Reply",
    "Scope",
    "Selector",
    "Shared",
    "Stale",
    "Staleness",
    "Tier",
    "Trait",
    "Verification",
    "Wire",
    "entry_id",
]
