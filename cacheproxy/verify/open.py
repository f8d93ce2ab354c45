"""From a setting to a scorer: the directory given, else the shipped verifier where it fits the encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cacheproxy.errors import ConfigError, VerifierUnavailable
from cacheproxy.verify import lexicon
from cacheproxy.verify.artefact import MANIFEST, read_manifest
from cacheproxy.verify.scorer import PairScorer

if TYPE_CHECKING:
    from cacheproxy.verify.cross import Base

SHIPPED = Path(__file__).parent / "data" / "shipped"
OFF = "off"

_log = structlog.get_logger()


def open_scorer(path: str, base: Base) -> PairScorer | None:
    """Return the scorer that `verifier.path` means; None where it is off, or no verifier is shipped for this encoder.

    Blocks for about half a second. Raises ConfigError where the directory given holds none for this encoder.
    """
    if path == OFF:
        return None
    folder = Path(path).expanduser() if path else SHIPPED
    if not path and (not (folder / MANIFEST).is_file() or read_manifest(folder).weights_sha256 != base.sha256):
        _log.info("verifier_missing", reason="none is shipped for this encoder; thresholds decide alone")
        return None
    lexicon.prepare()
    scorer = PairScorer(folder, base)
    try:
        scorer.verify("ready?", [("Ready?", 1.0)])
    except VerifierUnavailable as exc:
        raise ConfigError(f"{folder}: cannot be used ({exc}); train or install it again") from exc
    _log.info("verifier_opened", fingerprint=scorer.fingerprint)
    return scorer
