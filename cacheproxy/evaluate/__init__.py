"""Evaluate: what a pack would do on labelled pairs and on its own probes, and which thresholds to choose."""
