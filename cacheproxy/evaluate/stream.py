"""`eval stream`: questions in the order they were asked, through the real line, answered by an oracle."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.errors import ConfigError, PackError
from cacheproxy.evaluate.lines import read_rows
from cacheproxy.evaluate.progress import progress
from cacheproxy.evaluate.replay import Asked, KnownVectors, answer_of, open_replay
from cacheproxy.evaluate.vectors import embed_texts, remembering
from cacheproxy.model import Bypass, Hit, Miss, Tier
from cacheproxy.policy.calibrate import Interval, ratio, wilson
from cacheproxy.policy.prepare import prepared

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from cacheproxy import settings
    from cacheproxy.evaluate.replay import Replay
    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.model import Outcome
    from cacheproxy.policy.pack import Pack

_FORM = '{"text": text, "answer_id": id, "category"?: name, "t"?: seconds}'


class _Row(msgspec.Struct):
    text: str
    answer_id: str | int
    category: str | None = None
    t: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a stream; `at_s` is seconds since its start, the last one's where the line says none."""

    asked: Asked
    at_s: float


class StreamScore(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a stream's questions. An undefined ratio (0/0) is None.

    A hit is false when its entry holds another answer than the question's own. It is stale, too, when the right answer
    is known to have taken that one's place: some question had the one first and the other later. `repeated` questions
    have an answer that was given before: a perfect cache without limits would hit these and no others. `hit_rate` is
    hits / n, `false_hit_rate` false hits / hits, `error_rate` false hits / n. `evictions` count the entries that went
    before their time: because the store was full, or their category or tenant held too much of it.
    """

    n: int
    hits: int
    false_hits: int
    stale_hits: int
    evictions: int
    exact_hits: int
    bypasses: int
    repeated: int
    hit_rate: float | None
    false_hit_rate: float | None
    error_rate: float | None


class StreamIntervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % Wilson intervals; None where the ratio is undefined. They take questions for independent of each other."""

    hit_rate: Interval | None
    false_hit_rate: Interval | None
    error_rate: Interval | None


class CategoryScore(StreamScore, frozen=True, kw_only=True):
    """The same of one category, with its intervals."""

    intervals: StreamIntervals


class StreamReport(StreamScore, frozen=True, kw_only=True):
    """What `eval stream --json` prints."""

    encoder: str
    policies: str
    by_category: dict[str, CategoryScore]
    intervals: StreamIntervals


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts as questions pass."""

    n: int = 0
    hits: int = 0
    false_hits: int = 0
    stale_hits: int = 0
    exact_hits: int = 0
    bypasses: int = 0
    repeated: int = 0

    def count(self, outcome: Outcome, *, repeated: bool, false: bool, stale: bool) -> None:
        """Count one question."""
        self.n += 1
        self.repeated += repeated
        self.bypasses += isinstance(outcome, Bypass)
        if isinstance(outcome, Hit):
            self.hits += 1
            self.exact_hits += outcome.tier is Tier.EXACT
            self.false_hits += false
            self.stale_hits += stale

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Return the sum of several."""
        total = cls()
        for tally in tallies:
            for name, count in asdict(tally).items():
                setattr(total, name, getattr(total, name) + count)
        return total


class Truth:
    """Which answers were right once, learnt from the stream as it passes."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._of_text: dict[str, list[str]] = {}
        self._replaced: set[tuple[str, str]] = set()

    def take(self, asked: Asked) -> bool:
        """Take a question with its right answer; return whether that answer was given before."""
        repeated = asked.answer_id in self._given
        self._given.add(asked.answer_id)
        answers = self._of_text.setdefault(asked.text, [])
        if asked.answer_id in answers:
            answers.remove(asked.answer_id)
        self._replaced.update((old, asked.answer_id) for old in answers)
        self._replaced.difference_update((asked.answer_id, old) for old in answers)
        answers.append(asked.answer_id)
        return repeated

    def superseded(self, served: str, right: str) -> bool:
        """Whether the right answer has taken the place of the one that was served."""
        return (served, right) in self._replaced


async def evaluate_stream(
    file: Path,
    pack: Pack,
    encoder: TextEncoder,
    cache_dir: Path | None,
    config: settings.Settings,
    *,
    category: str | None = None,
) -> StreamReport:
    """Replay a stream with the store's caps of these settings, and compare what was served with what was right.

    A line's own category counts when the pack has it; else each question is classified as the proxy would. `category`
    overrides both. Raises ConfigError for a bad file, PackError for an unknown `category`.
    """
    if category is not None and category not in pack.categories:
        raise PackError(f"pack {pack.name}: no category {category!r}; known: {', '.join(pack.categories)}")
    items = read_stream(file)
    known = embed_texts((item.asked.text for item in items), encoder, cache_dir)
    policy = prepared(pack, remembering(encoder, cache_dir))
    async with open_replay(lambda: policy, KnownVectors(known, encoder.fingerprint), config) as replay:
        tallies = await _replay(replay, items, pack, category)
        evictions = replay.evictions
    by_category = {name: tallies[name] for name in sorted(tallies)}
    return StreamReport(
        **_score(Tally.total(by_category.values()), sum(evictions.values())),
        encoder=encoder.fingerprint,
        policies=pack.name,
        by_category={
            name: CategoryScore(**_score(tally, evictions.get(name, 0)), intervals=intervals(tally))
            for name, tally in by_category.items()
        },
        intervals=intervals(Tally.total(by_category.values())),
    )


def read_stream(file: Path) -> list[Item]:
    """Read every question of a stream, at least one. Raises ConfigError as `file:line: what is wrong`.

    Time never goes back: a moment before the last one counts as that.
    """
    items: list[Item] = []
    at_s = 0.0
    for _, row in read_rows(file, _Row, _FORM):
        at_s = max(at_s, row.t) if row.t is not None else at_s
        asked = Asked(text=row.text, answer_id=str(row.answer_id), category=row.category or "")
        items.append(Item(asked=asked, at_s=at_s))
    if not items:
        raise ConfigError(f"{file}: holds no question; each line must be {_FORM}")
    return items


async def _replay(replay: Replay, items: Sequence[Item], pack: Pack, category: str | None) -> dict[str, Tally]:
    """Ask every question; return the tallies by the category asked for, or the one that policy told."""
    truth, tallies = Truth(), dict[str, Tally]()
    with progress("replaying", len(items)) as advance:
        for item in items:
            asked = item.asked
            named = category or (asked.category if asked.category in pack.categories else "")
            journey, outcome = await replay.look_up(replace(asked, category=named), item.at_s)
            repeated = truth.take(asked)
            served = answer_of(outcome.entry) if isinstance(outcome, Hit) else asked.answer_id
            tally = tallies.setdefault(category or asked.category or outcome.category, Tally())
            tally.count(
                outcome,
                repeated=repeated,
                false=served != asked.answer_id,
                stale=truth.superseded(served, asked.answer_id),
            )
            if isinstance(outcome, Miss):
                await replay.answer(journey, outcome, asked, item.at_s)
            advance(1)
    return tallies


def _score(tally: Tally, evictions: int) -> dict[str, Any]:
    return {
        **asdict(tally),
        "evictions": evictions,
        "hit_rate": ratio(tally.hits, tally.n),
        "false_hit_rate": ratio(tally.false_hits, tally.hits),
        "error_rate": ratio(tally.false_hits, tally.n),
    }


def intervals(tally: Tally) -> StreamIntervals:
    """Return the intervals of a tally's ratios."""
    return StreamIntervals(
        hit_rate=wilson(tally.hits, tally.n),
        false_hit_rate=wilson(tally.false_hits, tally.hits),
        error_rate=wilson(tally.false_hits, tally.n),
    )
