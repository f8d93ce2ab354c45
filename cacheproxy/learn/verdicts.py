"""Verdicts: what callers said of served answers. A bad one quarantines an entry for a question, at once and for good.

Each verdict is kept as a labelled pair (the entry's question, the caller's question, same answer or not) in a file of
its own, so that later training and calibration can read it. Where replicas share words (learn/words.py), a word said at
one of them holds at all; its texts stay with the replica that heard it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any

from cacheproxy.datafile import Form, connect, empty_log
from cacheproxy.errors import ConfigError, FeedbackUnavailable, SharedUnavailable
from cacheproxy.filethread import FileThread
from cacheproxy.learn.ledger import Ledger, Pair
from cacheproxy.learn.traces import Trace, meant
from cacheproxy.learn.words import SharedWord, read_word

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    from cacheproxy.learn.words import Words
    from cacheproxy.model import Selector

_TIMEOUT_S = 2.0
_ERASE_TIMEOUT_S = 30.0
_LATER_S = 1e-6
_FORM = Form(
    what="verdicts",
    mark=0x63706662,  # `cpfb`
    version=2,
    pragmas=("journal_mode = WAL", "secure_delete = ON"),
    schema="""
CREATE TABLE verdicts (
    n INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    tenant TEXT NOT NULL,
    entry TEXT NOT NULL,
    question BLOB NOT NULL,
    verdict TEXT NOT NULL,
    category TEXT NOT NULL,
    similarity REAL,
    threshold REAL,
    entry_text TEXT NOT NULL,
    question_text TEXT NOT NULL,
    comment TEXT NOT NULL,
    user TEXT NOT NULL DEFAULT '',
    UNIQUE (tenant, entry, question)
);
""",
    # Version 1 did not overwrite what it deleted: the file is written anew once, without its old pages.
    upgrades={
        1: """
ALTER TABLE verdicts ADD COLUMN user TEXT NOT NULL DEFAULT '';
PRAGMA user_version = 2;
VACUUM;
"""
    },
)


class Word(StrEnum):
    """What a caller can say of an answer."""

    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One word on one serve. `entry_text` and `question_text` are "" where the caller forbade storing."""

    at_s: float
    tenant: str
    entry_id: str
    question: bytes
    word: Word
    category: str
    similarity: float | None
    threshold: float | None
    entry_text: str = field(repr=False)
    question_text: str = field(repr=False)
    comment: str = field(repr=False)
    user: str = ""
    """`Query.user` of the request that was answered, for erasure."""


