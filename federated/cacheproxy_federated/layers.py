"""A client's round on the encoder's own layers: its last ones whole, or adapters in them. By texts, on one CPU thread.

The rest of the encoder stays as it is, so what is learnt is a flat vector (`cacheproxy.embed.layers`), of the same
shape on every node. No Flower here, and no file but the encoder's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import BertModel
from transformers.utils import logging

from cacheproxy.embed.layers import DOWN, SCALE, UP
from cacheproxy.embed.locate import locate
from cacheproxy.embed.text import Window, pad
from cacheproxy_federated.course import MOST_PAIRS
from cacheproxy_federated.losses import contrastive, kindred, ranking
from cacheproxy_federated.task import Training, one_thread, order, steps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.embed.layers import Form
    from cacheproxy_federated.pairs import Pairs

MOST_TOKENS = 64
"""Of a text, while it is trained on: what bounds a step's memory. Counting sees texts as a proxy does."""
_ENCODED = 32


class Adapted(torch.nn.Module):
    """A linear map and the product of two thin ones beside it, which alone learn (LoRA, arXiv 2106.09685)."""

    def __init__(self, plain: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.plain = plain
        self.lora_A = torch.nn.Parameter(torch.zeros(rank, plain.in_features))
        self.lora_B = torch.nn.Parameter(torch.zeros(plain.out_features, rank))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what both make of rows, summed."""
        more: torch.Tensor = self.plain(rows) + SCALE * (rows @ self.lora_A.T) @ self.lora_B.T
        return more


class Tuner:
    """An encoder of which a form's weights can be set, and learn."""

    def __init__(self, directory: Path, form: Form) -> None:
        """Load a model. Raises ConfigError where it cannot be used."""
        source = locate(str(directory))
        logging.disable_progress_bar()
        model: Any = BertModel.from_pretrained(
            str(source.directory), local_files_only=True, use_safetensors=True, add_pooling_layer=False
        )
        self._form = form
        self._model = model.eval().requires_grad_(False)
        self._whole = Window.load(source.tokenizer, source.window)
        self._short = Window.load(source.tokenizer, min(source.window, MOST_TOKENS))
        self._learning = [self._parameter(name) for name in form.shapes]
        adapts = form.mode == "lora"
        self._base = [torch.zeros_like(one) if adapts else one.detach().clone() for one in self._learning]

    def embedded(self, flat: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (n, d), of texts as a proxy would see them with these weights."""
        with one_thread(), torch.inference_mode():
            self._set(flat)
            tokens = [self._whole.read(text).ids for text in texts]
            found = np.empty((len(texts), self._form.dim), dtype=np.float32)
            by_length = sorted(range(len(texts)), key=lambda at: len(tokens[at]))
            for at in range(0, len(texts), _ENCODED):
                rows = by_length[at : at + _ENCODED]
                found[rows] = self._vectors([tokens[row] for row in rows]).numpy()
        return found

    def trained(self, flat: NDArray[np.float32], pairs: Pairs, how: Training, seed: int) -> NDArray[np.float32]:
        """Return the flat vector after one client's round on its pairs, which have texts; the one given stays as it is.

        As `task.trained`, by the same losses and in the same order, on 1,000 of the pairs at most. Raises ValueError
        as that one does.
        """
        right = int(pairs.right.sum())
        if not 0 < right < len(pairs):
            raise ValueError(f"training needs right and wrong pairs, got {right} right and {len(pairs) - right} wrong")
        if not np.isfinite(flat).all():
            raise ValueError("training needs finite weights; go on from the last sound ones")
        pairs = pairs.at(order(pairs))
        random = torch.Generator().manual_seed(seed)
        if len(pairs) > MOST_PAIRS:
            pairs = pairs.at(torch.randperm(len(pairs), generator=random)[:MOST_PAIRS].sort().values.numpy())
        with one_thread():
            return self._learnt(flat, pairs, how, random)

    def _learnt(
        self, flat: NDArray[np.float32], pairs: Pairs, how: Training, random: torch.Generator
    ) -> NDArray[np.float32]:
        a, b = torch.from_numpy(pairs.a), torch.from_numpy(pairs.b)
        label, group = torch.from_numpy(pairs.right), torch.from_numpy(pairs.group)
        tokens = [[self._short.read(pair[side]).ids for pair in pairs.texts] for side in (0, 1)]
        self._set(flat)
        start = [one.detach().clone() for one in self._learning]
        try:
            for one in self._learning:
                one.requires_grad_()
            adam = torch.optim.Adam(self._learning, lr=how.lr)
            for rows, ranks in steps(label, how, random):
                chosen = rows.tolist()
                near = self._vectors([tokens[0][row] for row in chosen] + [tokens[1][row] for row in chosen])
                first, second = near[: len(chosen)], near[len(chosen) :]
                loss = (
                    ranking(first, second, kindred(a[rows], b[rows], group[rows]), how.scale)
                    if ranks
                    else contrastive(first, second, label[rows], how.margin)
                )
                if how.proximal:
                    moved = (one - was for one, was in zip(self._learning, start, strict=True))
                    loss = loss + how.proximal / 2 * sum((one.square().sum() for one in moved), torch.zeros(()))
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no type for it
                adam.step()
            changed = [one.detach() - base for one, base in zip(self._learning, self._base, strict=True)]
            found: NDArray[np.float32] = torch.cat([one.reshape(-1) for one in changed]).numpy().copy()
            return found
        finally:
            for one in self._learning:
                one.requires_grad_(False)

    def _parameter(self, name: str) -> torch.nn.Parameter:
        """Return the parameter of a tensor's name; an adapter is made where there is none."""
        path, _, last = name.rpartition(".")
        module = self._model.get_submodule(path)
        if last in (DOWN, UP) and not isinstance(module, Adapted):
            module = Adapted(module, self._form.rank).requires_grad_(False)
            outer, _, inner = path.rpartition(".")
            setattr(self._model.get_submodule(outer), inner, module)
        found: torch.nn.Parameter = getattr(module, last)
        return found

    def _set(self, flat: NDArray[np.float32]) -> None:
        parts = self._form.parts(flat).values()
        with torch.no_grad():
            for one, base, part in zip(self._learning, self._base, parts, strict=True):
                one.copy_(base + torch.from_numpy(np.ascontiguousarray(part)))

    def _vectors(self, tokens: Sequence[list[int]]) -> torch.Tensor:
        """Return unit vectors, shape (n, d): mean pooling and normalisation, as the encoder's export has it."""
        ids, mask = (torch.from_numpy(one) for one in pad(tokens))
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


@lru_cache(maxsize=1)
def tuner(directory: Path, form: Form) -> Tuner:
    """Return a tuner, loaded once while the process lives; it must be used by one thread at a time."""
    return Tuner(directory, form)
