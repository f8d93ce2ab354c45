"""A tiny encoder that is a real one, two BERT layers of random weights with the published tokenizer; changes of it."""

from __future__ import annotations

import fcntl
import shutil
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy import settings
from cacheproxy.embed.layers import Form, Layers
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.embed.tuned import form_of
from tests.support.encoders import ENCODERS, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.embed.encoder import Encoder
    from cacheproxy.embed.layers import Mode
    from cacheproxy.embed.source import Source

MODEL = ENCODERS.parent / "tiny-model"
_SHAPE = {
    "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128, "vocab_size": 30522,
}  # fmt: skip


@lru_cache
def tiny_source() -> Source:
    """Return the model; the first call in a checkout writes it, in one process while others wait."""
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    with MODEL.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (MODEL / "model.safetensors").is_file():
            _write(MODEL)
    return locate(str(MODEL))


def tiny_settings() -> settings.Encoder:
    """Return the settings that mean it; what is exported of it stays in the checkout."""
    return settings.Encoder(name=str(tiny_source().directory), device="cpu", cache_dir=str(ENCODERS))


@lru_cache
def tiny_encoder() -> Encoder:
    """Return the model, exported and opened."""
    return open_encoder(tiny_settings(), ENCODERS.parent)


def tiny_form(mode: Mode = "lora") -> Form:
    """Return a form of each mode."""
    return Form(mode=mode, layers=2 if mode == "lora" else 1, rank=4 if mode == "lora" else 0, **form_of(tiny_source()))


def tiny_change(mode: Mode = "lora", seed: int = 0, spread: float = 0.3) -> Layers:
    """Return a change of it, at random: what was alike is less so."""
    form = tiny_form(mode)
    random = np.random.default_rng(seed)
    return Layers(form=form, flat=(form.start(seed) + random.normal(0, spread, form.size)).astype(np.float32))


def _write(folder: Path) -> None:
    import json

    import torch
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    write_model(draft)
    torch.manual_seed(0)
    config = BertConfig(**_SHAPE, initializer_range=0.5)
    save_file(BertModel(config, add_pooling_layer=False).state_dict(), draft / "model.safetensors", {"format": "pt"})
    (draft / "config.json").write_text(json.dumps(config.to_dict() | _SHAPE))
    (draft / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (draft / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(locate("all-MiniLM-L6-v2").directory / name, draft / name)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
