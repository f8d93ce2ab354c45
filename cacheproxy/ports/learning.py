"""What stands beside the line and learns: what callers said, what was decided, what labels leave to be risked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cacheproxy.model import Entry, Hit, Looked, Lookup, Miss, Plan, Query, Reply, Verification
    from cacheproxy.ports.backends import Call
    from cacheproxy.ports.dialect import Dialect


class Feedback(Protocol):
    """What callers said of served answers; everything here is in memory and at once."""

    def quarantined(self, entry: Entry, question: bytes) -> bool:
        """Whether a caller said that this entry is no answer to this question (an exact fingerprint, 32 bytes).

        For the entry's own question that holds of answers older than the word; for any other, of all.
        """
        ...

    def served(self, response_id: str, query: Query, entry: Entry, evidence: Lookup, untaught: str = "unknown") -> None:
        """Remember that a question was answered from an entry; without a similarity in `evidence` it was its own.

        `untaught` is as `Looked.untaught`.
        """
        ...

    def kept(self, response_id: str, query: Query, entry: Entry) -> None:
        """Remember that the backend's answer of this id became an entry."""
        ...


class LookupLog(Protocol):
    """What was decided, kept in memory to tell later what another threshold would have done."""

    def note(self, looked: Looked) -> None:
        """Take one decision into account, at once. Never raises."""
        ...

    def filled(self, category: str, model: str, fill_ms: float) -> None:
        """Take into account how long the backend took to answer a miss. Never raises."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of a miss: the answer that was kept, or None, and the decision as it was logged."""

    query: Query
    plan: Plan
    miss: Miss
    reply: Reply | None
    call: Call
    looked: Looked | None = None


class Budget(Protocol):
    """What the labels of a category leave to be risked; everything here is in memory and at once."""

    def allows(self, plan: Plan, entry_id: str, verified: Verification) -> bool:
        """Whether an entry may be served, as far as the error budget goes. Never raises."""
        ...

    def least(self, plan: Plan) -> float:
        """Return the lowest probability that is served of an entry without labels. Never raises."""
        ...

    def saw(self, plan: Plan, verified: Verification) -> None:
        """Count a candidate that was verified without a veto: decisions to come are planned by such. Never raises."""
        ...


class Learning(Protocol):
    """Finds out, beside the answers, whether what was served was right. Nothing here waits or raises."""

    def draws(self, query: Query, plan: Plan, hit: Hit) -> bool:
        """Whether this hit is one of those to be compared with a fresh answer."""
        ...

    def fetch(self, query: Query, plan: Plan, hit: Hit, call: Call, dialect: Dialect) -> None:
        """Have the backend answer this hit's question, with its caller's own credentials, and compare both answers."""
        ...

    def answered(self, answered: Answered) -> None:
        """Compare the backend's answer with that of the candidate that was refused, where there is one to learn of."""
        ...

    async def approves(self, query: Query, plan: Plan, miss: Miss, call: Call) -> str:
        """Return the entry of the grey zone that a judge finds right for the question, "" for none, within a deadline.

        Never raises: no word is no approval.
        """
        ...


class Sharing(Protocol):
    """Lets an answer that several tenants got be served to others. Nothing here waits or raises."""

    def kept(self, query: Query, plan: Plan, entry: Entry) -> None:
        """Take note of an answer that was just kept."""
        ...
