"""Encoders behind the Embedder port: locate, export, run, micro-batch."""
