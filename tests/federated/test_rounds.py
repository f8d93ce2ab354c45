from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from cacheproxy_federated import client_app, strategy, wire
from cacheproxy_federated.course import STRATEGIES
from cacheproxy_federated.exchange import Exchange, RunEnded
from cacheproxy_federated.guard import Asked, Guard, Update
from cacheproxy_federated.local import LocalGrid
from cacheproxy_federated.privacy import composed
from cacheproxy_federated.strategy import Averaging
from cacheproxy_federated.thresholds import chosen, counted, scored, summed
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict

from cacheproxy.embed import headfile
from cacheproxy.embed.head import Head, compressed
from cacheproxy.errors import ConfigError
from cacheproxy.federation.tale import PROGRESS
from tests.federated.fleet import BASE, Fleet, course, rows
from tests.federated.topics import DIM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

NEEDS: dict[str, dict[str, Any]] = {
    "fedprox": {"proximal": 0.01},
    "fedadam": {"server_lr": 0.05},
    "median": {"quorum": 3},
    "trimmed-mean": {"quorum": 5},
    "krum": {"quorum": 5},
    "multi-krum": {"quorum": 5},
}
FIVE = (1, 2, 3, 4, 5)


def progress(folder: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in (folder / PROGRESS).read_bytes().splitlines()]


def event(folder: Path, name: str) -> dict[str, Any]:
    return next(line for line in reversed(progress(folder)) if line["event"] == name)


def silent(message: Message, reply: Message) -> Message | None:
    return None


def with_matrix(change: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]) -> Callable[[Message, Message], Message]:
    """Return a node whose updates are changed: `change` gets the matrix it was sent and the one it made of it."""

    def lie(message: Message, reply: Message) -> Message:
        if wire.HEAD in reply.content:
            made = change(wire.matrix_of(message.content), wire.matrix_of(reply.content))
            reply.content[wire.HEAD] = wire.head_record(made)
        return reply

    return lie


def with_echo(**told: Any) -> Callable[[Message, Message], Message]:
    def lie(message: Message, reply: Message) -> Message:
        echo = reply.content.config_records[wire.ECHO]
        reply.content[wire.ECHO] = ConfigRecord({**echo, **told})
        return reply

    return lie


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_makes_a_better_head(strategy: str, tmp_path: Path) -> None:
    artefact = Fleet(seeds=FIVE).run(tmp_path, course(strategy=strategy, rounds=4, **NEEDS.get(strategy, {})))
    assert artefact.manifest.metrics["f05"] > event(tmp_path, "begun")["f05"] + 0.02
    assert headfile.read(tmp_path / "final").epoch == artefact.epoch


