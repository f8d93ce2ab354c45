"""`cacheproxy bench`: a proxy under load, measured from outside; a scripted backend."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from cacheproxy.errors import ConfigError
from cacheproxy.flags import refuse
from cacheproxy.flags import run as run_loop

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cacheproxy.bench.arrivals import Arrival
    from cacheproxy.bench.asking import Asking
    from cacheproxy.bench.opening import Where
    from cacheproxy.bench.questions import Question
    from cacheproxy.bench.runs import Load
    from cacheproxy.bench.upstream import Pace

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_OUT = click.Path(path_type=Path, dir_okay=False, writable=True)
_SECONDS = click.FloatRange(0, 3600, min_open=True)

_SHARE, _POSITIVE, _TIME_MS = click.FloatRange(0, 1), click.FloatRange(0, min_open=True), click.FloatRange(0)
_Options = tuple[tuple[str, Any, Any, str], ...]
# (option [name], type, default, help): a default of None is told in the help, a type of None makes a flag.
_PACE: _Options = (
    ("--ttft-ms", _TIME_MS, 0.0, "Scripted backend: time to the first token, a median."),
    ("--token-ms", _TIME_MS, 0.0, "Scripted backend: for each further one."),
    ("--tokens", click.IntRange(1, 4096), 40, "Scripted backend: words of an answer."),
    ("--spread", click.FloatRange(0, 3), 0.3, "Scripted backend: standard deviation of both times' logarithm."),
    ("--slots", click.IntRange(0), 0, "Scripted backend: requests at once; 0: any number."),
)
_WHERE: _Options = (
    ("--url", str, None, "A proxy that runs, such as http://127.0.0.1:8080/v1.  [default: one is started]"),
    ("--allow-remote", None, False, "Load a target that is not on this machine."),
    ("--admin-url", str, "", "Its admin port, for stages and lag, such as http://127.0.0.1:8081."),
    ("--admin-token", str, "", "Its admin.token, where one is set.  [env: CACHEPROXY_ADMIN__TOKEN]"),
    ("--pid", click.IntRange(1), None, "Its process, for CPU and memory."),
    ("--key", str, "sk-bench", "API key to send.  [env: CACHEPROXY_BENCH_KEY]"),
    ("--upstream", str, "scripted", "Backend of the proxy that is started: scripted, or a URL."),
    ("--serve", str, "", 'More flags for that proxy, such as "--policies strict".'),
    ("--data-dir", click.Path(path_type=Path), None, "Where prepared encoders are.  [default: where serve has them]"),
)
_ASKED: _Options = (
    ("--questions questions_file", _FILE, None, "Questions and wordings, JSON lines.  [default: shipped]"),
    ("--stream", _SHARE, 0.0, "Share of requests that are streamed."),
    ("--seed", click.IntRange(1), 1, "The same seed asks the same."),
)
_REPORTED: _Options = (
    ("--json out", _OUT, None, "Write the report into this file."),
    ("--slo-ms", _POSITIVE, 1000.0, "Latest answer that is good."),
    ("--timeout timeout_s", _SECONDS, 30.0, "Seconds to wait for an answer."),
)
_RUNS: _Options = (
    ("--repeats", click.IntRange(1, 100), 3, "Runs; medians are told, with the spread."),
    ("--plot drawn", _OUT, None, "Draw latencies into this file (PNG, SVG or PDF)."),
    ("--max-errors", _SHARE, 0.01, "Share of requests that may fail; above it, exit code 1."),
)
_LOAD: _Options = (
    ("--connections", click.IntRange(1, 4096), 16, "Callers of the closed loop."),
    ("--rate", _POSITIVE, None, "Requests a second: an open loop in its place."),
    ("--bursts", None, False, "With --rate: arrivals in bursts (simulated), not Poisson."),
    ("--mix", str, "exact=70,semantic=20,miss=10", "Shares of kinds."),
    ("--zipf", click.FloatRange(0), None, "Instead: questions repeated by Zipf's law with this exponent."),
    ("--verbatim", _SHARE, 0.3, "With --zipf: share that is asked word by word."),
    ("--seconds", _SECONDS, 5.0, "Length of a run."),
    ("--warmup warmup_s", click.FloatRange(0, 600), 1.0, "Seconds before the first run."),
    ("--requests most", click.IntRange(1), 200_000, "Most requests of a run."),
)
_REPLAY: _Options = (
    ("--speed", _POSITIVE, 1.0, "Times as fast as the trace."),
    ("--rate", _POSITIVE, 20.0, "Mean requests a second, of a trace that tells a load a minute."),
    ("--zipf", click.FloatRange(0), 1.0, "Exponent of Zipf's law, by which questions repeat."),
    ("--verbatim", _SHARE, 0.3, "Share that is asked word by word."),
    ("--seconds", _SECONDS, 30.0, "Longest run."),
    ("--requests most", click.IntRange(1), 10_000, "Most requests of a run."),
)
_OVERLOAD: _Options = (
    ("--times", click.FloatRange(1, 100), 10.0, "Times the peak."),
    ("--seconds", _SECONDS, 20.0, "Length of the overload."),
    ("--mix", str, "exact=50,miss=50", "Shares of kinds."),
    ("--peak-connections", click.IntRange(1, 4096), 16, "Callers who find the peak; all must be answered."),
)
_ENVIRON = {"--admin-token": "CACHEPROXY_ADMIN__TOKEN", "--key": "CACHEPROXY_BENCH_KEY"}


def _options(*groups: _Options) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for words, kind, default, told in reversed([option for group in groups for option in group]):
            names = words.split()
            shown = default not in (None, "", False)
            more = {"is_flag": True} if kind is None else {"type": kind, "default": default, "show_default": shown}
            command = click.option(*names, help=told, envvar=_ENVIRON.get(names[0]), **more)(command)
        return command

    return decorate


@click.group()
def bench() -> None:
    """Measure a proxy under load: latencies, throughput, CPU and memory, hits.

    \b
    Without --url a proxy is started for it, before a scripted backend (simulated: it is labelled so in every report):
      cacheproxy bench load                                          # closed loop, 16 connections
      cacheproxy bench load --rate 200 --mix exact=50,miss=50        # open loop, Poisson arrivals
      cacheproxy bench replay trace.csv --speed 10                   # arrivals of a trace
      cacheproxy bench overload                                      # ten times more than it can answer
    Questions are those of `cacheproxy demo`, of `verifier train` where they repeat, or yours (--questions).
    Only this machine is loaded unless you say --allow-remote. Exit code 1: too much failed, or a goal was not met.
    """


@bench.command()
@_options(_LOAD, _RUNS, _ASKED, _WHERE, _PACE, _REPORTED)
def load(
    connections: int,
    rate: float | None,
    bursts: bool,
    mix: str,
    zipf: float | None,
    verbatim: float,
    seconds: float,
    most: int,
    questions_file: Path | None,
    stream: float,
    **told: Any,
) -> None:
    """Hits and misses in a mix, by N callers or at a rate.

    Closed loop: each caller asks again when it is answered, which finds what the proxy can do. Open loop (--rate):
    requests come when they come, and latency counts from the time each was due, so that no stall is hidden.

    \b
    Examples:
      cacheproxy bench load --mix exact=100 --connections 64 --json report.json
      cacheproxy bench load --rate 100 --bursts --stream 0.5 --ttft-ms 300 --token-ms 20
      cacheproxy bench load --url http://127.0.0.1:8080/v1 --admin-url http://127.0.0.1:8081 --zipf 1.0
    """
    from cacheproxy.bench.asking import Mixed, Repeating, read_mix
    from cacheproxy.bench.runs import Load

    if bursts and rate is None:
        raise ConfigError("--bursts needs a rate: --rate 100")
    if rate is not None:
        refuse("with --rate, requests come when they are due, whoever waits", "connections")
    refuse(*(("what repeats is told by --verbatim", "mix") if zipf is not None else ("--zipf is not said", "verbatim")))
    questions, shares = _questions(questions_file, repeated=zipf is not None), read_mix(mix)

    def asking(seed: int) -> Asking:
        if zipf is None:
            return Mixed(questions, shares, stream=stream, seed=seed)
        return Repeating(questions, exponent=zipf, verbatim=verbatim, stream=stream, seed=seed)

    plan = Load(seconds=seconds, connections=0 if rate else connections, rate=rate or 0.0, bursts=bursts, most=most)
    model = f"mix {mix}" if zipf is None else f"Zipf {zipf:g} over {len(questions)} questions, {verbatim:g} verbatim"
    notes = [f"who asks what ({model})"] + (["arrivals in bursts"] if bursts else [])
    _measure(plan, asking, notes, apart=zipf is not None, **told)


@bench.command()
@click.argument("trace", type=_FILE)
@_options(
    _REPLAY,
    (("--repeats", click.IntRange(1, 100), 1, "Runs; medians are told."), *_RUNS[1:]),
    _ASKED,
    _WHERE,
    _PACE,
    _REPORTED,
)
def replay(
    trace: Path,
    speed: float,
    rate: float,
    zipf: float,
    verbatim: float,
    seconds: float,
    most: int,
    questions_file: Path | None,
    stream: float,
    **told: Any,
) -> None:
    """Arrivals of a TRACE: Azure's LLM inference traces, Mooncake's or BurstGPT's, as published, gzipped or not.

    They hold no text, so questions are repeated by Zipf's law; Mooncake's requests with the same prompt ask the same
    question. BurstGPT's load a minute (week1_min, JSON) is squeezed into --seconds at a mean --rate. The scripted
    backend answers with as many words as the trace says. Each repeat begins with an empty cache.

    \b
    Examples:
      cacheproxy bench replay AzureLLMInferenceTrace_conv.csv --speed 5 --ttft-ms 300 --token-ms 20
      cacheproxy bench replay conversation_trace.jsonl --questions questions.jsonl --seconds 120
    """
    from cacheproxy.bench.arrivals import fitted, shaped
    from cacheproxy.bench.asking import Repeating
    from cacheproxy.bench.runs import Load
    from cacheproxy.bench.traces import read_shape, read_trace

    questions, shape, seed = _questions(questions_file, repeated=True), read_shape(trace), told["seed"]

    if shape is not None:
        refuse("the trace tells a load a minute, which --rate and --seconds scale", "speed")
    else:
        refuse("the trace tells when requests come; --speed makes them come faster", "rate")

    def arrivals() -> Iterable[Arrival]:
        if shape is not None:
            return shaped(shape, rate, seconds, seed)
        return fitted(read_trace(trace), speed=speed, seconds=seconds, most=most)

    if not any(True for _ in arrivals()):
        raise ConfigError(f"{trace}: no request comes within {seconds:g} s; raise --seconds or --speed")

    def asking(seed: int) -> Asking:
        return Repeating(questions, exponent=zipf, verbatim=verbatim, stream=stream, seed=seed)

    note = f"which question is asked (Zipf {zipf:g} over {len(questions)} questions, {verbatim:g} verbatim)"
    plan = Load(seconds=seconds, arrivals=arrivals, most=most)
    _measure(plan, asking, [note], apart=True, sized=True, warmup_s=0.0, **told)


@bench.command()
@_options(_OVERLOAD, _ASKED, _WHERE, _PACE, _REPORTED)
def overload(
    times: float,
    seconds: float,
    mix: str,
    peak_connections: int,
    questions_file: Path | None,
    stream: float,
    out: Path | None,
    **told: Any,
) -> None:
    """Ten times what it can answer: what is answered, how soon the rest is turned away, how soon all is well again.

    The peak is found first (closed loop); then half of it, ten times of it, half of it. Goals: good answers stay at
    90 % of the peak, what is turned away (429, 503) is told so within 50 ms, and when to come back, what is answered
    takes at most twice as long, and 10 s later all is as before; none is turned away while the peak is found.
    Generator and proxy share the machine: make the backend the bottleneck (--slots, --ttft-ms), or the generator will
    be. The example's file tells the proxy of it: [upstream] max_concurrency = 8, queue = 32.

    \b
    Example:
      cacheproxy bench overload --slots 8 --ttft-ms 100 --serve "--config small-queue.toml"
    """
    from cacheproxy.bench.asking import Mixed, read_mix
    from cacheproxy.bench.opening import opened
    from cacheproxy.bench.overload import Overload, measure
    from cacheproxy.bench.runs import Bench, Load
    from cacheproxy.bench.tables import render_overload

    questions, shares = _questions(questions_file, repeated=False), read_mix(mix)
    peak_s, after_s = min(5.0, seconds), min(15.0, 2 * seconds)
    how = Overload(times=times, seconds=seconds, peak_s=peak_s, after_s=after_s, connections=peak_connections)
    _check_folders(out)
    where = _where(told)

    def asking(seed: int) -> Asking:
        return Mixed(questions, shares, stream=stream, seed=seed)

    async def work() -> Any:
        async with opened(where) as found:
            plan = Load(seconds=seconds)
            bench = Bench(target=found.target, watch=found.watch, load=plan, asking=asking, **told)
            with _phases() as said:
                report = await measure(bench, how, said)
            notes = [f"who asks what (mix {mix})", *found.simulated]
            return msgspec.structs.replace(report, command=_command(), simulated=notes)

    report = run_loop(work())
    _write(report, out)
    click.echo(render_overload(report))
    sys.exit(0 if all(goal.met for goal in report.goals.values()) else 1)


@bench.command()
@_options((("--port", click.IntRange(0, 65535), 9090, "0: any free port."), *_ASKED[-1:]), _PACE)
def upstream(port: int, seed: int, **told: Any) -> None:
    """Run the scripted backend alone until it is interrupted. It listens on loopback and says so on stderr.

    \b
    Example:
      cacheproxy bench upstream --ttft-ms 300 --token-ms 20 --slots 32
      cacheproxy serve --upstream http://127.0.0.1:9090/v1
    """
    from cacheproxy.bench.upstream import Upstream

    async def work() -> None:
        try:
            async with Upstream(_pace(told), seed, port=port) as backend:
                started = {
                    "event": "server_started",
                    "url": f"http://127.0.0.1:{backend.port}/v1",
                    "port": backend.port,
                }
                click.echo(json.dumps(started), err=True)
                await asyncio.Event().wait()
        except OSError as exc:
            raise ConfigError(f"--port {port}: cannot listen ({exc.strerror}); 0 takes any free port") from exc

    with contextlib.suppress(KeyboardInterrupt):
        run_loop(work())


def _measure(
    plan: Load,
    asking: Callable[[int], Asking],
    notes: list[str],
    *,
    out: Path | None,
    drawn: Path | None,
    max_errors: float,
    sized: bool = False,
    **told: Any,
) -> None:
    """Run a bench, print it, and exit by whether too much failed. `sized`: answers are as long as a trace says."""
    from cacheproxy.bench.opening import opened
    from cacheproxy.bench.runs import Bench, measure
    from cacheproxy.bench.tables import render

    _check_folders(out, drawn)
    where = _where(told)

    async def work() -> Any:
        async with opened(where) as found:
            sized_here = sized and found.scripted
            bench = Bench(target=found.target, watch=found.watch, load=plan, asking=asking, sized=sized_here, **told)
            with _phases() as said:
                report = await measure(bench, said)
            return msgspec.structs.replace(report, command=_command(), simulated=[*notes, *found.simulated])

    report = run_loop(work())
    _write(report, out)
    if drawn is not None:
        from cacheproxy.bench.plot import plot

        plot(report.figures, report.command, drawn)
    click.echo(render(report))
    sys.exit(0 if sum(report.figures.errors.values()) <= max_errors * report.figures.requests else 1)


def _check_folders(*files: Path | None) -> None:
    """Raise ConfigError where a report could not be written, before anything is measured."""
    for file in files:
        if file is not None and not file.absolute().parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.parent}; name a file in a folder there is")


def _where(told: dict[str, Any]) -> Where:
    """Return what is to be loaded; its options are taken out of `told`."""
    from cacheproxy.bench.opening import Where

    pace = "ttft_ms", "token_ms", "tokens", "spread", "slots"
    if told["url"]:
        refuse("the proxy at --url runs already, before a backend of its own", "upstream", "serve", "data_dir", *pace)
    else:
        refuse("the proxy that is started is watched as it is", "admin_url", "admin_token", "pid")
    if told["upstream"] != "scripted":
        refuse("the backend is not the scripted one", *pace)
    names = ("allow_remote", "admin_url", "admin_token", "pid", "upstream", "serve", "data_dir")
    given = {name: told.pop(name) for name in names}
    return Where(pace=_pace(told), seed=told["seed"], url=told.pop("url") or "", **given)


def _pace(told: dict[str, Any]) -> Pace:
    from cacheproxy.bench.upstream import Pace

    return Pace(**{name: told.pop(name) for name in ("ttft_ms", "token_ms", "tokens", "spread", "slots")})


def _questions(file: Path | None, *, repeated: bool) -> list[Question]:
    """Return what is asked; without a file, few questions where kinds are made to measure, many where they repeat."""
    from cacheproxy.bench.questions import askings, read_questions, shipped

    if file is not None:
        return read_questions(file)
    return askings() if repeated else shipped()


@contextlib.contextmanager
def _phases() -> Iterator[Callable[[str, int], None]]:
    """Yield what is told of the work: a bar on a terminal, a line a phase elsewhere; on stderr."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    tasks: dict[str, Any] = {}
    columns = SpinnerColumn(), TextColumn("{task.description}: {task.completed:,.0f} answers"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def said(what: str, done: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=None)
                if not console.is_terminal:
                    console.print(f"{what} ...", highlight=False)
            bar.advance(tasks[what], done)

        yield said


def _command() -> str:
    return click.get_current_context().command_path


def _write(report: Any, out: Path | None) -> None:
    if out is not None:
        try:
            out.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        except OSError as exc:
            raise ConfigError(f"{out}: cannot be written ({exc.strerror}); name a file in a folder there is") from exc
