"""`cacheproxy federated`: train the similarity head over several proxies, of whose pairs no text leaves its machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cacheproxy.encoders_cli import cancel, promote, rollback
from cacheproxy.errors import ConfigError
from cacheproxy.flags import COMMON_FLAGS, encoder_of, load, with_flags

if TYPE_CHECKING:
    from cacheproxy.settings import Settings

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_PATH = click.Path(path_type=Path)
LR = {"head": 0.01, "top-layers": 5e-5, "lora": 1e-3}
"""Steps that train well, by mode."""
_STRATEGIES = ("robust", "fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum", "multi-krum")
# (option, type, default, help): settings of a run, and their keys in the Flower app. All others have good defaults.
_COURSE: tuple[tuple[str, Any, Any, str], ...] = (
    ("--mode", click.Choice(("head", "top-layers", "lora")), "head", "What is trained; all but a head by texts."),
    ("--layers", click.IntRange(0), 0, "Last layers that change; 0 is two whole ones, or adapters in all."),
    ("--rank", click.IntRange(1), 8, "Of lora's adapters."),
    ("--rounds", click.IntRange(1), 10, "Rounds of training."),
    ("--strategy", click.Choice(_STRATEGIES), "robust", "How updates become one head."),
    ("--epochs", click.IntRange(1, 50), 2, "Times a node goes over its pairs in a round."),
    (
        "--lr",
        click.FloatRange(0, min_open=True),
        None,
        "Step of a node's training.  [default: by mode]",
    ),
    ("--seed", click.IntRange(0), 0, "The same seed and pairs make the same head."),
    ("--proximal", click.FloatRange(0), 0.0, "Pull back to the head that was sent; fedprox needs one."),
    ("--malicious", click.IntRange(1), 1, "Hostile nodes that krum and multi-krum bear; of robust, at least."),
    (
        "--trim",
        click.FloatRange(0, 0.5, min_open=True, max_open=True),
        0.2,
        "Share that trimmed-mean cuts at each end.",
    ),
    ("--most-norm", click.FloatRange(0, min_open=True), 60.0, "Longest update (Frobenius norm)."),
    ("--over-norm", click.Choice(("clip", "refuse")), "clip", "What becomes of a longer one."),
    ("--dp-clip", click.FloatRange(0), 0.0, "Local differential privacy: longest update that leaves a node."),
    ("--dp-noise", click.FloatRange(0), 0.0, "Its noise, in clipping norms; the epsilon is told in the manifest."),
    (
        "--dim-out",
        click.IntRange(0),
        0,
        "Components of the last head; 0 keeps all. Nodes need --allow-moments.",
    ),
)


def _course_options(command: _Command) -> _Command:
    told = "Compare int8 codes: a quarter of the bytes."
    command = click.option("--quantised", "int8", is_flag=True, help=told)(command)
    for name, kind, default, told in reversed(_COURSE):
        shown = default is not None
        command = click.option(name, type=kind, default=default, show_default=shown, help=told)(command)
    return command


_KEEP = (
    click.option("--key", type=_PATH, help="Signs every head (Ed25519, PEM); `cacheproxy federated keys` makes one."),
    click.option("--resume", is_flag=True, help="Go on with the run that --out holds, after its last whole round."),
)


def _kept(command: _Command) -> _Command:
    for option in reversed(_KEEP):
        command = option(command)
    return command


@click.group()
def federated() -> None:
    """Train what counts as alike, over several proxies. Weights and counts meet; no text, no vector leaves a machine.

    \b
    Try it on one machine:
      cacheproxy federated simulate --pairs pairs.jsonl --clients 6 --out trained
    For real, on the server and beside each proxy that collects (federated.collect):
      cacheproxy federated serve --dir trained --quorum 3
      cacheproxy federated join --superlink 127.0.0.1:9092
    Then hand the head to a live proxy, which takes it only if it is better on its own held-back pairs:
      cacheproxy federated promote trained/final
    """


@federated.command()
@with_flags(*COMMON_FLAGS)
@click.option(
    "--pairs",
    "files",
    multiple=True,
    required=True,
    metavar="FILE...",
    type=_FILE,
    help="Labelled pairs (JSON lines, may be gzipped), as for `eval pairs`; or the option several times.",
)
@click.argument("more", nargs=-1, metavar="[FILE...]", type=_FILE)
@click.option("--clients", type=click.IntRange(2, 1000), default=6, show_default=True, help="How many there are.")
@click.option("--skew", is_flag=True, help="Give each client topics of its own, not pairs of all topics.")
@click.option("--in-process", is_flag=True, help="Without Ray: one client after another.")
@click.option("--out", type=_PATH, required=True, help="Where the run and its head are kept.")
@_course_options
@_kept
def simulate(
    config: Path | None,
    files: tuple[Path, ...],
    more: tuple[Path, ...],
    clients: int,
    skew: bool,
    in_process: bool,
    out: Path,
    key: Path | None,
    resume: bool,
    **told: Any,
) -> None:
    """Train over simulated clients on this machine, to see what federated training would bring.

    Pairs that share a question stay together. A fifth of each client's is held back, for thresholds and figures.

    \b
    Examples:
      cacheproxy federated simulate --pairs pairs.jsonl --clients 6 --out trained
      cacheproxy federated simulate --pairs pairs.jsonl --clients 20 --skew --strategy multi-krum --out trained
    """
    from cacheproxy.federation.app import need_course, need_flower

    need_flower(simulation=not in_process)
    course, flags = _parted(told)
    loaded = load(config, flags)
    from cacheproxy.federation.children import ended_by_signals
    from cacheproxy.federation.trial import Trial
    from cacheproxy.federation.trial import simulate as run

    encoder = encoder_of(loaded)
    trial = Trial(
        files=tuple(dict.fromkeys((*files, *more))),
        clients=clients,
        skew=skew,
        in_process=in_process,
        seed=course["seed"],
        out=out,
        vectors=loaded.data.path() / "vectors",
        key=key,
        resume=resume,
        encoder="" if course["mode"] == "head" else _weights(loaded),
    )
    # A client of little data may stay out, but not where a defence must outnumber the hostile ones.
    quorum = max(2, clients // 2) if course["strategy"] in ("robust", "fedavg", "fedprox", "fedadam") else clients
    course |= {"base": encoder.fingerprint, "dim": _dim(encoder), "quorum": quorum, "poll-s": 0.05}
    course |= _of_layers(course, course["base"], loaded)
    need_course(course)
    with ended_by_signals():
        artefact = run(trial, encoder, course)
    _done(artefact, out, key)


@federated.command()
@with_flags(*COMMON_FLAGS)
@click.option("--dir", "out", type=_PATH, required=True, help="Where the run and its head are kept.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; any but loopback needs --certificates.")
@click.option("--port", type=click.IntRange(1, 65535), default=9092, show_default=True, help="Port for nodes.")
@click.option("--quorum", type=click.IntRange(1), default=2, show_default=True, help="Fewest nodes that make a round.")
@click.option("--first", type=click.IntRange(0), default=0, help="Nodes to wait for at first.  [default: the quorum]")
@click.option(
    "--fraction", type=click.FloatRange(0, 1, min_open=True), default=1.0, help="Share of nodes asked a round."
)
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(1), default=300.0, show_default=True, help="Seconds a round."
)
@click.option(
    "--wait", "wait_s", type=click.FloatRange(1), default=3600.0, show_default=True, help="Seconds for nodes to come."
)
@click.option("--certificates", type=_PATH, help="Folder with ca.crt, server.crt and server.key.")
@click.option(
    "--node", "nodes", type=_PATH, multiple=True, help="Public key of a node that may join; any, if none given."
)
@click.option("--from", "start", type=_PATH, help="Folder of the head to go on from.  [default: none]")
@click.option("--base", metavar="FINGERPRINT", help="Of the proxies' encoder, where this machine has none; with --dim.")
@click.option("--dim", type=click.IntRange(2), help="Length of that encoder's vectors.")
@_course_options
@_kept
def serve(config: Path | None, out: Path, start: Path | None, key: Path | None, **told: Any) -> None:
    """Serve one run to its end: wait for nodes, train, keep every round, write the head and its thresholds.

    A node that dies costs a round its deadline at most. What was trained before an interruption is kept (--resume).

    \b
    Examples:
      cacheproxy federated serve --dir trained --quorum 3
      cacheproxy federated keys --out keys --host train.example.org --node one --node two
      cacheproxy federated serve --dir trained --host 0.0.0.0 --certificates keys \\
        --node keys/one.pub --node keys/two.pub --key keys/signing.pem
    """
    from cacheproxy.federation.app import need_course, need_flower

    need_flower()
    place = {name: told.pop(name) for name in ("host", "port", "certificates", "nodes", "resume")}
    base, dim = told.pop("base"), told.pop("dim")
    if (base is None) != (dim is None):
        raise ConfigError("--base and --dim go together: `cacheproxy federated join` needs both to be the encoder's")
    course, flags = _parted(told)
    loaded = load(config, flags)
    from cacheproxy.federation.children import ended_by_signals
    from cacheproxy.federation.server import Serving
    from cacheproxy.federation.server import serve as run

    serving = Serving(out=out, key=key, start=start, **place)
    serving.check()
    if base is not None and course["mode"] != "head":
        raise ConfigError(f"--mode {course['mode']} needs the encoder on this machine: leave out --base and --dim")
    if base is None:
        encoder = encoder_of(loaded)
        base, dim = encoder.fingerprint, _dim(encoder)
    course |= {"base": base, "dim": dim, **_of_layers(course, base, loaded)}
    need_course(course)
    click.echo(f"training a head for {base}")
    with ended_by_signals():
        artefact = run(serving, course)
    _done(artefact, out, key)


@federated.command()
@with_flags(*COMMON_FLAGS)
@click.option("--superlink", required=True, metavar="HOST:PORT", help="What `federated serve` printed.")
@click.option("--root-certificates", type=_PATH, help="The server's ca.crt.")
@click.option("--node-key", type=_PATH, help="This node's private key, whose public half the server knows.")
@click.option("--insecure", is_flag=True, help="Without TLS, also to another machine.")
@click.option("--least-pairs", type=click.IntRange(1), help="Fewest pairs to train on.  [default: 20]")
@click.option("--dp-clip", type=click.FloatRange(0), help="Longest update that leaves, whatever the run says.")
@click.option("--dp-noise", type=click.FloatRange(0), help="Least noise on it, in clipping norms.")
@click.option("--allow-moments", is_flag=True, help="Send second moments of the questions to runs with --dim-out.")
def join(
    config: Path | None,
    superlink: str,
    root_certificates: Path | None,
    node_key: Path | None,
    insecure: bool,
    **told: Any,
) -> None:
    """Take part in runs with the pairs that the proxy of this data directory collected, until Ctrl-C.

    It runs the app that is installed here and no other, whatever the server sends. What leaves are weights and counts
    of categories with enough pairs. The proxy may serve meanwhile.

    \b
    Examples:
      cacheproxy federated join --superlink 127.0.0.1:9092
      cacheproxy federated join --superlink train.example.org:9092 --root-certificates ca.crt --node-key one.key
    """
    from cacheproxy.federation.app import need_flower

    need_flower()
    own = {name.replace("_", "-"): told.pop(name) for name in ("least_pairs", "dp_clip", "dp_noise", "allow_moments")}
    loaded = load(config, told)
    from cacheproxy.federation.children import ended_by_signals
    from cacheproxy.federation.node import Joining
    from cacheproxy.federation.node import join as run

    joining = Joining(
        superlink=superlink,
        data_dir=loaded.data.path(),
        root_certificates=root_certificates,
        node_key=node_key,
        insecure=insecure,
        encoder=_weights(loaded),
        own={name: value for name, value in own.items() if value not in (None, False)},
    )
    with ended_by_signals():
        run(joining)


@federated.command()
@click.option("--out", type=_PATH, required=True, help="Where they are written.")
@click.option(
    "--host", "hosts", multiple=True, help="Name or address by which nodes reach the server; repeat for more."
)
@click.option("--node", "nodes", multiple=True, metavar="NAME", help="A node to make a key pair for; repeat for more.")
def keys(out: Path, hosts: tuple[str, ...], nodes: tuple[str, ...]) -> None:
    """Make certificates for the server, a key pair for each node, and a key that signs heads.

    \b
    Example:
      cacheproxy federated keys --out keys --host train.example.org --node one --node two
    """
    from cacheproxy.federation.keys import SIGNING, make_keys, public_half

    # The server's own processes use loopback.
    for file in make_keys(out, list(dict.fromkeys((*hosts, "localhost", "127.0.0.1"))), nodes):
        click.echo(file)
    click.echo(f'Proxies that take heads signed by it: encoder.head_keys = "{public_half(out / SIGNING)}"')


def _parted(told: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run, by their keys in the app, and the flags of cacheproxy's own settings."""
    flags = {name: value for name, value in told.items() if "__" in name}
    course = {name.replace("_", "-"): value for name, value in told.items() if "__" not in name}
    if "lr" in course and course["lr"] is None:
        course["lr"] = LR[course["mode"]]
    return course, flags


