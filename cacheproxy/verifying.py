"""The verifier for the encoder in use: found, checked and loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cacheproxy.embed.locate import locate
from cacheproxy.embed.source import WEIGHTS
from cacheproxy.verify.cross import Base
from cacheproxy.verify.open import OFF, open_scorer

if TYPE_CHECKING:
    from cacheproxy.settings import Settings
    from cacheproxy.verify.scorer import PairScorer


def base_of(encoder: str) -> Base:
    """Return the files of the encoder that `encoder.name` means. Raises ConfigError where there is none."""
    source = locate(encoder)
    return Base(weights=source.directory / WEIGHTS, tokenizer=source.tokenizer, sha256=source.weights_sha256)


def open_verifier(settings: Settings) -> PairScorer | None:
    """Return the scorer that the settings mean, or None. Blocks. Raises ConfigError where the one given is no good."""
    if settings.verifier.path == OFF:
        return None
    return open_scorer(settings.verifier.path, base_of(settings.encoder.name))
