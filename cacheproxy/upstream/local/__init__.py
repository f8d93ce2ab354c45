"""The embedded small model: SmolLM2-135M-Instruct in a child process that speaks OpenAI's dialect on a Unix socket.

The proxy reaches it with its ordinary upstream client, never imports torch for it, and generation cannot stall its
event loop. `process` is the parent's side; everything else runs in the child (`python -m cacheproxy.upstream.local`):

    body -> request (validate) -> worker (one thread, bounded queue) -> engine (tokens) -> text -> reply (JSON or SSE)
"""

MODEL_ID = "smollm2-135m-instruct"
CONTEXT_TOKENS = 2048
QUEUE = 8
"""Requests that may wait for the one that is being answered."""
