"""Encoders: which one is in use, which similarity head on it, and how one head takes the place of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request, Response, get, post

from cacheproxy.errors import InvalidRequest
from cacheproxy.http.admin.asked import actor_of, body_of, is_dry_run, refuse_unknown
from cacheproxy.http.admin.document import GUARDED, refusals, told

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from cacheproxy.http.admin.house import Operated
    from cacheproxy.policy.gate import Verdict
    from cacheproxy.ports import Change

_PATH = "/admin/v1/encoders"
_MOST_BYTES = 48 << 20
"""Of a body: the largest weights, in base64."""


class HeadInUse(msgspec.Struct, frozen=True, kw_only=True):
    """A similarity head, learnt from labelled pairs, on the encoder below it."""

    epoch: str
    mode: str
    """`head`, or what changed in the encoder in its place: `top-layers` or `lora`."""
    dim: int
    int8: bool
    vector_bytes: int
    """What one of its vectors takes where it is stored compactly."""
    parent: str
    round: int
    signed_by: str
    """Public key, "" where it is not signed."""
    thresholds: dict[str, float]
    metrics: dict[str, float]


class InUse(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder in use. `epoch` is its fingerprint, which kept vectors and the pack's thresholds carry."""

    name: str
    epoch: str
    dim: int
    precision: str
    device: str
    calibrated: bool
    """Whether the pack has a threshold for it: without one nothing is served by similarity."""
    searched: str
    """The epoch that similarities are told in: the encoder's own, or that of the head on it."""
    head: HeadInUse | None
    entries: int
    """Entries that similarity can find."""
    waiting: int
    """Entries that it cannot find yet: an encoder with changed layers has yet to encode their texts."""


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """A head on its way. `step` is `examining`, `filling`, or `failed`, and why; "" when none is."""

    step: str
    epoch: str
    done: int
    total: int
    """Entries, about; while it is examined, texts that are known to be encoded for that."""
    problem: str


class Promoted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A head as its two files have it; `weights` is `head.safetensors` in base64."""

    manifest: dict[str, Any]
    weights: bytes


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A head to `promote`, or to `rollback` to what served before, or to `cancel` what is on its way.

    `force` promotes one that does not pass.
    """

    promote: Promoted | None = None
    rollback: bool = False
    cancel: bool = False
    force: bool = False


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What this proxy's own pairs say of a head; `problems` say why it may not serve, without one it passed.

    `gain` is of F0.5, with its 95 % interval; null where too little is known.
    """

    problems: list[str]
    pairs: int
    before: dict[str, float | None]
    after: dict[str, float | None]
    gain: float | None
    low: float | None
    high: float | None
    categories: dict[str, float]
    elsewhere: float | None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it, for the head of an epoch. Once it `began`, `GET` tells how far it is."""

    epoch: str
    began: bool
    dry_run: bool
    examining: bool
    """Whether it is still examined, with status 202: `GET` tells how far that is, and in `last` what came of it."""
    examined: Examined | None


class Encoders(msgspec.Struct, frozen=True, kw_only=True):
    """The encoder in use, and what is kept without a vector of it: for exact matches only, or from another encoder."""

    in_use: InUse | None
    other_entries: int
    heads: list[str]
    """Epochs of the heads that this proxy has been given; the newest eight, and those that served before."""
    before: list[str]
    """What served before, the latest last: rolling back goes there. "" is the encoder without a head."""
    progress: Way
    last: Changed | None
    """What came of the last encoder with changed layers that was to be promoted, since the start."""


def handlers(house: Operated) -> list[HTTPRouteHandler]:
    """Return the routes of encoders."""

    @get(_PATH, sync_to_thread=True, responses=refusals(401), security=GUARDED)
    def encoders() -> Encoders:
        return _told(house)

    @post(
        _PATH,
        status_code=200,
        request_max_body_size=_MOST_BYTES,
        responses=refusals(400, 401, 404, 412, 413, 503),
        security=GUARDED,
        operation_class=told(Wanted),
    )
    async def change_encoder(request: Request[Any, Any, Any]) -> Response[Changed]:
        refuse_unknown(request, {"dry_run"})
        dry_run, wanted = is_dry_run(request), body_of(await request.body(), Wanted, "encoders")
        if [wanted.promote is not None, wanted.rollback, wanted.cancel].count(True) != 1:
            raise InvalidRequest("give one of these: a head to `promote`, `rollback`: true, or `cancel`: true")
        before, heads = house.pipeline.parts.index.epoch, house.heads
        if wanted.cancel:
            change = heads.cancel(dry_run=dry_run)
        elif wanted.promote is None:
            change = await heads.rollback(dry_run=dry_run)
        else:
            head, actor = wanted.promote, actor_of(request)
            change = await heads.promote(head.manifest, head.weights, actor=actor, force=wanted.force, dry_run=dry_run)
        if wanted.promote is None and not dry_run:
            what = "encoders.cancel" if wanted.cancel else "encoders.rollback"
            after = {"serving": before if wanted.cancel else change.epoch, "forced": False}
            await house.audit.record(actor_of(request), what, change.epoch, before={"serving": before}, after=after)
        if not change.examining:
            return Response(_changed(change))
        return Response(_changed(change), status_code=202, headers={"location": _PATH})

    return [encoders, change_encoder]


def _told(house: Operated) -> Encoders:
    parts, config, heads = house.pipeline.parts, house.settings.encoder, house.heads
    kept = sum(holding.entries for holding in house.catalogue.holdings())
    found, way = len(parts.index), heads.progress
    in_use = None
    if parts.embedder is not None:
        pack, epoch = house.pipeline.pack(), parts.embedder.epoch
        in_use = InUse(
            name=config.name,
            epoch=epoch,
            dim=parts.embedder.dim,
            precision=config.precision,
            device=config.device,
            calibrated=pack.threshold(pack.default_category, epoch) is not None,
            searched=parts.index.epoch,
            head=_head(house),
            entries=found,
            waiting=parts.index.waiting,
        )
    return Encoders(
        in_use=in_use,
        other_entries=max(0, kept - found - parts.index.waiting) if in_use else kept,
        heads=heads.known(),
        before=list(heads.before),
        progress=Way(step=way.step, epoch=way.epoch, done=way.done, total=way.total, problem=way.problem),
        last=None if heads.last is None else _changed(heads.last),
    )


def _head(house: Operated) -> HeadInUse | None:
    head = house.heads.serving()
    return None if head is None else HeadInUse(**{name: getattr(head, name) for name in HeadInUse.__struct_fields__})


def _changed(change: Change) -> Changed:
    return Changed(
        epoch=change.epoch,
        began=change.began,
        dry_run=change.dry_run,
        examining=change.examining,
        examined=None if change.verdict is None else _examined(change.verdict),
    )


def _examined(verdict: Verdict) -> Examined:
    return Examined(
        problems=list(verdict.problems),
        pairs=verdict.pairs,
        before=dict(verdict.before),
        after=dict(verdict.after),
        gain=verdict.gain,
        low=verdict.low,
        high=verdict.high,
        categories=dict(verdict.categories),
        elsewhere=verdict.elsewhere,
    )
