"""Training the cross-encoder: the base encoder's own layers, taught on pairs. The only module here that needs torch."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cacheproxy.errors import ConfigError
from cacheproxy.training.mix import batches
from cacheproxy.verify.cross import MOST_TOKENS
from cacheproxy.verify.graph import Shape, quantised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cacheproxy.training.material import Example, Part
    from cacheproxy.verify.cross import Words

_BATCH = 32
_RATE, _HEAD_RATE = 8e-5, 1e-3
_GROWN_RATE = 5e-5
"""Learning rate where training goes on from a verifier that is there already."""
_WARMUP = 0.06
_LEAST = 0.02
"""Of the learning rate, at the very end."""
_SAVE_EVERY_S = 120.0
_SIDE = 48
"""Most tokens of a question while training: nearly all questions are shorter."""
_NOT_TRAINED = ("embeddings.word_embeddings", "embeddings.position_embeddings")
_KEPT_OF_GROWN = ("embeddings.", "encoder.layer.0.", "encoder.layer.1.")
"""Of a verifier that is gone on from: what its lowest layers read in a text is the same, and a quarter faster."""
_PLACES = "embeddings.position_embeddings.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How long to train: at most so many pairs, repeats counted, and at most so long."""

    visits: int
    seconds: float
    seed: int


