"""The words of a text as they stand: found, in lower case, contractions opened.

Splitting is linear in the text and never raises; of a long text only both ends are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cacheproxy.verify import lexicon
from cacheproxy.verify.vocabulary import ASKING, CONTRACTIONS, ENDINGS, SMALL

_EDGE = 2_000
"""Characters read at each end of a text."""
_MOST_WORDS = 600

_TOKEN = re.compile(
    r"""
    [ ]?(?:
    (?P<plain>[A-Za-z]{1,60}(?=[\s?!,;]|\Z))
  | `(?P<tick>[^`\n]{1,200})`
  | (?P<url>(?:https?://|www\.)[^\s<>"']{1,300})
  | (?P<mail>[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{1,64})
  | (?P<flag>(?<![\w-])--?[A-Za-z][\w-]{0,40})
  | (?P<path>(?<![\w/])(?:~|\.{1,2})?/[\w.@~-]{1,80}(?:/[\w.@~-]{0,80}){0,20})
  | (?P<call>[A-Za-z_]\w{0,60}(?:(?:\.|::|->)[A-Za-z_]\w{0,60}){0,8}\(\)?)
  | (?P<file>\.?[A-Za-z][\w-]{0,60}\.(?:py|js|ts|tsx|jsx|java|cpp|c|h|cs|go|rs|rb|php|sh|sql|json|ya?ml
      |toml|xml|csv|txt|md|html?|css|pdf|docx?|xlsx?|ini|cfg|conf|log|env|lock|exe|dll|so|jar|net|io|com|org)\b)
  | (?P<snake>[A-Za-z]\w{0,60}_\w{1,60}|_\w{1,60}|[a-z]{1,30}(?:::|->)\w{1,60}
      |[a-z_]\w{1,60}(?:\.[a-z_]\w{1,60}){1,8})
  | (?P<number>[$€£¥₹]?\d(?:[\d,.:/]|-(?=\d)){0,30}(?<![,.:/-])(?:%|[^\W\d_]{1,12}(?![\w]))?(?!\w))
  | (?P<dotted>\bU\.(?:S(?:\.A)?|K)\b\.?|(?<![^\W\d_])[aApP]\.[mM]\b\.?)
  | (?P<mixed>[^\W_]{1,40}\d[\w-]{0,40}|[Cc](?:\+\+|\#)|[Ff]\#|\.NET)
  | (?P<word>[^\W\d_]{1,60}(?:(?:['\u2019]|-(?=[^\W\d_]))[^\W\d_]{1,60}){0,6})
  | (?P<quote>["“”])
  | (?P<end>[?!.;:,]|->|→|\n)
    )
    """,
    re.VERBOSE,
)
"""A `plain` word is nothing else, which spares most words the search for what else they may begin; the space before it
is taken along, which spares the search at the space."""
_CODE = frozenset("tick url mail flag path call snake".split())
_BRANDS = re.compile(r"i[A-Z][a-z]+|e[A-Z][a-z]+|macOS|iOS|[A-Z]+s?|iCloud")
_CAMEL = re.compile(r"[a-z]+(?:[A-Z][a-z0-9]+)+\Z")
_DOTTED = {"u.s": "usa", "u.s.a": "usa", "u.k": "uk", "a.m": "am", "p.m": "pm"}


@dataclass(slots=True)
class Tokens:
    """The words of a text while it is read. The first three lists go together."""

    text: str
    """What was read of it."""
    tokens: list[str]
    """Lower-case words in order, contractions opened, without punctuation."""
    cased: list[str]
    """The same as written."""
    starts: list[bool]
    """Whether a sentence begins there."""
    code: set[str]
    quoted: set[str]


def split(text: str) -> Tokens:
    """Take a text of any length apart; never raises for any string."""
    if len(text) > 2 * _EDGE:
        text = text[:_EDGE] + "\n" + text[-_EDGE:]
    words = Tokens(text, [], [], [], set(), set())
    start, quote = True, -1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        token = match[kind]
        if kind == "end":
            start = start or token in {".", "?", "!", "\n", ":"}
            if token in {"->", "→"}:
                _add(words, "to", "to", start=False)
            continue
        if kind == "quote":
            if quote >= 0 and len(words.tokens) > quote:
                words.quoted.add(" ".join(words.tokens[quote:]))
            quote = len(words.tokens) if quote < 0 else -1
            continue
        if len(words.tokens) >= _MOST_WORDS:
            break
        if kind == "plain":
            _plain_word(words, token, start=start)
        else:
            _take(words, kind, token, start=start)
        start = False
    return words


def _plain_word(words: Tokens, token: str, *, start: bool) -> None:
    """Take a word of letters alone, as `_word` would."""
    low = token.lower()
    if low in CONTRACTIONS or token == "US" or (low != token and token[0].islower()):
        _word(words, token, start=start)
    else:
        words.tokens.append(low)
        words.cased.append(token)
        words.starts.append(start)


def _take(words: Tokens, kind: str, token: str, *, start: bool) -> None:
    if kind in _CODE:
        token = token.rstrip(".,;:!?")
        words.code.add(_plain(token))
        _add(words, token.rstrip("()").lower(), token, start=start)
    elif kind in {"word", "dotted"}:
        _word(words, token, start=start)
    else:
        if kind == "file":
            words.code.add(_plain(token))
        _add(words, token.lower().rstrip("-"), token, start=start)


def _plain(code: str) -> str:
    return code.rstrip("()").lower()


def _word(words: Tokens, token: str, *, start: bool) -> None:
    low = token.lower().replace("\u2019", "'")
    low = "usa" if token == "US" else _DOTTED.get(low.rstrip("."), low)
    if (opened := CONTRACTIONS.get(low)) is not None:
        for part in opened:
            _add(words, part, part, start=start)
    elif low.endswith("n't"):
        _add(words, low[:-3], token[:-3], start=start)
        _add(words, "not", "not", start=False)
    elif "'" in low and (end := low[low.rindex("'") :]) in ENDINGS:
        stem = low[: -len(end)]
        _add(words, stem, token[: -len(end)], start=start)
        if end != "'s" or stem in ASKING:
            _add(words, ENDINGS[end], ENDINGS[end], start=False)
    elif _CAMEL.match(token) and not _BRANDS.match(token):
        words.code.add(_plain(token))
        _add(words, low, token, start=start)
    elif "-" in low and len(low) > 4 and _joined(low):
        for part, written in zip(low.split("-"), token.split("-"), strict=True):
            _add(words, part, written, start=start)
    else:
        _add(words, low, token, start=start)


def _joined(low: str) -> bool:
    """Whether a word with hyphens is several: no word of its own, or a number."""
    first = low.partition("-")[0]
    return first in SMALL or (first not in {"non", "e", "wi"} and not lexicon.known(low))


def _add(words: Tokens, token: str, cased: str, *, start: bool) -> None:
    token = token.strip("'")
    if token:
        words.tokens.append(token)
        words.cased.append(cased or token)
        words.starts.append(start)
