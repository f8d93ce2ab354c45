"""Entries in Redis, which many proxies share: each keeps a directory of them, and searches an index of its own."""