class Cross(torch.nn.Module):
    """BERT over both questions, and a score over its first token beside the mean of all."""

    def __init__(self, base: Path, seed: int = 0) -> None:
        """Take the layers of the encoder in a directory; the head begins at random, the same one for a seed."""
        super().__init__()
        from transformers import BertModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # it would report the pooler, which is not wanted, as a finding
        logging.disable_progress_bar()
        self.bert = BertModel.from_pretrained(
            str(base),
            attn_implementation="sdpa",
            add_pooling_layer=False,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            local_files_only=True,
            use_safetensors=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = torch.nn.Linear(2 * self.bert.config.hidden_size, 1)
        for name, parameter in self.bert.named_parameters():
            parameter.requires_grad = not name.startswith(_NOT_TRAINED)

    def forward(self, ids: torch.Tensor, types: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map token ids, sides and mask, (batch, tokens) each, to log-odds (batch,)."""
        hidden = self.bert(input_ids=ids, token_type_ids=types, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        logits: torch.Tensor = self.head(torch.cat([hidden[:, 0], mean], 1)).squeeze(-1)
        return logits

    @property
    def shape(self) -> Shape:
        """The sizes of its graph."""
        config = self.bert.config
        return Shape(layers=config.num_hidden_layers, heads=config.num_attention_heads, dim=config.hidden_size)


def train(
    model: Cross, words: Words, part: Part, course: Course, checkpoint: Path, advance: Callable[[int], None]
) -> int:
    """Train in place, going on from `checkpoint` where there is one; return how many pairs were seen in all.

    The learning rate falls to nearly nothing over whichever ends first, the pairs or the time.
    """
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    head = [one for name, one in trained.items() if name.startswith("head")]
    rest = [one for name, one in trained.items() if not name.startswith("head")]
    grown = bool(getattr(model, "grown", False))
    groups = [
        {"params": rest, "lr": _GROWN_RATE if grown else _RATE},
        {"params": head, "lr": _GROWN_RATE if grown else _HEAD_RATE},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    total = max(course.visits // _BATCH, 1)
    step, spent_s = _resume(model, optimiser, checkpoint, course)
    advance(step * _BATCH)
    began, saved = time.monotonic() - spent_s, time.monotonic()
    model.train()
    for batch in islice(batches(part, course.seed, _BATCH), step, None):
        elapsed_s = time.monotonic() - began
        done = max(step / total, elapsed_s / course.seconds)
        if done >= 1.0:
            break
        rising = (step + 1) / max(_WARMUP * total, 1.0)
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * max(_LEAST, min(rising, (1.0 - done) / (1.0 - _WARMUP)))
        _step(model, optimiser, words, batch)
        step += 1
        advance(_BATCH)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            _save(model, optimiser, checkpoint, {"step": step, "spent_s": time.monotonic() - began, **_key(course)})
            saved = time.monotonic()
    model.eval()
    return step * _BATCH


def _step(model: Cross, optimiser: torch.optim.Optimizer, words: Words, batch: Sequence[Example]) -> None:
    labels = torch.tensor([float(pair.label) for pair in batch])
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a fifth faster where the processor has it, else emulated
        logits = model(*_tensors(words, batch))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no stub for it
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def _tensors(words: Words, batch: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, sides = [], []
    for pair in batch:
        one, other = words.ids(pair.a)[:_SIDE], words.ids(pair.b)[:_SIDE]
        rows.append([words.first, *one, words.last, *other, words.last])
        sides.append([0] * (len(one) + 2) + [1] * (len(other) + 1))
    longest = max(len(row) for row in rows)
    ids, types, mask = (torch.zeros((len(rows), longest), dtype=torch.int64) for _ in range(3))
    for at, (row, side) in enumerate(zip(rows, sides, strict=True)):
        ids[at, : len(row)] = torch.tensor(row)
        types[at, : len(row)] = torch.tensor(side)
        mask[at, : len(row)] = 1
    return ids, types, mask


def weights_of(model: Cross) -> dict[str, NDArray[Any]]:
    """Return the weights as `verify.graph.build` takes them: matrices quantised, without word embeddings."""
    found: dict[str, NDArray[Any]] = {}
    for name, tensor in model.state_dict().items():
        name, array = name.removeprefix("bert."), tensor.numpy().astype(np.float32)
        if name.startswith("embeddings.word") or name.endswith("position_ids"):
            continue
        if name == _PLACES:
            found[name] = array[:MOST_TOKENS]
        elif name == "head.weight":
            found[name] = np.ascontiguousarray(array.T)
        elif name.startswith("encoder") and array.ndim == 2:
            found[name], found[name.removesuffix("weight") + "scale"] = quantised(array.T)
        else:
            found[name] = array
    return found


def grow(model: Cross, weights: Mapping[str, NDArray[Any]]) -> None:
    """Put the weights of a verifier into a model, to train it on. Raises ConfigError where they do not fit."""
    state: dict[str, torch.Tensor] = {}
    for name, array in weights.items():
        if name.endswith(".scale") or name == _PLACES:  # not trained: they are the base's own
            continue
        scale = weights.get(name.removesuffix("weight") + "scale") if array.dtype == np.int8 else None
        full = array.astype(np.float32) if scale is None else (array.astype(np.float32) * scale)
        full = full.T if scale is not None or name == "head.weight" else full
        state[name if name.startswith("head") else f"bert.{name}"] = torch.from_numpy(np.ascontiguousarray(full))
    missing = {name for name, one in model.named_parameters() if one.requires_grad} - set(state)
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as exc:
        raise ConfigError("the verifier to grow from has other layers; train from the base instead") from exc
    if missing:
        raise ConfigError(f"the verifier to grow from has no {missing.pop()}; train from the base instead")
    for name, parameter in model.bert.named_parameters():
        if name.startswith(_KEPT_OF_GROWN):
            parameter.requires_grad = False
    model.grown = True  # type: ignore[assignment]  # a plain attribute of a module


def _key(course: Course) -> dict[str, Any]:
    return {"seed": course.seed, "visits": course.visits}


def _save(model: Cross, optimiser: torch.optim.Optimizer, checkpoint: Path, state: dict[str, Any]) -> None:
    tensors = {f"model.{name}": one for name, one in model.named_parameters() if one.requires_grad}
    for number, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{name}": one for name, one in values.items()}
    part = checkpoint.with_suffix(".part")
    save_file({name: one.detach().contiguous() for name, one in tensors.items()}, part, {"state": json.dumps(state)})
    part.replace(checkpoint)


def _resume(model: Cross, optimiser: torch.optim.Optimizer, checkpoint: Path, course: Course) -> tuple[int, float]:
    """Load a checkpoint of this very course; return the steps done and the seconds spent, 0 for none."""
    from safetensors import SafetensorError, safe_open

    with suppress(FileNotFoundError, SafetensorError, KeyError, ValueError, RuntimeError):
        with safe_open(checkpoint, "pt") as file:
            state = json.loads(file.metadata()["state"])
        if {name: state[name] for name in _key(course)} != _key(course):
            return 0, 0.0
        tensors = load_file(checkpoint)
        model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")}, strict=False)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, number, kind = name.split(".")
                moments.setdefault(int(number), {})[kind] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
        return int(state["step"]), float(state["spent_s"])
    return 0, 0.0
