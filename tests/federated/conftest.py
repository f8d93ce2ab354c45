"""Flower is imported once, before warnings are errors: its typer still uses names that click 8.5 is about to drop."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import flwr.app
    import flwr.clientapp
    import flwr.serverapp.strategy

__all__ = ["flwr"]