def _weights(loaded: Settings) -> str:
    """Return what tells other processes, wherever they run, where the encoder's weights are."""
    name = loaded.encoder.name
    return str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name


def _of_layers(course: dict[str, Any], base: str, loaded: Settings) -> dict[str, Any]:
    """Return what a run must know of the encoder where it trains its layers. Raises ConfigError for int8, or a GPU."""
    if course["mode"] == "head":
        return {}
    from cacheproxy.embed.headfile import refuse_precision
    from cacheproxy.embed.locate import locate
    from cacheproxy.embed.tuned import form_of

    refuse_precision(course["mode"], base, f"--mode {course['mode']}")
    shape = form_of(locate(loaded.encoder.name))
    return {"inner": shape["inner"], "depth": shape["depth"], "batch": 32}


def _dim(encoder: Any) -> int:
    vectors, _ = encoder.encode(["dimension"])
    return int(vectors.shape[1])


def _done(artefact: Any, out: Path, key: Path | None) -> None:
    from cacheproxy.embed.headfile import ANY

    told = artefact.manifest.thresholds
    click.echo(f"threshold {told[ANY]:.2f}, and of {len(told) - 1} categories their own; see {out / 'final'}")
    click.echo("next, on the machine of a proxy:")
    click.echo(f"  cacheproxy federated promote {out / 'final'}")
    if key is None:
        click.echo("it is not signed; with --key, proxies can tell whose it is (encoder.head_keys)")


federated.add_command(promote)
federated.add_command(cancel)
federated.add_command(rollback)
