"""The edge: bytes to nouns and back. Nothing here decides what may be cached."""
