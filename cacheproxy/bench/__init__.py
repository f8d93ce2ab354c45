"""Measuring a proxy from outside: who asks what and when, a scripted backend, and what came of it."""
