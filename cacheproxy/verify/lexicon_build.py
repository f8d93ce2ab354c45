"""Extracts WordNet's antonyms, synonyms and word classes into the one data file that `lexicon.py` reads.

    python -m cacheproxy.verify.lexicon_build /usr/share/wordnet

The directory is that of Debian's package `wordnet-base` (or `dict/` of Princeton's WordNet 3.0). The same input gives
the same bytes. The format of the `data.*`, `index.*` and `*.exc` files is described in wndb(5WN).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import struct
import sys
import zlib
from collections import defaultdict
from pathlib import Path

import msgspec

from cacheproxy.verify.lexicon import DATA, MAGIC, Header, Payload

_PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_WORD = re.compile(r"[a-z][a-z'-]{0,30}\Z")
_SENSES = 4
_SHORT = 2
"""Letters of names that are rather other words (OR, ME, IN)."""
_KINDS = 3
_NEGATING = ("un", "in", "im", "il", "ir", "dis", "non", "non-", "de", "mis")
_SHALLOW = 4
"""Kinds fewer steps below the root than this are too wide to make two words alternatives of each other."""

Sense = tuple[str, int]


class _Wordnet:
    """WordNet's files in memory: senses of a lemma in order of frequency, and the pointers of a synset."""

    def __init__(self, folder: Path) -> None:
        """Read all of it; raises OSError where a file is missing."""
        self.senses: dict[tuple[str, str], list[int]] = {}
        self.counted: dict[tuple[str, str], int] = {}
        self.members: dict[Sense, list[str]] = {}
        self.pointers: dict[Sense, list[tuple[str, Sense, int, int]]] = {}
        self.exceptions: dict[str, list[tuple[str, str]]] = {}
        for part, name in _PARTS.items():
            self._read_data(part, folder / f"data.{name}")
            self._read_index(part, folder / f"index.{name}")
            lines = (folder / f"{name}.exc").read_text("utf-8").splitlines()
            self.exceptions[part] = [(parts[0], parts[1]) for parts in map(str.split, lines) if len(parts) > 1]

    def _read_index(self, part: str, path: Path) -> None:
        for line in _rows(path):
            fields = line.split()
            count, pointers = int(fields[2]), int(fields[3])
            self.counted[fields[0], part] = int(fields[5 + pointers])
            self.senses[fields[0], part] = [int(offset) for offset in fields[-count:]]

    def _read_data(self, part: str, path: Path) -> None:
        for line in _rows(path):
            fields = line.partition(" | ")[0].split()
            words = int(fields[3], 16)
            sense = (part, int(fields[0]))
            self.members[sense] = [re.sub(r"\(.*\)$", "", fields[4 + 2 * at]) for at in range(words)]
            rest = fields[4 + 2 * words :]
            self.pointers[sense] = [
                (
                    rest[at],
                    (rest[at + 2].replace("s", "a"), int(rest[at + 1])),
                    int(rest[at + 3][:2], 16),
                    int(rest[at + 3][2:], 16),
                )
                for at in range(1, 1 + 4 * int(rest[0]), 4)
            ]

    def linked(self, symbol: str) -> set[tuple[tuple[str, str], tuple[str, str]]]:
        """Return pairs of (lemma, part of speech) that a lexical pointer joins."""
        pairs = set()
        for sense, pointers in self.pointers.items():
            for kind, target, source_word, target_word in pointers:
                if kind == symbol and source_word and target_word:
                    left = self.members[sense][source_word - 1].lower()
                    right = self.members[target][target_word - 1].lower()
                    pairs.add(((left, sense[0]), (right, target[0])))
        return pairs

    def kinds(self, sense: Sense) -> list[Sense]:
        """Return what this sense is a kind or an instance of, without what is too wide to compare by."""
        above = [target for symbol, target, _, _ in self.pointers[sense] if symbol in {"@", "@i"}]
        return [kind for kind in above if self._depth(kind) >= _SHALLOW or sense[0] == "v"]

    def _depth(self, sense: Sense) -> int:
        steps = 0
        while above := [target for symbol, target, _, _ in self.pointers[sense] if symbol in {"@", "@i"}]:
            sense = above[0]
            steps += 1
        return steps


