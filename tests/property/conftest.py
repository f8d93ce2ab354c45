"""One profile for every property: no deadline, since two busy cores make honest examples slow now and then."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("cacheproxy", deadline=None)
settings.load_profile("cacheproxy")
