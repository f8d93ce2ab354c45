"""Attacks on a semantic cache, after the papers that describe them, and how often they succeed.

Wu et al., "Semantic cache poisoning" (NDSS 2026): the target question as a prefix of what is planted. "From Similarity
to Vulnerability" (arXiv 2601.23088): tokens searched until a text meets another one's key. SAFE-CACHE (Sci. Rep. 2026):
near questions with other answers. In-context examples are not there yet, so nothing can be injected by them.
"""
