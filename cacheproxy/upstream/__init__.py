"""Backends behind the Upstream port: HTTP client and the embedded small model."""
