"""The Protocols behind which everything stands that can block, fail or be swapped. Their names are imported from here.

Every implementation passes the Protocol's contract suite in tests/contract. A failing part raises its `PartUnavailable`
leaf; the pipeline turns that into a miss. Cancelling any awaited call is safe and leaves the part usable.
"""

from cacheproxy.ports.backends import HOP_BY_HOP, OWN_PREFIX, Answer, Call, SmallModel, TokenCounter, Upstream
from cacheproxy.ports.clock import Clock
from cacheproxy.ports.dialect import Dialect, Fold
from cacheproxy.ports.flights import Elsewhere, Turn
from cacheproxy.ports.heads import Change, Heads, HeadTold, Progress
from cacheproxy.ports.learning import Answered, Budget, Feedback, Learning, LookupLog, Sharing
from cacheproxy.ports.replicas import Acknowledgement, Replicas, ReplicaState
from cacheproxy.ports.similar import Embedder, VectorIndex, Verifier
from cacheproxy.ports.store import EntryCatalogue, EntryStore, Page, PiiGate

__all__ = [
    "HOP_BY_HOP",
    "OWN_PREFIX",
    "Acknowledgement",
    "Answer",
    "Answered",
    "Budget",
    "Call",
    "Change",
    "Clock",
    "Dialect",
    "Elsewhere",
    "Embedder",
    "EntryCatalogue",
    "EntryStore",
    "Feedback",
    "Fold",
    "HeadTold",
    "Heads",
    "Learning",
    "LookupLog",
    "Page",
    "PiiGate",
    "Progress",
    "ReplicaState",
    "Replicas",
    "Sharing",
    "SmallModel",
    "TokenCounter",
    "Turn",
    "Upstream",
    "VectorIndex",
    "Verifier",
]
