"""What leaves a node, and what never does."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cacheproxy_federated
import msgspec
import numpy as np
import pytest
from cacheproxy_federated import client_app, local, server_app, wire
from cacheproxy_federated.course import STRATEGIES, Course, course_from
from cacheproxy_federated.thresholds import counted
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import ConfigRecord, Context, Message, RecordDict

from cacheproxy import federated_cli
from cacheproxy.embed import headfile
from cacheproxy.embed.head import Head
from cacheproxy.errors import CacheProxyError, ConfigError
from cacheproxy.federation.server import Serving
from cacheproxy.learn.pairwriter import PairRow, PairWriter
from tests.federated.fleet import BASE, Fleet, course, on_the_wire, rows
from tests.federated.topics import DIM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flwr.clientapp import ClientApp

    from cacheproxy.learn.pairfile import PairRows

CANARY = "canary-7f3a"
APP = Path(cacheproxy_federated.__file__).parents[1]


async def write_pairs(file: Path, seed: int, *, base: str = BASE, n: int = 200, dim: int = DIM) -> None:
    """Write a proxy's own file of training pairs, with texts, tenants, users and a category that name the canary.

    Vectors are made `dim` components long by zeros.
    """
    made, more = rows(seed, n), np.zeros(dim - DIM, dtype=np.float32)
    async with PairWriter(file, 10_000) as writer:
        for at in range(n):
            row = PairRow(
                at_s=float(at),
                tenant=f"{CANARY}-tenant",
                entry_id=f"{CANARY}-{at}",
                question=at.to_bytes(16, "big"),
                category="faq" if at % 50 else f"{CANARY}-category",
                user=f"{CANARY}-user",
                kept=(at + n).to_bytes(16, "big"),
                kept_at_s=0.0,
                kept_category="faq",
                kept_second="",
                kept_user=f"{CANARY}-user",
                right=bool(made.right[at]),
                source="feedback",
                base=base,
                a=np.append(made.a[at], more).tobytes(),
                b=np.append(made.b[at], more).tobytes(),
                a_text=f"{CANARY} what was kept",
                b_text=f"{CANARY} what was asked",
            )
            assert await writer.record(row, writer.fence)


def of_files(files: Mapping[int, Path]) -> Fleet:
    """Return a fleet of nodes that run the app as a SuperNode does, each on its own file."""

    class OfFiles(Fleet):
        def grid(self) -> local.LocalGrid:
            own: dict[int, dict[str, Any]] = {
                at: {"pairs": str(file), "allow-moments": True} for at, file in files.items()
            }
            return local.LocalGrid({at: self._node(local.node(client_app.app, at, own[at]), at) for at in files})

    return OfFiles()


async def test_no_text_path_tenant_user_or_small_category_is_in_any_message(tmp_path: Path) -> None:
    secret = tmp_path / CANARY
    secret.mkdir()
    files = {at: secret / f"{at}.sqlite3" for at in (1, 2, 3)}
    for at, file in files.items():
        await write_pairs(file, at)
    fleet = of_files(files)
    key = Ed25519PrivateKey.generate()
    artefact = fleet.run(secret / "out", course(dim_out=8), key=key)
    # Twelve messages each: before, three rounds of train and evaluate, moments, after.
    assert len(fleet.passed) == 2 * 3 * 9
    seen = b"".join(on_the_wire(message) for message in fleet.passed)
    assert b"faq" in seen, "the search would find a name that is sent"
    hidden = [CANARY, str(tmp_path), "sqlite", key.private_bytes_raw().hex(), key.public_key().public_bytes_raw().hex()]
    assert not [word for word in hidden if word.encode() in seen]
    vectors = rows(1, 200)
    assert not [at for at in range(200) if vectors.a[at].tobytes() in seen or vectors.b[at].tobytes() in seen]
    assert set(artefact.manifest.thresholds) == {"*", "faq"}


async def test_errors_leave_a_node_as_one_known_word(tmp_path: Path) -> None:
    none, other, broken = (tmp_path / f"{CANARY}-{name}.sqlite3" for name in ("none", "other", "broken"))
    await write_pairs(other, 1, base="another/encoder")
    broken.write_bytes(b"no database")
    for file, word in ((none, "no-pairs-file"), (other, "no-pairs"), (broken, "no-pairs-file")):
        reply = ask({"pairs": str(file)})
        assert (reply.has_error(), reply.error.reason) == (True, word)
        assert CANARY.encode() not in on_the_wire(reply)


def test_what_goes_wrong_within_a_node_is_not_told_to_the_server() -> None:
    def rows_of(context: Context, base: str) -> PairRows:
        raise RuntimeError(CANARY)

    reply = ask({}, app=client_app.made(rows_of))
    assert reply.error.reason == "failed"
    assert CANARY.encode() not in on_the_wire(reply)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"base": 7}, "form"),
        ({"seed": "one"}, "form"),
        ({"lr": True}, "form"),
        ({"head": np.eye(DIM + 1, dtype=np.float32)}, "shape"),
        ({"head": np.eye(DIM)}, "shape"),
    ],
)
def test_a_message_that_the_app_does_not_send_is_declined(change: dict[str, Any], word: str) -> None:
    assert ask({}, app=keeping(rows(1)), **change).error.reason == word


def test_a_node_with_too_little_to_learn_from_takes_no_part() -> None:
    few, whole = rows(1, n=20), rows(1)
    one_label = replace(whole, right=np.ones_like(whole.right))
    for kept, word in ((few, "too-few-pairs"), (one_label, "one-label")):
        assert ask({}, app=keeping(kept)).error.reason == word


def test_held_back_pairs_are_never_trained_on() -> None:
    whole = rows(1)
    spoiled = replace(
        whole,
        a=np.where(whole.held[:, None], whole.b[::-1], whole.a),
        right=np.where(whole.held, ~whole.right, whole.right),
    )
    heads = [wire.matrix_of(ask({}, app=keeping(kept)).content) for kept in (whole, spoiled)]
    assert (heads[0] == heads[1]).all()


def test_small_categories_count_without_their_name() -> None:
    whole = rows(1)
    names = tuple("rare" if at % 40 < 2 else "faq" for at in range(len(whole.right)))
    kept = replace(whole, category=names)
    reply = ask({}, app=keeping(kept), message_type="evaluate")
    counts = wire.counts_of(reply.content)
    assert {name: int(table[0].sum()) for name, table in counts.items()} == {"faq": int(kept.held.sum()) - 16}


def table(pairs: int) -> Any:
    return np.tile(np.array([pairs, 0, 0, 0], dtype=np.int64), (101, 1))


@pytest.mark.parametrize(
    ("sizes", "left"),
    [
        ({"faq": 30, "rare": 1}, {"faq": 30}),
        ({"faq": 30, "rare": 11, "rarer": 9}, {"faq": 30, "*": 20}),
        ({"faq": 30, "a question?": 19}, {"faq": 30}),
        ({"rare": 7}, {"*": 7}),
    ],
)
def test_a_few_pairs_without_a_name_beside_a_named_category_are_not_told(
    sizes: dict[str, int], left: dict[str, int]
) -> None:
    counts = wire.folded({name: table(size) for name, size in sizes.items()}, 20)
    assert {name: int(one[0].sum()) for name, one in counts.items()} == left


@pytest.mark.parametrize("change", [{"epochs": 51}, {"epochs": 0}, {"batch": 1 << 20}, {"batch": 1}, {"most-pairs": 5}])
def test_a_node_does_no_more_than_its_own_limits_allow(change: dict[str, Any]) -> None:
    assert ask({}, app=keeping(rows(1)), **change).error.reason == "limits"


@pytest.mark.parametrize("change", [{"depth": 257}, {"layers": 10**9}, {"dim": 1 << 20}, {"inner": 0}, {"rank": 5000}])
@pytest.mark.parametrize("message_type", ["train", "evaluate"])
def test_a_node_makes_no_room_for_an_encoder_that_nobody_has(change: dict[str, Any], message_type: str) -> None:
    given = rows(1)
    told = replace(given, texts=(("a", "b"),) * len(given.right))
    shape = {"mode": "top-layers", "dim": DIM, "inner": 64, "depth": 256, "layers": 1, "rank": 0}
    reply = ask({}, app=keeping(told), message_type=message_type, **{**shape, **change})
    assert reply.error.reason == "limits"
    assert wire.TROUBLES["limits"].endswith("or layers of an encoder of more than 256")


@pytest.mark.parametrize("name", client_app._BOUNDS)
def test_a_course_asks_for_nothing_that_nodes_decline(name: str) -> None:
    low, high = client_app._BOUNDS[name]
    for within in (low, high):
        course_from({"base": BASE, "dim": DIM, name: within})
    for beyond in (low - 1, high + 1):
        with pytest.raises(ConfigError, match=name):
            course_from({"base": BASE, "dim": DIM, name: beyond})


def test_a_server_cannot_have_small_categories_named() -> None:
    whole = rows(1)
    kept = replace(whole, category=tuple("rare" if at % 40 < 2 else "faq" for at in range(len(whole.right))))
    reply = ask({}, app=keeping(kept), message_type="evaluate", **{"least-category": 1})
    assert set(wire.counts_of(reply.content)) == {"faq"}


def test_second_moments_leave_only_a_node_that_was_started_for_it() -> None:
    app = keeping(rows(1))
    assert ask({}, app=app, message_type=wire.MOMENTS).error.reason == "no-moments"
    assert wire.MOMENT in ask({"allow-moments": True}, app=app, message_type=wire.MOMENTS).content


def test_second_moments_of_few_directions_never_leave_a_node() -> None:
    own, few = {"allow-moments": True}, Head.identity(DIM).matrix[: DIM // 4]
    assert wire.MOMENT in ask(own, app=keeping(rows(1)), message_type=wire.MOMENTS, head=few).content
    reply = ask(own, app=keeping(rows(1)), message_type=wire.MOMENTS, head=few[:-1])
    assert reply.error.reason == "no-moments"


def test_counts_pass_the_wire_unchanged() -> None:
    node = client_app.Node(Context(0, 1, {}, RecordDict(), {}), rows(1))
    counts = counted(Head.identity(DIM), node.held(100))
    back = wire.counts_of(RecordDict({wire.COUNTS: wire.counts_record(counts)}))
    assert {name: table.tolist() for name, table in back.items()} == {"faq": counts["faq"].tolist()}


@pytest.mark.parametrize("value", [[1] * 403, [-1] * 404, [1.5] * 404, "text", [1 << 50] * 404])
def test_what_is_no_table_of_counts_is_unreadable(value: Any) -> None:
    with pytest.raises(wire.Unreadable, match="counts"):
        wire.counts_of(RecordDict({wire.COUNTS: ConfigRecord({"faq": value})}))


def test_a_category_that_is_no_name_is_unreadable() -> None:
    with pytest.raises(wire.Unreadable, match="counts"):
        wire.counts_of(RecordDict({wire.COUNTS: ConfigRecord({"how do I pay?": [0] * 404})}))


def test_every_setting_of_a_course_is_one_of_the_flower_app_with_the_same_default() -> None:
    config = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert {**config, "base": BASE, "dim": DIM} == msgspec.to_builtins(Course(base=BASE, dim=DIM))


def test_every_option_of_the_command_is_a_setting_of_a_course_with_the_same_default() -> None:
    settings = msgspec.to_builtins(Course(base=BASE, dim=DIM))
    assert {
        name.removeprefix("--"): default for name, _, default, _ in federated_cli._COURSE if name != "--lr"
    }.items() <= settings.items()
    assert federated_cli.LR["head"] == settings["lr"]
    assert federated_cli._STRATEGIES == STRATEGIES


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rounds": 0}, "rounds"),
        ({"strategy": "sum"}, "strategy"),
        ({"rond": 3}, "rond"),
        ({"strategy": "fedprox"}, "fedprox without `proximal` is fedavg"),
        ({"strategy": "trimmed-mean", "quorum": 4}, "needs a quorum of 5"),
        ({"strategy": "krum", "quorum": 4}, "needs a quorum of 5"),
        ({"strategy": "median"}, "quorum of 3"),
        ({"dp-clip": 1.0}, "dp-clip and dp-noise go together"),
        ({"dp-clip": 1.0, "dp-noise": 1e-6}, "too little to promise anything"),
        ({"dp-clip": 1.0, "dp-noise": 0.5}, r"epsilon 1\d\d\.?\d* over 10 rounds"),
        ({"dim": 4096}, "larger than any proxy takes"),
        ({"epochs": 51}, "epochs"),
        ({"least-category": 1}, "least-category"),
        ({"dim-out": 400}, "dim-out"),
        ({"base": ""}, "base"),
    ],
)
def test_a_course_that_contradicts_itself_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        course_from({"base": BASE, "dim": 384, **change})


def test_the_server_tells_nodes_neither_its_folder_nor_its_key(tmp_path: Path) -> None:
    key = tmp_path / CANARY / "signing.pem"
    key.parent.mkdir()
    key.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    place = Serving(out=tmp_path / CANARY / "out", key=key, host="127.0.0.1", port=9092)
    fleet = Fleet()
    settings = msgspec.to_builtins(course(rounds=1, poll_s=0.001))
    artefact = server_app.train(fleet.grid(), settings, server_app.Place.from_environment(place.environment))
    assert not [one for one in fleet.passed if CANARY.encode() in on_the_wire(one)]
    assert headfile.read(place.out / "final", [server_app.signing_key(key).public_key().public_bytes_raw().hex()])
    assert artefact.manifest.signature


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"base": "another"}, "was made for the encoder"),
        ({"dim": 8}, "vectors of length"),
        ({"dim-out": 12}, "components"),
    ],
)
def test_a_head_that_does_not_fit_is_not_gone_on_from(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    small = Fleet().run(tmp_path / "small", course(rounds=1, dim_out=8))
    assert small.head.dim == 8
    place = server_app.Place(out=tmp_path / "out", start=tmp_path / "small" / "final")
    with pytest.raises(ConfigError, match=problem):
        server_app.train(Fleet().grid(), {**msgspec.to_builtins(course(rounds=1)), **change}, place)


def test_training_goes_on_from_fewer_components(tmp_path: Path) -> None:
    small = Fleet().run(tmp_path / "small", course(rounds=1, dim_out=8))
    more = Fleet().run(tmp_path / "more", course(rounds=1), start=small)
    assert (more.head.dim, more.manifest.parent) == (8, small.epoch)


def test_a_run_that_ends_early_says_so_last(tmp_path: Path) -> None:
    settings = msgspec.to_builtins(course(wait_s=0.01, poll_s=0.001))
    with pytest.raises(CacheProxyError):
        server_app.train(Fleet(seeds=()).grid(), settings, server_app.Place(out=tmp_path))
    last = msgspec.json.decode((tmp_path / "progress.jsonl").read_bytes().splitlines()[-1])
    assert (last["event"], "0 of at least 2 nodes" in last["why"]) == ("ended", True)


@pytest.mark.parametrize("content", [None, b"no key", "other"])
def test_a_file_that_is_no_signing_key_is_refused_with_the_way_to_make_one(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "signing.pem"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match=r"signing\.pem"):
        server_app.signing_key(file)


def keeping(kept: PairRows) -> ClientApp:
    """Return an app whose nodes have these pairs."""
    return client_app.made(lambda context, base: kept)


def ask(
    config: dict[str, Any], *, app: Any = client_app.app, message_type: str = "train", head: Any = None, **change: Any
) -> Message:
    """Return a node's reply to a message, of which some fields are changed."""
    local.LocalGrid({})
    settings: dict[str, Any] = {
        "base": BASE,
        "server-round": 1,
        "parent": "0",
        "seed": 1,
        "epochs": 1,
        "batch": 32,
        "lr": 0.02,
        "margin": 0.5,
        "scale": 20.0,
        "most-pairs": 1000,
        "least-category": 20,
        "dp-clip": 0.0,
        "dp-noise": 0.0,
    }
    matrix = Head.identity(DIM).matrix if head is None else head
    content = RecordDict({wire.HEAD: wire.head_record(matrix), wire.CONFIG: ConfigRecord({**settings, **change})})
    return local.node(app, 1, config)(Message(content, 1, message_type)) or Message(content, 1, message_type)
