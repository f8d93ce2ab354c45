"""The settings of a run: what the server says once, and every node is told. No path, no key, no text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from cacheproxy.embed import headfile
from cacheproxy.embed.layers import MOST_DEPTH, MOST_DIM, MOST_INNER, Form
from cacheproxy.errors import ConfigError
from cacheproxy_federated.privacy import composed

if TYPE_CHECKING:
    from collections.abc import Mapping

STRATEGIES = ("robust", "fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum", "multi-krum")

_MOST_EPSILON = 100.0
"""Over a run. Noise that promises less is for show."""
MOST_BATCH = 128
MOST_PAIRS = 1000
"""Of a batch and of a round (drawn anew for each) where an encoder's layers are trained, by texts. So many take the
default encoder about a minute of one core."""
_HEADER = 1 << 10
"""Bytes of a head's file that are not weights."""

_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Index = Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]


class Course(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """How one head is trained. Field names are the keys of `[tool.flwr.app.config]`, with hyphens."""

    base: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    """Fingerprint of the encoder whose vectors the head is for."""
    dim: Annotated[int, msgspec.Meta(ge=2, le=MOST_DIM)]
    """Length of that encoder's vectors."""
    mode: Literal["head", "top-layers", "lora"] = "head"
    """What is trained: a head on the encoder's vectors, or its own layers, by texts."""
    layers: Annotated[int, msgspec.Meta(ge=0, le=MOST_DEPTH)] = 0
    """How many of the encoder's last layers change; 0 is two whole ones, or all where they get adapters."""
    rank: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 8
    """Of adapters."""
    inner: Annotated[int, msgspec.Meta(ge=0, le=MOST_INNER)] = 0
    """Width of that encoder's feed-forward maps, and how many layers it has; where its layers are trained."""
    depth: Annotated[int, msgspec.Meta(ge=0, le=MOST_DEPTH)] = 0
    rounds: _Count = 10
    strategy: Literal["robust", "fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum", "multi-krum"] = (
        "robust"
    )
    """`robust` is, in a round of five sound replies or more, the mean of those that multi-krum keeps and that do not go
    one way together; and fedavg below, where nobody can outvote a liar."""
    quorum: _Count = 2
    """Fewest sound replies that make a round."""
    first: _Index = 0
    """Nodes that are waited for before the run begins, where that is more than the quorum."""
    fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Share of the nodes present that is asked in a round, never fewer than the quorum."""
    deadline_s: _Positive = 300.0
    """Longest wait for the replies of a round; late ones are left out."""
    wait_s: _Positive = 600.0
    """Longest wait for as many nodes as the quorum asks for."""
    poll_s: _Positive = 1.0
    retries: _Index = 2
    """How often a round without quorum is tried again."""
    seed: _Index = 0

    epochs: Annotated[int, msgspec.Meta(ge=1, le=50)] = 2
    """No node goes over its pairs more often in a round."""
    batch: Annotated[int, msgspec.Meta(ge=2, le=4096)] = 64
    lr: _Positive = 0.01
    margin: _Amount = 0.5
    scale: _Positive = 20.0
    proximal: _Amount = 0.0
    """Pull back to the head that was sent; FedProx needs one above 0."""

    trim: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] = 0.2
    """Share cut off at either end, component by component (trimmed-mean)."""
    malicious: _Count = 1
    """Nodes that may be hostile (krum, multi-krum; robust takes it for the fewest, of a tenth of the replies)."""
    server_lr: _Positive = 0.01
    """The server's own step (fedadam)."""
    most_norm: _Positive = 60.0
    """Longest update, as a Frobenius norm; a longer one is treated as `over_norm` says. One of a node with 2,000 pairs
    has some 40; the noise of differential privacy is allowed for besides."""
    over_norm: Literal["clip", "refuse"] = "clip"
    most_pairs: Annotated[int, msgspec.Meta(ge=200, le=1_000_000)] = 5000
    """Most pairs that one node counts for, in weights and in thresholds."""
    most_times: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 2.0
    """How many times the median node's pairs one node counts for, at most: how many it has is only its own word.
    Under `robust` with five replies or more, and in thresholds, nobody counts for more than another."""
    least_category: Annotated[int, msgspec.Meta(ge=20, le=1_000_000)] = 20
    """Fewest held-back pairs under which a node names a category; others count without their name."""

    dp_clip: _Amount = 0.0
    """Local differential privacy: longest update that leaves a node; 0 is off."""
    dp_noise: _Amount = 0.0
    """Standard deviation of the noise on every component, in clipping norms; of counts, in `dp_counts`."""
    dp_counts: Annotated[int, msgspec.Meta(ge=20, le=1_000_000)] = 100
    """Most held-back pairs that a node's noisy counts are of; their noise is `dp_noise` times as many."""
    dp_delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-5
    """At which the epsilon of the whole run is told."""

    dim_out: _Index = 0
    """Components of the last head; 0 leaves all. More than 0 asks nodes for second moments: see the documentation."""
    int8: bool = False
    """Whether the last head's vectors are compared as int8 codes."""

    @property
    def form(self) -> Form | None:
        """Which of the encoder's weights change, None for a head. Raises ValueError that says what cannot be."""
        if self.mode == "head":
            return None
        lora = self.mode == "lora"
        layers = self.layers or (self.depth if lora else min(2, self.depth))
        shape = {"dim": self.dim, "inner": self.inner, "depth": self.depth}
        return Form(mode=self.mode, layers=layers, rank=self.rank if lora else 0, **shape)


def course_from(config: Mapping[str, Any]) -> Course:
    """Return a course, or raise ConfigError that names the setting."""
    try:
        course = msgspec.convert(dict(config), Course, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"federated: {_told(exc)}") from exc
    if flaw := _flaw(course):
        raise ConfigError(f"federated: {flaw}")
    return course


def _flaw(course: Course) -> str | None:
    """Return what contradicts itself: a defence that the quorum makes an empty one is worse than none."""
    if course.strategy == "fedprox" and not course.proximal:
        return "fedprox without `proximal` is fedavg; set it (0.01 to 1), or choose fedavg"
    if course.strategy == "trimmed-mean" and int(course.trim * course.quorum) < 1:
        return f"trimmed-mean cuts nothing of {course.quorum} replies; it needs a quorum of {_ceiling(1 / course.trim)}"
    if course.strategy == "median" and course.quorum < 3:
        return "the median of 2 replies is their mean; it needs a quorum of 3"
    if course.strategy in ("krum", "multi-krum") and course.quorum < 2 * course.malicious + 3:
        needed = 2 * course.malicious + 3
        return f"{course.strategy} against {course.malicious} hostile nodes needs a quorum of {needed} (2f + 3)"
    if bool(course.dp_clip) != bool(course.dp_noise):
        return "dp-clip and dp-noise go together: one without the other promises nothing"
    if course.dp_noise and (promised := composed(course.dp_noise, course.rounds, 1, course.dp_delta)) > _MOST_EPSILON:
        return (
            f"dp-noise {course.dp_noise:g} is too little to promise anything: epsilon {promised:g} over "
            f"{course.rounds} rounds; 1 or more is usual, or fewer rounds"
        )
    if course.mode != "head":
        return _layers_flaw(course)
    if course.dim * course.dim * 4 + _HEADER > headfile.MOST_BYTES:
        return f"dim {course.dim} makes heads larger than any proxy takes; use an encoder of shorter vectors"
    if course.dim_out and not 2 <= course.dim_out <= course.dim:
        return f"dim-out must be 2 to {course.dim}, or 0 for all, got {course.dim_out}"
    return None


def _layers_flaw(course: Course) -> str | None:
    """Return what contradicts itself in a run that trains the encoder's own layers."""
    try:
        form = course.form
    except ValueError as exc:
        return f"{course.mode} needs `depth` and `inner` of the encoder: {exc}"
    if form is not None and form.size * 4 + _HEADER * len(form.shapes) > headfile.MOST_BYTES:
        return f"{course.mode} of {form.layers} layers is larger than any proxy takes; train fewer"
    if course.dim_out or course.int8:
        return f"dim-out and int8 are of heads; a run of {course.mode} has none"
    if course.batch > MOST_BATCH:
        return f"{course.mode} is trained in batches of at most {MOST_BATCH}, got {course.batch}"
    return None


def _ceiling(value: float) -> int:
    return int(value) + (value > int(value))


def _told(exc: msgspec.ValidationError) -> str:
    text = str(exc)
    return re.sub(r" - at `\$\.?(.*)`$", lambda found: f" (`{found[1]}`)", text)
