"""What is attacked within one scope: a policy's own plan and judgement, with the encoder and the verifier in use."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from cacheproxy.embed.open import open_encoder
from cacheproxy.model import Embedding, Verification
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.pairrule import PairRule, Text
from cacheproxy.policy.prepare import prepared
from cacheproxy.settings import Encoder as EncoderSettings
from cacheproxy.verify.open import SHIPPED, open_scorer
from cacheproxy.verify.reading import read
from cacheproxy.verify.vetoes import vetoed
from cacheproxy.verifying import base_of
from tests.support.encoders import ENCODERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from cacheproxy.policy.pack import Pack
    from cacheproxy.policy.pairrule import Ruling, Verify

_NAME = "all-MiniLM-L6-v2"


class Vectors:
    """The shipped encoder, remembering what it embedded."""

    def __init__(self, precision: str = "fp32") -> None:
        settings = EncoderSettings(name=_NAME, device="cpu", precision=precision, cache_dir=str(ENCODERS))
        self._encoder = open_encoder(settings, ENCODERS)
        self.epoch = self._encoder.fingerprint
        self._known: dict[str, Embedding] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of shape (n, dim); nothing is remembered."""
        return np.concatenate([self._encoder.encode(texts[at : at + 32])[0] for at in range(0, len(texts), 32)])

    def with_digests(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], list[bytes]]:
        """Return unit vectors, and digests of what the encoder could not see."""
        parts = [self._encoder.encode(texts[at : at + 32]) for at in range(0, len(texts), 32)]
        return np.concatenate([part[0] for part in parts]), [one for part in parts for one in part[1]]

    def learn(self, texts: Iterable[str]) -> None:
        """Embed what is not known yet, in batches of like length."""
        new = sorted(set(texts) - self._known.keys(), key=len)
        if new:
            vectors, unseen = self.with_digests(new)
            for text, vector, digest in zip(new, vectors, unseen, strict=True):
                self._known[text] = Embedding(vector=vector, unseen=digest)

    def text(self, text: str) -> Text:
        """Return a text with its embedding."""
        if text not in self._known:
            self.learn([text])
        return Text(text=text, embedding=self._known[text])


class RulesAlone:
    """The verifier's rules without the learned part: what has no veto is right, if it is near enough."""

    def __init__(self, at_least: float) -> None:
        self._at_least = at_least

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return 1 or 0."""
        one = read(asked)
        return [
            Verification(probability=float(cosine >= self._at_least), veto=vetoed(one, read(text)))
            for text, cosine in kept
        ]


def verifier(folder: str = "") -> Verify | None:
    """Return the verifier of a folder, "" for the shipped one; None where none is shipped yet."""
    if not folder and not (SHIPPED / "manifest.json").exists():
        return None
    return open_scorer(folder, base_of(_NAME))


class Defence:
    """One policy over pairs of one scope. With a verifier it `verifies`; without, thresholds decide."""

    def __init__(self, name: str, vectors: Vectors, verify: Verify | None, *, at_least: float | None = None) -> None:
        """`at_least` replaces every threshold: plain cosine, as other caches have it."""
        self._vectors = vectors
        pack = load_pack(find_pack(name))
        if verify is None:
            self.label = f"{name}, thresholds" if at_least is None else f"cosine {at_least:g}"
            pack = pack if at_least is None else _plain(pack, vectors.epoch, at_least)
        else:
            self.label = f"{name}, {'rules' if isinstance(verify, RulesAlone) else 'verifier'}"
            pack = _asking(pack, vectors.epoch)
        policy = prepared(pack, vectors.with_digests, verifies=verify is not None)
        self._rule = PairRule(policy, vectors.epoch, verify)

    def rulings(self, pairs: Sequence[tuple[str, str]]) -> list[Ruling]:
        """Return what becomes of each (kept, asked)."""
        self._vectors.learn(text for pair in pairs for text in pair)

        def decide(pair: tuple[str, str]) -> Ruling:
            return self._rule.decide(self._vectors.text(pair[0]), self._vectors.text(pair[1]))

        with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            return list(pool.map(decide, pairs))

    def served(self, pairs: Sequence[tuple[str, str]]) -> int:
        """Count the pairs whose kept answer is served."""
        return sum(ruling.served for ruling in self.rulings(pairs))


def _asking(pack: Pack, epoch: str) -> Pack:
    """Return a pack that asks the verifier, also where it does not say from which cosine on."""
    encoders = {
        name: msgspec.structs.replace(one, verify_from=one.verify_from or 0.35) if one.fingerprint == epoch else one
        for name, one in pack.encoders.items()
    }
    return msgspec.structs.replace(pack, encoders=encoders)


def _plain(pack: Pack, epoch: str, at_least: float) -> Pack:
    """Return a pack of one threshold, without categories told by examples: plain cosine."""
    categories = {
        name: msgspec.structs.replace(one, examples=(), verify=False, semantic=True)
        for name, one in pack.categories.items()
    }
    encoders = {
        name: msgspec.structs.replace(one, thresholds=dict.fromkeys(one.thresholds, at_least), floors={})
        for name, one in pack.encoders.items()
    }
    return msgspec.structs.replace(pack, categories=categories, encoders=encoders)
