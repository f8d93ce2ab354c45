"""cacheproxy: a drop-in semantic cache proxy for OpenAI-compatible LLM backends."""

__version__ = "0.1.0"