def test_every_round_leaves_an_artefact_that_a_proxy_would_take(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    Fleet().run(tmp_path, key=key)
    public = key.public_key().public_bytes_raw().hex()
    found = [headfile.read(tmp_path / name, [public]) for name in ("round-0001", "round-0002", "round-0003", "final")]
    assert [one.manifest.round for one in found] == [1, 2, 3, 3]
    assert all(one.manifest.base == one.manifest.parent == BASE for one in found)
    assert found[2].epoch == found[3].epoch != found[0].epoch


def test_the_same_run_makes_the_same_bytes_whoever_answers_first(tmp_path: Path) -> None:
    there = Fleet(seeds=(1, 2, 3)).run(tmp_path / "there")
    back = Fleet(seeds=(3, 2, 1)).run(tmp_path / "back")
    assert there.head.digest == back.head.digest
    assert there.manifest == back.manifest


@pytest.mark.parametrize(
    ("reason", "lie"),
    [
        ("not_finite", with_matrix(lambda sent, made: np.full_like(made, np.nan))),
        ("not_finite", with_matrix(lambda sent, made: np.full(made.shape, 1e300))),
        ("shape", with_matrix(lambda sent, made: made[:-1])),
        ("shape", with_matrix(lambda sent, made: made.astype(np.float16))),
        ("over_norm", with_matrix(lambda sent, made: sent + (made - sent) * 1000)),
        ("fingerprint", with_echo(base="another/encoder")),
        ("old_round", with_echo(**{wire.ROUND: 0})),
        ("old_round", with_echo(**{wire.PARENT: "of another head"})),
        ("form", lambda message, reply: Message(RecordDict(), reply_to=message)),
        ("error", lambda message, reply: Message(Error(2, "Traceback: /home/someone/secret"), reply_to=message)),
        ("silent", silent),
        ("silent", lambda message, reply: Message(Error(5, "node unavailable"), reply_to=message)),
    ],
)
def test_a_bad_reply_takes_no_part_and_is_counted(
    reason: str, lie: Callable[[Message, Message], Message | None], tmp_path: Path
) -> None:
    told = course(rounds=1, over_norm="refuse")
    without = Fleet(seeds=(1, 2)).run(tmp_path / "without", told)
    fleet = Fleet(seeds=(1, 2, 3), instead={3: lie})
    artefact = fleet.run(tmp_path / "with", told)
    assert artefact.head.digest == without.head.digest
    assert event(tmp_path / "with", "round")["refused"] == {reason: 1}
    assert artefact.manifest.metrics[f"refused_{reason}"] == 1.0
    assert "secret" not in (tmp_path / "with" / PROGRESS).read_text()


def test_an_update_that_is_too_long_is_clipped_to_the_bound(tmp_path: Path) -> None:
    longer = with_matrix(lambda sent, made: sent + (made - sent) * 1000)
    told = course(rounds=1, quorum=1, most_norm=0.5)
    artefact = Fleet(seeds=(1,), instead={1: longer}).run(tmp_path, told)
    change = artefact.head.matrix - np.eye(DIM, dtype=np.float32)
    assert np.linalg.norm(change) == pytest.approx(0.5, rel=1e-4)
    assert event(tmp_path, "round")["refused"] == {"clipped": 1}


@pytest.mark.parametrize("pairs", [0, -5, 2.5, 1 << 50])
def test_a_node_cannot_make_itself_count_for_more_than_the_cap(pairs: float, tmp_path: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if wire.HEAD in reply.content:
            reply.content[wire.NUMBERS] = MetricRecord({wire.EXAMPLES: pairs})
        return reply

    told = course(rounds=1, most_pairs=240)
    honest = Fleet().run(tmp_path / "honest", told)
    lied = Fleet(instead={3: lie}).run(tmp_path / "lied", told)
    refused = event(tmp_path / "lied", "round")["refused"]
    if pairs == 1 << 50:
        assert refused == {}
        assert lied.head.digest == honest.head.digest
    else:
        assert refused == {"numbers": 1}


def test_a_node_that_says_it_has_very_many_pairs_outweighs_the_others_by_a_bounded_factor(tmp_path: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        """Say that there are very many pairs, and that nothing below 0.99 is right."""
        if wire.HEAD in reply.content:
            reply.content[wire.NUMBERS] = wire.numbers(4000)
        if wire.COUNTS in reply.content:
            table = np.tile(np.array([0, 4000, 100, 0], dtype=np.int64), (101, 1))
            table[99:] = (100, 0, 0, 4000)
            table[:99, 0], table[:99, 2] = 100, 0
            reply.content[wire.COUNTS] = wire.counts_record({"*": table})
        return reply

    seeds = (1, 2, 3, 4, 5)
    plain = {"rounds": 1, "strategy": "fedavg"}
    bounded = Fleet(seeds=seeds, instead={5: lie}).run(tmp_path / "bounded", course(**plain, most_times=1.0))
    honest = Fleet(seeds=seeds).run(tmp_path / "honest", course(**plain))
    free = Fleet(seeds=seeds, instead={5: lie}).run(tmp_path / "free", course(**plain, most_times=1e6))
    assert bounded.head.digest == honest.head.digest != free.head.digest
    for one in (bounded, free):
        assert one.manifest.metrics["held_pairs"] == pytest.approx(5 * 60, abs=2), "of counts, nobody has more"


def test_by_default_no_node_outweighs_another_by_the_pairs_that_it_claims(tmp_path: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if wire.HEAD in reply.content:
            reply.content[wire.NUMBERS] = wire.numbers(1 << 40)
        return reply

    told = course(rounds=1, most_times=1e6)
    lied = Fleet(seeds=FIVE, instead={5: lie}).run(tmp_path / "lied", told)
    assert lied.head.digest == Fleet(seeds=FIVE).run(tmp_path / "honest", told).head.digest


def test_the_default_is_a_mean_where_no_liar_can_be_outvoted(tmp_path: Path) -> None:
    seeds = (1, 2, 3, 4)
    told = Fleet(seeds=seeds).run(tmp_path / "default", course(rounds=1))
    named = Fleet(seeds=seeds).run(tmp_path / "named", course(rounds=1, strategy="fedavg"))
    assert told.head.digest == named.head.digest
    assert told.manifest.made_by["strategy"] == "robust"


def updates(many: int, together: int = 0) -> list[Update]:
    """Return updates of one length, each its own way; the first ones have half of theirs in common."""
    random = np.random.default_rng(many)
    ways = random.normal(size=(many, DIM, DIM))
    ways[:together] = ways[:together] + ways[0]
    ways /= np.linalg.norm(ways, axis=(1, 2), keepdims=True)
    return [Update(matrix=np.eye(DIM) + way, examples=100, norm=1.0, clipped=False) for way in ways]


def averaged(given: list[Update], **named: Any) -> NDArray[np.float64]:
    """Return by how much a round of such updates moves the identity."""
    LocalGrid({})  # Flower's messages name the task that they are of
    start = np.eye(DIM, dtype=np.float32)
    return Averaging(course(**named)).average(1, start, given).astype(np.float64) - start


def lengthened(update: Update, times: float) -> Update:
    matrix = np.eye(DIM) + (update.matrix - np.eye(DIM)) * times
    return replace(update, matrix=matrix, norm=update.norm * times)


@pytest.mark.parametrize("many", [5, 9])
def test_from_five_replies_on_the_default_averages_what_multi_krum_leaves_in_and_goes_its_own_way(many: int) -> None:
    given = updates(many, together=2)
    given[-1] = lengthened(given[-1], 3.0)
    left = given[:-1]
    # Of the two that go together one is as much as may be hostile; Multi-Krum leaves out the longest.
    means = [np.mean([one.matrix - np.eye(DIM) for one in left if one is not out], axis=0) for out in left[:2]]
    assert min(float(np.abs(averaged(given) - mean).max()) for mean in means) < 1e-6


def test_what_is_left_out_twice_makes_room_for_nobody_else() -> None:
    given = updates(20, together=2)
    given[:2] = [lengthened(one, 3.0) for one in given[:2]]
    assert strategy._trusted(np.eye(DIM, dtype=np.float32), given, 2) == given[2:]


@pytest.mark.parametrize("hostile", [1, 2, 5, 8])
def test_most_of_the_replies_are_averaged_whoever_is_left_out(hostile: int) -> None:
    left = strategy._trusted(np.eye(DIM, dtype=np.float32), updates(20, together=8), hostile)
    assert 20 - 2 * hostile <= len(left) <= 20 - hostile
    assert len(left) > 10


def test_nodes_that_go_one_way_together_are_left_out_however_short_they_are() -> None:
    given = updates(20, together=2)
    common = given[0].matrix + given[1].matrix - 2 * np.eye(DIM)
    plain = averaged(given, strategy="multi-krum", quorum=7, malicious=2)
    for size in (1.0, 0.1):
        given[:2] = [lengthened(one, size) for one in given[:2]]
        assert abs(float((averaged(given) * common).sum())) < 0.3 * float((plain * common).sum())


def test_a_long_honest_update_does_not_hide_two_that_reverse_what_is_learnt() -> None:
    random = np.random.default_rng(3)
    given = updates(20)
    learnt = random.normal(size=(DIM, DIM))
    learnt /= np.linalg.norm(learnt)
    for at, one in enumerate(given):
        way = one.matrix - np.eye(DIM) + (-learnt if at < 2 else learnt)
        given[at] = replace(one, matrix=np.eye(DIM) + way, norm=float(np.linalg.norm(way)))
    given[5:8] = [lengthened(one, 2.5) for one in given[5:8]]
    left = strategy._trusted(np.eye(DIM, dtype=np.float32), given, 2)
    assert not any(one is liar for one in left for liar in given[:2])


def test_who_goes_together_is_found_in_pieces_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given, start = updates(20, together=2), np.eye(DIM, dtype=np.float32)
    whole = strategy._alike(start, given)
    monkeypatch.setattr(strategy, "_COLUMNS", 7)
    assert np.allclose(strategy._alike(start, given), whole)
    assert set(np.argsort(-whole)[:2].tolist()) == {0, 1}


@pytest.mark.parametrize(("replies", "hostile"), [(5, 1), (6, 1), (19, 1), (20, 2), (35, 3), (200, 20)])
def test_the_default_bears_a_tenth_of_the_replies(replies: int, hostile: int) -> None:
    assert Averaging(course())._hostile(replies) == hostile
    assert Averaging(course(malicious=4))._hostile(replies) == max(min(4, (replies - 3) // 2), hostile)


def test_counts_that_no_pairs_can_have_are_left_out_of_the_thresholds(tmp_path: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if wire.COUNTS in reply.content:
            table = np.tile(np.array([10_000, 0, 0, 0], dtype=np.int64), (101, 1))
            reply.content[wire.COUNTS] = wire.counts_record({"*": table})
        return reply

    two = Fleet(seeds=(1, 2)).run(tmp_path / "two", course(rounds=1))
    three = Fleet(instead={3: lie}).run(tmp_path / "three", course(rounds=1))
    assert three.manifest.metrics["held_pairs"] == two.manifest.metrics["held_pairs"]


def test_a_run_without_quorum_ends_and_says_what_the_nodes_said(tmp_path: Path) -> None:
    fleet = Fleet(kept={1: rows(1, n=10), 2: rows(2, n=10)})
    with pytest.raises(
        RunEnded, match=r"round 0: 1 sound replies, 2 needed \(2 error\); 2 node\(s\): has too few pairs"
    ):
        fleet.run(tmp_path, course(retries=1))
    assert [line["event"] for line in progress(tmp_path)] == ["no_quorum", "no_quorum"]


def test_a_round_without_quorum_is_tried_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def late(message: Message, reply: Message) -> Message | None:
        asked.append(1)
        return None if len(asked) == 2 else reply

    fleet = Fleet(seeds=(1, 2), instead={2: late})
    assert fleet.run(tmp_path, course(rounds=1)).manifest.round == 1
    assert event(tmp_path, "no_quorum")["refused"] == {"silent": 1}


def test_a_straggler_costs_the_deadline_and_not_the_run(tmp_path: Path) -> None:
    fleet = Fleet(instead={3: silent})
    fleet.run(tmp_path, course(rounds=2, deadline_s=40.0))
    questions = 1 + 2 * 2
    assert fleet.clock.at_s == pytest.approx(questions * 40.0, abs=questions)


def test_a_node_that_left_is_not_waited_for(tmp_path: Path) -> None:
    fleet = Fleet()
    grid = fleet.grid()
    told = course()

    def leave(message: Message) -> Message | None:
        del grid._nodes[3]
        return None

    grid._nodes[3] = leave
    record = RecordDict({wire.CONFIG: ConfigRecord({wire.BASE: BASE})})
    replies = Exchange(grid, fleet.clock, told.poll_s).ask([Message(record, at, "evaluate") for at in (1, 2, 3)], 600.0)
    assert len(replies) == 2
    assert fleet.clock.at_s < 5


def test_too_few_nodes_end_the_run_after_the_wait(tmp_path: Path) -> None:
    fleet = Fleet(seeds=(1,))
    with pytest.raises(RunEnded, match="1 of at least 2 nodes were there after 30 s; start more with"):
        fleet.run(tmp_path, course(wait_s=30.0))
    assert fleet.clock.at_s == pytest.approx(30.0, abs=2.0)


def test_a_run_may_wait_for_more_nodes_than_it_goes_on_with(tmp_path: Path) -> None:
    with pytest.raises(RunEnded, match="3 of at least 4 nodes"):
        Fleet().run(tmp_path / "waits", course(first=4, wait_s=10.0))
    asked: list[int] = []

    def leaves(message: Message, reply: Message) -> Message | None:
        asked.append(1)
        return reply if len(asked) == 1 else None

    assert Fleet(instead={3: leaves}).run(tmp_path, course(first=3, rounds=1)).manifest.round == 1


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_an_interrupted_run_goes_on_to_the_same_head(strategy: str, tmp_path: Path) -> None:
    whole = Fleet().run(tmp_path / "whole", course(rounds=4, strategy=strategy))
    Fleet().run(tmp_path / "broken", course(rounds=2, strategy=strategy))
    resumed = Fleet().run(tmp_path / "broken", course(rounds=4, strategy=strategy), resume=True)
    assert resumed.head.digest == whole.head.digest
    assert resumed.manifest.thresholds == whole.manifest.thresholds
    assert event(tmp_path / "broken", "resumed")["round"] == 2


def test_a_round_that_was_not_written_to_its_end_is_trained_again(tmp_path: Path) -> None:
    whole = Fleet().run(tmp_path, course())
    (tmp_path / "round-0003" / headfile.MANIFEST).unlink()
    assert Fleet().run(tmp_path, course(), resume=True).head.digest == whole.head.digest
    assert event(tmp_path, "resumed")["round"] == 2


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Fleet().run(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already; go on with it"):
        Fleet().run(tmp_path)
    with pytest.raises(ConfigError, match="begun with other settings"):
        Fleet().run(tmp_path, course(lr=0.5), resume=True)


def test_a_run_that_began_with_a_head_is_not_gone_on_with_from_another(tmp_path: Path) -> None:
    first = Fleet().run(tmp_path / "first", course(rounds=1))
    Fleet().run(tmp_path / "second", course(rounds=1), start=first)
    for start in (None, headfile.read(tmp_path / "second" / "final")):
        with pytest.raises(ConfigError, match=r"begun with other settings; .*--from may not"):
            Fleet().run(tmp_path / "second", course(rounds=2), start=start, resume=True)
    again = Fleet().run(tmp_path / "second", course(rounds=2), start=first, resume=True)
    assert (again.manifest.parent, again.manifest.round) == (first.epoch, 2)


def test_training_goes_on_from_a_head_that_was_made_before(tmp_path: Path) -> None:
    first = Fleet().run(tmp_path / "first", course(rounds=2))
    second = Fleet().run(tmp_path / "second", course(rounds=1, seed=5), start=first)
    assert second.manifest.parent == first.epoch
    assert event(tmp_path / "second", "begun")["f05"] == pytest.approx(first.manifest.metrics["f05"], abs=1e-4)


def test_components_are_chosen_over_all_nodes_as_if_their_vectors_were_in_one_place(tmp_path: Path) -> None:
    artefact = Fleet().run(tmp_path, course(dim_out=8, int8=True, most_pairs=5000))
    assert (artefact.head.dim, artefact.head.int8, artefact.head.dim_in) == (8, True, DIM)
    assert artefact.head.vector_bytes * 8 == DIM * 4
    whole = headfile.read(tmp_path / "round-0003").head
    seen = [rows(seed) for seed in (1, 2, 3)]
    vectors = np.concatenate([one.a[~one.held] for one in seen] + [one.b[~one.held] for one in seen])
    apart = compressed(whole, vectors, 8, int8=True)
    assert np.allclose(apart.matrix, artefact.head.matrix, atol=1e-4)
    nodes = [client_app.Node(Context(0, 1, {}, RecordDict(), {}), one) for one in seen]
    counts = summed(counted(artefact.head, node.held(5000)) for node in nodes)
    assert artefact.manifest.thresholds == chosen(counts)
    assert artefact.manifest.metrics["f05"] == scored(counts, chosen(counts)["*"])["f05"]


def test_a_made_up_second_moment_is_left_out(tmp_path: Path) -> None:
    def lie(message: Message, reply: Message) -> Message:
        if wire.MOMENT in reply.content:
            reply.content[wire.MOMENT] = wire.head_record(np.eye(DIM) * 1e9)
        return reply

    two = Fleet(seeds=(1, 2)).run(tmp_path / "two", course(dim_out=8, rounds=1))
    three = Fleet(seeds=(1, 2, 3), instead={3: lie}).run(tmp_path / "three", course(dim_out=8, rounds=1))
    assert three.head.dim == two.head.dim == 8
    assert np.abs(three.head.matrix).max() < 10


def test_second_moments_of_one_node_count_for_a_bounded_number_of_vectors() -> None:
    asked = Asked(base=BASE, number=1, parent="0", matrix=Head.identity(DIM).matrix)

    def reply(vectors: int, at: int) -> Message:
        moment = np.zeros((DIM, DIM))
        moment[at, at] = vectors
        content = RecordDict({wire.MOMENT: wire.head_record(moment), wire.NUMBERS: wire.numbers(vectors)})
        content[wire.ECHO] = ConfigRecord({**asked.echo})
        return Message(content, 1, wire.MOMENTS)

    replies = [reply(100, 0), reply(100, 1), reply(100, 2), reply(4000, 3)]
    moments = Guard(course(), asked).moments(replies)
    assert sorted(round(float(np.trace(one))) for one in moments) == [100, 100, 100, 200]
    back = Guard(course(), asked).moments(replies[::-1])
    assert [one.tobytes() for one in back] == [one.tobytes() for one in moments]


def test_noise_and_clipping_happen_in_a_run_and_the_epsilon_is_told(tmp_path: Path) -> None:
    fleet = Fleet()
    told = course(rounds=2, dp_clip=0.05, dp_noise=4.0)
    artefact = fleet.run(tmp_path, told)
    updates = [
        wire.matrix_of(reply.content) - wire.matrix_of(asked.content)
        for asked, reply in zip(fleet.passed[::2], fleet.passed[1::2], strict=True)
        if wire.HEAD in reply.content
    ]
    assert len(updates) == 6
    # The noise on each of the components is 0.2; without the clipping to 0.05 updates of some 3 would stand out of it.
    for update in updates:
        assert np.std(update) == pytest.approx(0.2, rel=0.2)
    assert artefact.manifest.metrics["dp_epsilon"] == pytest.approx(composed(4.0, 2, 1, told.dp_delta))


def test_clipping_is_the_last_thing_before_an_update_leaves(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.run(tmp_path, course(rounds=1, dp_clip=0.05, dp_noise=0.002))
    honest = Fleet()
    honest.run(tmp_path / "honest", course(rounds=1))
    norms = [_norms(one) for one in (fleet, honest)]
    assert max(norms[0]) < 0.052 < 0.5 < min(norms[1])


def test_retries_and_interruptions_are_paid_for_in_epsilon(tmp_path: Path) -> None:
    first = Fleet().run(tmp_path, course(rounds=1, dp_clip=0.05, dp_noise=4.0))
    (tmp_path / "round-0001" / headfile.MANIFEST).unlink()
    again = Fleet().run(tmp_path, course(rounds=1, dp_clip=0.05, dp_noise=4.0), resume=True)
    assert again.manifest.metrics["dp_epsilon"] > first.manifest.metrics["dp_epsilon"]
    assert again.manifest.metrics["dp_epsilon"] == pytest.approx(composed(4.0, 2, 2, 1e-5))


def test_a_node_may_be_stricter_than_the_run(tmp_path: Path) -> None:
    fleet = Fleet(config={"dp-clip": 0.05})
    fleet.run(tmp_path, course(rounds=1))
    assert max(_norms(fleet)) <= 0.05


def test_a_node_that_wants_noise_without_a_bound_takes_no_part(tmp_path: Path) -> None:
    with pytest.raises(RunEnded, match=r"3 node\(s\): has a dp-noise of its own, and no dp-clip"):
        Fleet(config={"dp-noise": 1.0}).run(tmp_path, course(retries=0))


def _norms(fleet: Fleet) -> list[float]:
    return [
        float(np.linalg.norm(wire.matrix_of(reply.content) - wire.matrix_of(asked.content)))
        for asked, reply in zip(fleet.passed[::2], fleet.passed[1::2], strict=True)
        if wire.HEAD in reply.content
    ]


def test_an_identity_head_is_where_a_first_run_begins(tmp_path: Path) -> None:
    fleet = Fleet()
    fleet.run(tmp_path, course(rounds=1))
    assert (wire.matrix_of(fleet.passed[0].content) == Head.identity(DIM).matrix).all()
