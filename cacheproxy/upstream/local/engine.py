"""The model itself: messages to token ids, and token ids to the next ones. Used by one thread at a time."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cacheproxy.upstream.local import int8
from cacheproxy.upstream.local.request import ContextExceeded
from cacheproxy.upstream.local.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cacheproxy.upstream.local.request import Sampling

# A second thread gains 4 % on an idle machine (one token at a time is too little work to share) and costs a factor of
# ten when another process wants the core, because torch's threads wait by spinning.
_THREADS = 1
# Prompt tokens read at once: the longest stretch during which a cancelled request is not noticed (about 0.2 s).
_PREFILL = 128
# The first token is read alone. Its activations are a thousand times larger than any other's (an attention sink), and
# in one int8 call with the rest it would take the whole range: divergence from float32 doubles.
_SINK = 1
_END_TEXTS = ("<|im_end|>", "<|endoftext|>")


class Engine:
    """SmolLM2 with its tokenizer and chat template, as `convert` keeps them.

    `pieces[i]` is the vocabulary's byte-level string of token i, None for control tokens.
    """

    def __init__(self, folder: Path, *, context_tokens: int) -> None:
        began = time.monotonic()
        torch.set_num_threads(_THREADS)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        self.precision = "fp32"
        if int8.supported():
            int8.quantise(self._model)
            self.precision = "int8"
        self.context_tokens = context_tokens
        self.pieces = self._pieces()
        self._ends = frozenset(self._tokenizer.convert_tokens_to_ids(text) for text in _END_TEXTS)
        self._longest_piece = max(len(piece) for piece in self.pieces if piece)
        self.load_s = time.monotonic() - began

    def encode(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Return the prompt's tokens in the model's chat template.

        Raises ContextExceeded when no token of the context window would be left for an answer.
        """
        size_bytes = sum(len(text.encode()) for _, text in messages)
        if size_bytes > self.context_tokens * self._longest_piece:  # spares tokenizing megabytes to learn the same
            raise ContextExceeded(self._too_long(f"at least {size_bytes // self._longest_piece}"), param="messages")
        prompt: str = self._tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
        )
        tokens: list[int] = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if len(tokens) >= self.context_tokens:
            raise ContextExceeded(self._too_long(str(len(tokens))), param="messages")
        return tokens

    def tokens(self, prompt: Sequence[int], rules: Sampling, cancelled: Callable[[], bool]) -> Iterator[int]:
        """Yield the answer's tokens up to the model's own end, which is not yielded; also ends once `cancelled()`.

        The caller stops reading at its limit or at the context window's end: tokens are computed when asked for.
        """
        cache = DynamicCache(config=self._model.config)
        sampler = Sampler(rules, len(self.pieces))
        scores = None
        for begin, end in pairwise([0, *range(_SINK, len(prompt), _PREFILL), len(prompt)]):
            if cancelled():
                return
            scores = self._forward(prompt[begin:end], cache)
        while scores is not None and not cancelled():
            token = sampler.pick(scores)
            if token in self._ends:
                return
            yield token
            scores = self._forward([token], cache)

    def _forward(self, tokens: Sequence[int], cache: DynamicCache) -> torch.Tensor:
        """Return the scores of the token after the last one, shape (vocabulary,)."""
        with torch.inference_mode():
            output = self._model(torch.tensor([tokens]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores: torch.Tensor = output.logits[0, -1]
        return scores

    def _pieces(self) -> tuple[str | None, ...]:
        control = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        size = self._model.config.vocab_size
        return tuple(
            None if token in control else piece
            for token, piece in enumerate(self._tokenizer.convert_ids_to_tokens(range(size)))
        )

    def _too_long(self, size: str) -> str:
        return (
            f"This model's maximum context length is {self.context_tokens} tokens. However, your messages resulted in "
            f"{size} tokens. Please reduce the length of the messages."
        )