class Verdicts:
    """The file of verdicts and, in memory, which entries are quarantined for which questions.

    Use it as an async context manager. Of each tenant, entry and question the last word is kept, as many as a `Ledger`
    holds: the file drops what memory drops.
    """

    def __init__(self, path: Path, ledger: Ledger | None = None, words: Words | None = None) -> None:
        """`words`, where replicas share them: `hear` and `reload` must then be called as they change."""
        self._ledger = Ledger() if ledger is None else ledger
        self._words = words
        self._unsaid: dict[Pair, SharedWord] = {}  # what the others were not told, and are to forget
        self._unforgotten: set[Pair] = set()
        self._file = FileThread(path, _FORM, FeedbackUnavailable)

    async def __aenter__(self) -> Verdicts:
        await self._file.open(self._load)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._file.close()

    def __len__(self) -> int:
        """Count the pairs of entry and question with a word on them."""
        return len(self._ledger)

    def quarantined_s(self, tenant: str, entry_id: str, question: bytes) -> float | None:
        """Return when a caller last said that an entry is no answer to a question; None where it may be one."""
        return self._ledger.quarantined_s((tenant, entry_id, question))

    def standing(self, tenant: str, entry_id: str) -> int:
        """Return for how many questions an entry was last called good, minus for how many bad."""
        return self._ledger.standing(tenant, entry_id)

    async def record(self, verdict: Verdict) -> None:
        """Let a verdict take effect at once, then keep it.

        Raises FeedbackUnavailable when it cannot be kept: it then holds until the proxy stops.
        """
        pair = verdict.tenant, verdict.entry_id, verdict.question
        if self._words is not None:
            verdict = replace(verdict, at_s=self._after_all(pair, verdict.at_s))
        dropped = self._ledger.write(pair, good=verdict.word is Word.GOOD, at_s=verdict.at_s)
        if self._words is not None:
            await self._say(self._words, _word_of(verdict))
        await self._file.do(
            partial(_insert, verdict=verdict, dropped=dropped),
            timeout_s=_TIMEOUT_S,
            failure="the verdict holds until the proxy stops, but could not be written; see the log and the disk",
        )

    async def forget(self, selector: Selector, erased: Collection[str] = ()) -> int:
        """Forget what a selector means, and every word on the entries `erased` or on their questions; return how many.

        Nothing of it can be read from the file afterwards. A word has no tags, namespace or model: what is chosen by
        them is forgotten as `erased`. Raises FeedbackUnavailable when the file could not be written, and
        SharedUnavailable while other replicas could read it again; then it must be asked again.
        """
        gone = await self._file.do(
            partial(_erase, selector=selector, erased=frozenset(erased)),
            timeout_s=_ERASE_TIMEOUT_S,
            failure="verdicts could not be erased; see the log and the disk",
        )
        for pair in gone:
            self._ledger.forget(pair)
            self._unsaid.pop(pair, None)
        if self._words is not None:
            self._unforgotten.update(gone)
            await self._words.unsay(self._unforgotten)
            self._unforgotten.clear()
        return len(gone)

    # Where replicas share words

    async def hear(self, raw: bytes) -> None:
        """Take a word that a replica told, this one or another. Raises FeedbackUnavailable where it cannot be kept."""
        word = read_word(raw)
        if word is not None:
            await self._hear_all([word])

    async def reload(self) -> None:
        """Take every word that replicas share, and tell them what they were not told.

        Where they share none at all, it is what this replica knows. Raises FeedbackUnavailable and SharedUnavailable.
        """
        if self._words is None:
            return
        heard = [word async for word in self._words.all()]
        await self._hear_all(heard)
        unsaid = self._unsaid if heard else {word.pair: word for word in await self._known()} | self._unsaid
        for pair, word in list(unsaid.items()):
            await self._words.say(word)
            self._unsaid.pop(pair, None)

    async def _say(self, words: Words, word: SharedWord) -> None:
        try:
            await words.say(word)
        except SharedUnavailable:  # told with the next `reload`
            self._unsaid[word.pair] = word

    async def _hear_all(self, words: Iterable[SharedWord]) -> None:
        news = [word for word in words if self._is_news(word)]
        dropped: list[Pair] = []
        for word in news:
            dropped += self._ledger.write(word.pair, good=word.good, at_s=word.at_s)
        if news:
            await self._file.do(
                partial(_hear, words=news, dropped=dropped),
                timeout_s=_ERASE_TIMEOUT_S,
                failure="words of other replicas hold until the proxy stops, but could not be written; see the disk",
            )

    def _is_news(self, word: SharedWord) -> bool:
        before = self._ledger.said(word.pair)
        if before is None:
            return True
        good, at_s = before
        return word.at_s > at_s or (word.at_s == at_s and good and not word.good)

    def _after_all(self, pair: Pair, at_s: float) -> float:
        """Return when a word is said: after what it replaces, whatever another replica's clock says."""
        before = self._ledger.said(pair)
        return at_s if before is None else max(at_s, before[1] + _LATER_S)

    async def _known(self) -> list[SharedWord]:
        failure = "verdicts could not be read; see the log and the disk"
        return await self._file.do(_read_words, timeout_s=_ERASE_TIMEOUT_S, failure=failure)

    def _load(self, connection: sqlite3.Connection) -> None:
        dropped: list[Pair] = []  # what words pushed out whose own writing failed
        rows = connection.execute("SELECT tenant, entry, question, verdict, at FROM verdicts ORDER BY n")
        for tenant, entry_id, question, word, at_s in rows:
            dropped += self._ledger.write((tenant, entry_id, question), good=word == Word.GOOD, at_s=at_s)
        with connection:
            _drop(connection, dropped)


