"""From settings to a running encoder: locate, choose a device, export when needed, load, try it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from cacheproxy.embed.artefact import ensure
from cacheproxy.embed.batch import Flaw, run
from cacheproxy.embed.device import choose_device
from cacheproxy.embed.locate import locate
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from cacheproxy import settings
    from cacheproxy.embed.encoder import Encoder

_log = structlog.get_logger()


def open_encoder(encoder: settings.Encoder, data_dir: Path) -> Encoder:
    """Return the encoder that the settings mean, loaded and tried.

    Blocks: about a second, and 10-30 s more when the CPU export has to be made first. Raises ConfigError, saying what
    to do, when the model is missing, damaged or not the published one, when the export fails, or when the device cannot
    be used; the caller may go on with exact matches only.
    """
    source = locate(encoder.name)
    device = choose_device(encoder.device)
    opened: Encoder
    if device == "cpu":
        from cacheproxy.embed.onnx import OnnxEncoder

        cache_dir = Path(encoder.cache_dir).expanduser() if encoder.cache_dir else data_dir / "encoders"
        folder, manifest = ensure(source, encoder.precision, cache_dir)
        opened = OnnxEncoder(
            folder,
            fingerprint=manifest.fingerprint,
            dim=manifest.dim,
            window=manifest.window,
            precision=manifest.precision,
        )
    else:
        from cacheproxy.embed.sentence import SentenceEncoder

        opened = SentenceEncoder(source, device)
    [outcome] = run(opened, ["ready"])
    if isinstance(outcome, Flaw):
        raise ConfigError(
            f"encoder {opened.fingerprint}: its first embedding failed ({outcome}); try encoder.device 'cpu'"
        )
    _log.info("encoder_opened", fingerprint=opened.fingerprint, device=device)
    return opened
