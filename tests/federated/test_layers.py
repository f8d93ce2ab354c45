"""Rounds on the encoder's own layers: by texts, flat on the wire, by the same guard and strategies as a head's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cacheproxy_federated import client_app, local
from cacheproxy_federated.checkpoint import Folder
from cacheproxy_federated.course import MOST_PAIRS, course_from
from cacheproxy_federated.exchange import Exchange, RunEnded
from cacheproxy_federated.layers import Tuner
from cacheproxy_federated.pairs import Pairs
from cacheproxy_federated.rounds import Run
from cacheproxy_federated.task import Training

from cacheproxy.embed.headfile import read
from cacheproxy.errors import ConfigError
from cacheproxy.learn.pairfile import PairRows
from tests.federated.fleet import SleepClock, on_the_wire
from tests.support.encoders import real_encoder
from tests.support.tiny import tiny_encoder, tiny_form, tiny_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Message

    from cacheproxy.embed.headfile import Artefact
    from cacheproxy.embed.layers import Mode

MODES: list[Mode] = ["top-layers", "lora"]
HOW = Training(epochs=4, batch=32, lr=1e-2)
CANARY = "zebracanary"
THINGS = ("refund", "invoice", "password", "delivery", "account", "order", "card", "address", "coupon", "receipt")
ACTS = ("cancel", "find", "change", "print", "lose", "share")


def rows(seed: int, n: int = 120, *, texts: bool = True) -> PairRows:
    """Return pairs of questions, right where they are about the same thing, whatever is done with it."""
    random = np.random.default_rng(seed)
    told = []
    for at in range(n):
        thing = random.choice(THINGS)
        other = thing if at % 2 == 0 else random.choice([one for one in THINGS if one != thing])
        told.append((f"{random.choice(ACTS)} my {thing}", f"{random.choice(ACTS)} my {other} {CANARY}{at}"))
    vectors, _ = tiny_encoder().encode([text for pair in told for text in pair])
    return PairRows(
        a=np.ascontiguousarray(vectors[::2]),
        b=np.ascontiguousarray(vectors[1::2]),
        right=np.arange(n) % 2 == 0,
        category=("faq",) * n,
        group=np.arange(n),
        held=(np.arange(n) // 2) % 5 == 0,
        texts=tuple(told) if texts else None,
    )


def pairs(seed: int, n: int = 120) -> Pairs:
    made = rows(seed, n)
    return Pairs(a=made.a, b=made.b, right=made.right, category=made.category, group=made.group, texts=made.texts or ())


def gap(tuner: Tuner, flat: Any, given: Pairs) -> float:
    """Return by how much right pairs are nearer than wrong ones."""
    a, b = (tuner.embedded(flat, [pair[side] for pair in given.texts]) for side in (0, 1))
    near = (a * b).sum(axis=1)
    return float(near[given.right].mean() - near[~given.right].mean())


def test_unchanged_layers_see_texts_as_the_proxys_encoder_does() -> None:
    for mode in MODES:
        form = tiny_form(mode)
        tuner = Tuner(tiny_source().directory, form)
        texts = [text for pair in pairs(1, 20).texts for text in pair]
        plain, _ = tiny_encoder().encode(texts)
        assert np.allclose(tuner.embedded(form.start(0), texts), plain, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_round_tells_unseen_pairs_better_apart_and_repeats_to_the_byte(mode: Mode) -> None:
    form = tiny_form(mode)
    tuner, start = Tuner(tiny_source().directory, form), form.start(0)
    given, unseen, before = pairs(0), pairs(1), start.copy()
    made = tuner.trained(start, given, HOW, seed=7)
    assert np.array_equal(start, before)
    assert (str(made.dtype), made.shape) == ("float32", (form.size,))
    assert gap(tuner, made, unseen) > gap(tuner, start, unseen) + 0.01
    turned = given.at(np.random.default_rng(0).permutation(len(given)))
    assert tuner.trained(start, turned, HOW, seed=7).tobytes() == made.tobytes()
    assert tuner.trained(start, given, HOW, seed=8).tobytes() != made.tobytes()
    held = tuner.trained(start, given, replace(HOW, proximal=1000.0), seed=7)
    assert np.linalg.norm(held - start) < np.linalg.norm(made - start)


def test_a_round_is_bounded_however_many_pairs_there_are() -> None:
    tuner, many = Tuner(tiny_source().directory, tiny_form()), pairs(0, 120)
    thousands = many.at(np.arange(3 * MOST_PAIRS) % 120)
    seen: list[int] = []

    class Counting(Tuner):
        def _learnt(self, flat: Any, pairs: Pairs, how: Training, random: Any) -> Any:
            seen.append(len(pairs))
            return flat

    tuner.__class__ = Counting
    tuner.trained(tiny_form().start(0), thousands, HOW, seed=1)
    assert seen == [MOST_PAIRS]


def run(
    folder: Path,
    mode: str = "lora",
    *,
    seen: Callable[[Message], None] | None = None,
    instead: dict[int, Callable[[Message], Message | None]] | None = None,
    resume: bool = False,
    without: tuple[int, ...] = (),
    encoder: Path | None = None,
    **told: Any,
) -> Artefact:
    """Run a course over four nodes in this process."""
    form = tiny_form()
    kept = {number: rows(number, 80, texts=number not in without) for number in (1, 2, 3, 4)}
    base = tiny_encoder().fingerprint
    app = client_app.made(lambda context, _: kept[context.node_id], encoder=str(encoder or tiny_source().directory))

    def node(number: int) -> local.Answer:
        honest = local.node(app, number, {})

        def answer(message: Message) -> Message | None:
            reply = honest(message)
            if reply is not None and number in (instead or {}):
                reply = (instead or {})[number](reply)
            if seen is not None:
                seen(message)
                if reply is not None:
                    seen(reply)
            return reply

        return answer

    settings = {
        "base": base, "dim": form.dim, "inner": form.inner, "depth": form.depth, "mode": mode, "rounds": 2,
        "quorum": 2, "strategy": "fedavg", "lr": 1e-2, "batch": 32, "rank": 4,
        "layers": int(mode == "top-layers"), "retries": 0, "poll-s": 0.1,
    }  # fmt: skip
    course = course_from({**settings, **{name.replace("_", "-"): value for name, value in told.items()}})
    exchange = Exchange(local.LocalGrid({number: node(number) for number in kept}), SleepClock(), course.poll_s)
    return Run(course, exchange, Folder(folder)).run(resume=resume)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_makes_an_artefact_that_is_better_and_no_text_leaves_a_node(mode: Mode, tmp_path: Path) -> None:
    passed: list[Message] = []
    made = run(tmp_path, mode, seen=passed.append)
    assert made.layers is not None
    assert (made.manifest.mode, made.manifest.base) == (mode, tiny_encoder().fingerprint)
    assert made.layers.form.size == tiny_form(mode).size
    tuner, unseen = Tuner(tiny_source().directory, made.layers.form), pairs(9)
    assert gap(tuner, made.layers.flat, unseen) > gap(tuner, made.layers.form.start(0), unseen)
    assert read(tmp_path / "final").epoch == made.epoch
    wire = b"".join(on_the_wire(one) for one in passed)
    assert CANARY.encode() not in wire
    assert str(tiny_source().directory).encode() not in wire


@pytest.mark.parametrize("strategy", ["fedprox", "fedadam", "median", "robust"])
def test_every_strategy_averages_a_flat_vector(strategy: str, tmp_path: Path) -> None:
    told = {"proximal": 0.1} if strategy == "fedprox" else {"quorum": 4, "first": 4}
    made = run(tmp_path, strategy=strategy, rounds=1, **told)
    assert made.layers is not None
    assert np.isfinite(made.layers.flat).all()


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", rounds=2)
    run(tmp_path / "cut", rounds=1)
    again = run(tmp_path / "cut", rounds=2, resume=True)
    assert whole.layers is not None
    assert again.layers is not None
    assert again.layers.flat.tobytes() == whole.layers.flat.tobytes()


def test_an_update_is_clipped_and_noised_as_a_heads_is(tmp_path: Path) -> None:
    sent: list[np.ndarray] = []

    def note(message: Message) -> None:
        records = message.content.array_records if message.has_content() else {}
        sent.extend(record["matrix"].numpy() for record in records.values() if "matrix" in record)

    run(tmp_path / "plain", rounds=1, epochs=1)
    run(tmp_path / "private", rounds=1, epochs=1, seen=note, dp_clip=0.01, dp_noise=2.0)
    start = tiny_form().start(0)
    norms = [float(np.linalg.norm(one[0] - start)) for one in sent]
    noisy = [norm for norm in norms if norm > 0.01]  # of what was sent to the nodes, the start is the first
    expected = 0.01 * 2.0 * np.sqrt(tiny_form().size)
    assert max(noisy) == pytest.approx(expected, rel=0.2)


def test_nodes_that_keep_no_texts_say_so_and_take_no_part(tmp_path: Path) -> None:
    made = run(tmp_path / "some", rounds=1, without=(1,))
    assert made.manifest.metrics["nodes"] == 3
    with pytest.raises(RunEnded, match=r"federated\.keep_texts"):
        run(tmp_path / "none", rounds=1, without=(1, 2, 3, 4))


def test_a_node_with_another_encoder_takes_no_part(tmp_path: Path) -> None:
    from cacheproxy.embed.locate import locate

    with pytest.raises(RunEnded, match="has no weights of this encoder"):
        run(tmp_path, rounds=1, encoder=locate("all-MiniLM-L6-v2").directory)


def test_what_contradicts_itself_is_refused_before_a_run() -> None:
    told = {"base": "b", "dim": 32, "mode": "lora"}
    with pytest.raises(ConfigError, match="needs `depth` and `inner`"):
        course_from(told)
    shape = {**told, "inner": 64, "depth": 2}
    with pytest.raises(ConfigError, match="are of heads"):
        course_from({**shape, "dim-out": 16})
    with pytest.raises(ConfigError, match="batches of at most 128"):
        course_from({**shape, "batch": 256})
    with pytest.raises(ConfigError, match="larger than any proxy takes"):
        course_from({**shape, "mode": "top-layers", "dim": 2048, "inner": 8192, "layers": 2})
    assert course_from(shape).form == replace(tiny_form(), rank=8)


@pytest.mark.slow
def test_a_round_of_the_real_encoder_moves_what_it_should() -> None:
    from cacheproxy.embed.layers import Form
    from cacheproxy.embed.locate import locate
    from cacheproxy.embed.tuned import form_of

    source = locate("all-MiniLM-L6-v2")
    for form in (
        Form(mode="lora", layers=6, rank=8, **form_of(source)),
        Form(mode="top-layers", layers=2, **form_of(source)),
    ):
        tuner, start = Tuner(source.directory, form), form.start(0)
        given = pairs(0, 60)
        texts = [text for pair in given.texts for text in pair]
        vectors, (plain, _) = tuner.embedded(start, texts), real_encoder("fp32").encode(texts)
        given = replace(given, a=vectors[::2].copy(), b=vectors[1::2].copy())
        made = tuner.trained(start, given, Training(epochs=2, batch=32, lr=1e-3), seed=7)
        assert np.allclose(vectors, plain, atol=1e-4), "before training it sees texts as the proxy's encoder does"
        assert all(part.any() for part in form.parts(made - start).values()), "every tensor that may learn has learnt"
        assert gap(tuner, made, pairs(1, 60)) > gap(tuner, start, pairs(1, 60))