def _insert(connection: sqlite3.Connection, verdict: Verdict, dropped: Iterable[Pair]) -> None:
    row = (
        verdict.at_s,
        verdict.tenant,
        verdict.entry_id,
        verdict.question,
        verdict.word.value,
        verdict.category,
        verdict.similarity,
        verdict.threshold,
        verdict.entry_text,
        verdict.question_text,
        verdict.comment,
        verdict.user,
    )
    with connection:
        connection.execute(
            "INSERT OR REPLACE INTO verdicts (at, tenant, entry, question, verdict, category, similarity,"
            " threshold, entry_text, question_text, comment, user) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        _drop(connection, dropped)


def _word_of(verdict: Verdict) -> SharedWord:
    return SharedWord(
        at_s=verdict.at_s,
        tenant=verdict.tenant,
        entry_id=verdict.entry_id,
        question=verdict.question,
        good=verdict.word is Word.GOOD,
        category=verdict.category,
        user=verdict.user,
    )


def _hear(connection: sqlite3.Connection, words: Iterable[SharedWord], dropped: Iterable[Pair]) -> None:
    """Keep words of other replicas: without similarity and texts, so that they are no pairs to learn from."""
    rows = (
        (
            word.at_s,
            word.tenant,
            word.entry_id,
            word.question,
            (Word.GOOD if word.good else Word.BAD).value,
            word.category,
            word.user,
        )
        for word in words
    )
    with connection:
        connection.executemany(
            "INSERT OR REPLACE INTO verdicts (at, tenant, entry, question, verdict, category, user,"
            " similarity, threshold, entry_text, question_text, comment) VALUES (?, ?, ?, ?, ?, ?, ?,"
            " NULL, NULL, '', '', '')",
            rows,
        )
        _drop(connection, dropped)


def _read_words(connection: sqlite3.Connection) -> list[SharedWord]:
    rows = connection.execute("SELECT at, tenant, entry, question, verdict, category, user FROM verdicts")
    return [
        SharedWord(
            at_s=at_s,
            tenant=tenant,
            entry_id=entry_id,
            question=question,
            good=word == Word.GOOD,
            category=category,
            user=user,
        )
        for at_s, tenant, entry_id, question, word, category, user in rows
    ]


def _erase(connection: sqlite3.Connection, selector: Selector, erased: frozenset[str]) -> list[Pair]:
    with connection:
        rows = connection.execute("SELECT n, at, tenant, entry, question, category, user FROM verdicts")
        gone: dict[int, Pair] = {}
        for n, *told in rows:
            trace = Trace(*told)
            if meant(selector, erased, trace):
                gone[n] = trace.tenant, trace.entry_id, trace.question
        connection.executemany("DELETE FROM verdicts WHERE n = ?", ((n,) for n in gone))
    empty_log(connection)
    return list(gone.values())


def _drop(connection: sqlite3.Connection, pairs: Iterable[Pair]) -> None:
    connection.executemany("DELETE FROM verdicts WHERE tenant = ? AND entry = ? AND question = ?", pairs)


def pairs(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the verdicts on similarity hits as `cacheproxy eval pairs` reads them: a, b, label, category.

    Raises ConfigError for a file that is not there or not one of verdicts.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no verdicts yet; callers give them with POST /v1/cache/feedback")
    with contextlib.closing(connect(path, _FORM)) as connection:
        rows = connection.execute(
            "SELECT entry_text, question_text, verdict, category, similarity FROM verdicts"
            " WHERE similarity IS NOT NULL AND entry_text != '' AND question_text != '' ORDER BY n"
        )
        for entry_text, question_text, word, category, similarity in rows:
            yield {
                "a": entry_text,
                "b": question_text,
                "label": int(word == Word.GOOD),
                "category": category,
                "similarity": similarity,
            }