def _rows(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8").splitlines() if not line.startswith("  ")]


def _antonyms(net: _Wordnet) -> set[tuple[str, str]]:
    """Return antonyms and what both sides derive in the same way (legal, illegal: legality, illegality)."""
    direct = net.linked("!")
    derived: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for left, right in net.linked("+"):
        derived[left].add(right)
    for adverb, adjective in net.linked("\\"):
        if adverb[1] == "r":
            derived[adjective].add(adverb)
    pairs = {(left[0], right[0]) for left, right in direct}
    for left, right in direct:
        for one, part in derived[left]:
            pairs |= {
                (one, other)
                for other, its in derived[right]
                if its == part and _same_suffix(left[0], one, right[0], other)
            }
    return {
        (min(one, other), max(one, other))
        for one, other in pairs
        if one != other and _WORD.match(one) and _WORD.match(other)
    }


def _same_suffix(left: str, one: str, right: str, other: str) -> bool:
    """Whether `one` was made of `left` as `other` was made of `right`: by the same last two letters at least."""
    return (one == left and other == right) or (one != left and other != right and one[-2:] == other[-2:])


def _negated(net: _Wordnet, antonyms: set[tuple[str, str]], words: set[str]) -> dict[str, str]:
    """Return words that say the contrary of a shorter word by a prefix: unhappy: happy; unlock: lock."""
    found = {}
    for pair in antonyms:
        short, long = sorted(pair, key=len)
        if any(long == prefix + short for prefix in _NEGATING):
            found[long] = short
    for word in words:
        rest = word[2:]
        verbs = (word, "v") in net.senses and (rest, "v") in net.senses
        adjectives = (word, "a") in net.senses and (rest, "a") in net.senses
        if word.startswith("un") and len(rest) > 2 and (verbs or adjectives):
            found.setdefault(word, rest)
    return found


def _regions(net: _Wordnet) -> dict[str, str]:
    """Return names of countries and their adjectives, each with the country's first name."""
    found = {}
    for sense, pointers in net.pointers.items():
        if sense[0] != "n" or not any(symbol == "@i" and _is_country(net, target) for symbol, target, _, _ in pointers):
            continue
        first = next((member for member in net.members[sense] if "_" not in member), net.members[sense][0]).lower()
        names = [member for member in net.members[sense] if len(member) > _SHORT or member.lower() in {"us", "uk"}]
        for member in names:
            found[member.lower().replace("_", " ").replace(".", "")] = first.replace("_", " ")
    for adjective, noun in net.linked("\\"):
        if adjective[1] == "a" and noun[0].replace("_", " ") in found:
            found[adjective[0]] = found[noun[0].replace("_", " ")]
    return found


def _is_country(net: _Wordnet, sense: Sense) -> bool:
    members = net.members[sense]
    return ("country" in members and "land" in members) or any(
        _is_country(net, above) for symbol, above, _, _ in net.pointers[sense] if symbol == "@"
    )


def build(folder: Path) -> bytes:
    """Return the data file's bytes for WordNet's files in `folder`."""
    net = _Wordnet(folder)
    antonyms = _antonyms(net)
    opposed = {word for pair in antonyms for word in pair}
    numbered: dict[Sense, int] = {}
    words: dict[str, bytes] = {}
    for word in sorted({lemma for lemma, _ in net.senses if _WORD.match(lemma)}):
        parts = [part for part in _PARTS if (word, part) in net.senses]
        senses = [(part, offset) for part in parts for offset in net.senses[word, part][:_SENSES]]
        shared = any(len(net.members[sense]) > 1 for sense in senses)
        if not (shared or word in opposed or any(net.counted[word, part] for part in parts)):
            continue
        mine = [numbered.setdefault(sense, len(numbered)) for sense in senses]
        kinds = [
            kind
            for part in "nv"
            for offset in net.senses.get((word, part), [])[:2]
            for kind in net.kinds((part, offset))
        ]
        above = [numbered.setdefault(kind, len(numbered)) for kind in dict.fromkeys(kinds)][:_KINDS]
        words[word] = struct.pack(
            f"<BB{len(mine) + len(above)}I", sum(1 << "nvar".index(part) for part in parts), len(mine), *mine, *above
        )
    irregular = {
        form: lemma
        for part in "rnav"
        for form, lemma in net.exceptions[part]
        if _WORD.match(form) and lemma in words and form != lemma
    }
    payload = Payload(
        words=words,
        antonyms=sorted(antonyms),
        negated=dict(sorted(_negated(net, antonyms, set(words)).items())),
        irregular=dict(sorted(irregular.items())),
        regions=dict(sorted(_regions(net).items())),
    )
    packed = zlib.compress(msgspec.msgpack.encode(payload), 9)
    header = Header(source="Princeton WordNet", version="3.0", sha256=hashlib.sha256(packed).hexdigest())
    return MAGIC + msgspec.json.encode(header) + b"\n" + packed


def main(arguments: list[str]) -> int:
    """Write the data file; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m cacheproxy.verify.lexicon_build", description=f"Write {DATA} from WordNet's files."
    )
    parser.add_argument("folder", type=Path, metavar="DIRECTORY-OF-WORDNET", help="as /usr/share/wordnet")
    folder: Path = parser.parse_args(arguments).folder
    try:
        data = build(folder)
    except OSError as exc:
        parser.error(f"{exc.filename}: {exc.strerror}; name a directory that holds WordNet's files, as data.noun")
    DATA.write_bytes(data)
    sys.stdout.write(f"{DATA}: {len(data)} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
