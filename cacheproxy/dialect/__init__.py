"""The cached APIs: how an answer's bytes become a Reply, and a Reply becomes bytes again. One module a dialect."""
