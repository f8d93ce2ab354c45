"""The command line: reads options, calls, prints, and maps errors to exit codes (0 done, 1 no, 2 wrong usage)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from cacheproxy import __version__, admin_cli, configure, entries_cli, logs, settings
from cacheproxy.errors import CacheProxyError, ConfigError, RequestError
from cacheproxy.keys_cli import keys
from cacheproxy.query.canonical import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy.evaluate.vectors import TextEncoder
    from cacheproxy.explain import ExplainRequest, Explanation

# (option, section, key, metavar, help): the settings that have a flag. Everything else is set by file or environment.
_SERVE_FLAGS = (
    ("--host", "server", "host", "ADDRESS", "Address of the data port.  [default: 127.0.0.1]"),
    ("--port", "server", "port", "PORT", "Data port: OpenAI's API.  [default: 8080]"),
    ("--admin-port", "server", "admin_port", "PORT", "Admin port: metrics, health, the admin API.  [default: 8081]"),
    ("--store", "store", "url", "URL", "sqlite:///FILE or memory://.  [default: a file in the data directory]"),
)
_COMMON_FLAGS = (
    ("--policies", "policies", "pack", "DIR-or-NAME", "Policy pack.  [default: balanced]"),
    ("--data-dir", "data", "dir", "DIR", "Files of this install.  [default: ~/.local/share/cacheproxy]"),
    ("--encoder", "encoder", "name", "NAME-or-DIR", "Embedding model.  [default: all-MiniLM-L6-v2]"),
    ("--device", "encoder", "device", "auto|cpu|cuda|mps", "Where the encoder runs.  [default: auto]"),
    ("--log-format", "log", "format", "json|text", "Form of the logs on stderr.  [default: text]"),
)


def _with_flags(*flags: tuple[str, str, str, str, str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options that set one setting each, and `--config`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option, section, key, metavar, text in reversed(flags):
            command = click.option(option, f"{section}__{key}", metavar=metavar, help=text)(command)
        return click.option(
            "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings."
        )(command)

    return decorate


def _load(
    config: Path | None, flags: Mapping[str, str | None], environ: Mapping[str, str] | None = None
) -> settings.Settings:
    tree: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition("__")
            tree.setdefault(section, {})[key] = value
    loaded = configure.load(config, environ, flags=tree)
    logs.configure(loaded.log)
    return loaded


class _Group(click.Group):
    """A group whose commands end with one clear line and the right exit code when something of ours goes wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; our own errors become a message on stderr."""
        try:
            return super().invoke(ctx)
        except CacheProxyError as exc:
            click.echo(f"cacheproxy: {exc.message}", err=True)
            ctx.exit(2 if isinstance(exc, ConfigError | RequestError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="cacheproxy")
def main() -> None:
    """Answer repeated and rephrased questions from a cache in front of any OpenAI-compatible backend.

    \b
    Start it, then point your OpenAI client at it; nothing else changes:
      cacheproxy serve --upstream https://api.openai.com/v1
      OpenAI(base_url="http://127.0.0.1:8080/v1")

    Every setting is a TOML key ([store] url), an environment variable (CACHEPROXY_STORE__URL) and, where listed, a
    flag; flag > environment > file > default.
    """


@main.command()
@_with_flags(*_SERVE_FLAGS, *_COMMON_FLAGS)
@click.option("--upstream", "upstream__url", metavar="URL|local", help="Backend.  [default: $OPENAI_BASE_URL]")
def serve(config: Path | None, **flags: str | None) -> None:
    """Serve until SIGTERM; SIGHUP reads the policy pack again.

    \b
    Examples:
      cacheproxy serve --upstream https://api.openai.com/v1
      cacheproxy serve --upstream http://127.0.0.1:11434/v1      # Ollama
      cacheproxy serve --upstream local                          # the embedded small model: no key, no network
    """
    # The official client's variable names the backend too, where no CACHEPROXY_UPSTREAM__URL does.
    base_url = os.environ.get("OPENAI_BASE_URL")
    loaded = _load(config, flags, {"CACHEPROXY_UPSTREAM__URL": base_url, **os.environ} if base_url else None)
    from cacheproxy import serving  # here and below: help must not wait for the engines

    _run(serving.serve(loaded))


@main.command()
@_with_flags(*_COMMON_FLAGS)
def demo(config: Path | None, **flags: str | None) -> None:
    """Send real questions, rephrasings and traps through the proxy to the embedded small model, and show what happened.

    Needs no key and no network. The first run prepares the two models, which takes about a minute.
    """
    loaded = _load(config, {"log__level": "warning", **flags})
    from cacheproxy import serving
    from cacheproxy.demo import run_demo

    sys.exit(0 if _run(run_demo(loaded, serving.running)) else 1)


@main.command()
@_with_flags(*_COMMON_FLAGS)
@click.argument("pack", required=False)
def check(config: Path | None, pack: str | None, **flags: str | None) -> None:
    """Validate a policy PACK (a name or a directory) and run its probes; failures name file, line and key (exit 1).

    \b
    Examples:
      cacheproxy check                  # the pack in force
      cacheproxy check policies/mine    # one of your own
    """
    loaded = _load(config, flags)
    from cacheproxy.evaluate.check import check_pack, render_check
    from cacheproxy.policy.loader import find_pack

    report = check_pack(find_pack(pack or loaded.policies.pack), partial(_encoder, loaded))
    click.echo(render_check(report))
    sys.exit(0 if report.passed else 1)


@main.command()
@_with_flags(*_COMMON_FLAGS)
@click.argument("text", required=False, default="")
@click.option("--model", default="", help="Model of the request; entries of other models never match.")
@click.option("--body", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A whole request (JSON).")
@click.option("--key", default="", envvar="OPENAI_API_KEY", help="The caller's API key.  [default: $OPENAI_API_KEY]")
@click.option("-c", "--category", default="", help="Category of the request.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain(
    config: Path | None,
    text: str,
    model: str,
    body: Path | None,
    key: str,
    category: str,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Show every step of the decision for a question, with its evidence, changing nothing.

    It asks the proxy that is serving this data directory, or opens the directory itself when none is.

    \b
    Examples:
      cacheproxy explain "How do I reset my password?" --model gpt-4o-mini
      cacheproxy explain --body request.json --json
    """
    from cacheproxy import explain as explaining

    loaded = _load(config, {"log__level": "error", **flags})
    request = explaining.ExplainRequest(
        text=text,
        model=model,
        key=key,
        category=category,
        request=_read_body(body, loaded.server.max_depth) if body else None,
    )
    try:
        asked = msgspec.json.encode(request)
    except UnicodeEncodeError as exc:
        raise ConfigError("the question and its options must be UTF-8 text") from exc
    explanation = _ask_running(loaded, asked) or _explain_here(loaded, request)
    click.echo(msgspec.json.encode(explanation).decode() if as_json else explaining.render(explanation))


@main.group(name="eval")
def evaluate() -> None:
    """Measure decisions on labelled data.

    \b
    Example:
      cacheproxy eval pairs pairs.jsonl --baseline cosine
    """


@evaluate.command()
@_with_flags(*_COMMON_FLAGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-c", "--category", help="Rule on every pair under this category.")
@click.option("--baseline", type=click.Choice(["cosine"]), help="Compare with plain cosine, default and tuned.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def pairs(
    config: Path | None, file: Path, category: str | None, baseline: Any, as_json: bool, **flags: str | None
) -> None:
    """With a's answer cached, would b be served from it? FILE holds one pair a line (JSON, may be gzipped).

    \b
    {"a": "How do I pay?", "b": "What are the ways to pay?", "label": 1}
    """
    loaded = _load(config, flags)
    from cacheproxy.evaluate.pairs import evaluate_pairs
    from cacheproxy.evaluate.tables import render_pairs
    from cacheproxy.policy.loader import find_pack, load_pack

    report = evaluate_pairs(
        file,
        load_pack(find_pack(loaded.policies.pack)),
        _encoder(loaded),
        loaded.data.path() / "vectors",
        baseline=baseline,
        category=category,
    )
    click.echo(msgspec.json.encode(report).decode() if as_json else render_pairs(report))


@evaluate.command()
@_with_flags(*_COMMON_FLAGS)
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-c", "--category", help="Ask every question under this category.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stream(config: Path | None, file: Path, category: str | None, as_json: bool, **flags: str | None) -> None:
    """Replay questions in order: what would hit, and falsely? FILE holds one a line (JSON, may be gzipped).

    An oracle stands in for the backend: it gives each question the answer that its line names. A hit is false when
    its entry holds another one. The store's caps and the pack's lifetimes count; `t` is the time in seconds.

    \b
    {"text": "How do I pay?", "answer_id": "pay-1", "category": "support", "t": 12.5}
    """
    loaded = _load(config, flags)
    from cacheproxy.evaluate.stream import evaluate_stream
    from cacheproxy.evaluate.tables import render_stream
    from cacheproxy.policy.loader import find_pack, load_pack

    pack, vectors = load_pack(find_pack(loaded.policies.pack)), loaded.data.path() / "vectors"
    report = _run(evaluate_stream(file, pack, _encoder(loaded), vectors, loaded, category=category))
    click.echo(msgspec.json.encode(report).decode() if as_json else render_stream(report))


@main.command()
@_with_flags(*_COMMON_FLAGS)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--target-precision", type=click.FloatRange(0.5, 1.0), help="Aim at a precision instead.")
@click.option(
    "--wrong-cost", type=click.FloatRange(0), default=2.0, show_default=True, help="Right hits a wrong one costs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Splits the pairs, draws the resamples.")
def calibrate(
    config: Path | None,
    files: tuple[Path, ...],
    target_precision: float | None,
    wrong_cost: float,
    seed: int,
    **flags: str | None,
) -> None:
    """Choose thresholds for the current encoder on labelled pairs, and print the table to paste into a pack.

    FILES are as for `eval pairs`. One half of the pairs chooses the threshold of best net benefit, the other half
    measures it.
    """
    loaded = _load(config, flags)
    from cacheproxy.evaluate.calibration import Aim, calibrate, render_calibration
    from cacheproxy.policy.loader import find_pack, load_pack

    pack = load_pack(find_pack(loaded.policies.pack))
    aim = Aim(target_precision=target_precision, wrong_cost=wrong_cost, seed=seed)
    click.echo(render_calibration(calibrate(files, pack, _encoder(loaded), loaded.data.path() / "vectors", aim)))


@main.command()
@_with_flags(*_COMMON_FLAGS)
def feedback(config: Path | None, **flags: str | None) -> None:
    """Print what callers said of similarity hits, as labelled pairs for `eval pairs` and `calibrate`.

    \b
    cacheproxy feedback > pairs.jsonl && cacheproxy eval pairs pairs.jsonl
    """
    from cacheproxy.learn.verdicts import pairs

    for pair in pairs(_load(config, flags).data.path() / "feedback.sqlite3"):
        click.echo(msgspec.json.encode(pair).decode())


for _command in (keys, *entries_cli.COMMANDS, *admin_cli.COMMANDS):
    main.add_command(_command)


def _run(work: Any) -> Any:
    import uvloop

    return uvloop.run(work)


def _encoder(loaded: settings.Settings) -> TextEncoder:
    from cacheproxy.embed.open import open_encoder
    from cacheproxy.install import open_data_dir

    return open_encoder(loaded.encoder, open_data_dir(loaded))


def _read_body(file: Path, max_depth: int) -> dict[str, Any]:
    try:
        return decode(file.read_bytes(), max_depth)
    except OSError as exc:
        raise ConfigError(f"{file}: cannot be read ({exc.strerror})") from exc
    except RequestError as exc:
        raise ConfigError(f"{file}: {exc.message}") from exc


def _ask_running(loaded: settings.Settings, asked: bytes) -> Explanation | None:
    """Send an encoded ExplainRequest to the proxy that serves this data directory; None when there is none."""
    from cacheproxy.explain import Explanation
    from cacheproxy.install import running_admin_url

    url = running_admin_url(loaded.data.path())
    if url is None:
        return None
    headers = {"content-type": "application/json"}
    if token := loaded.admin.token.reveal():
        headers["authorization"] = f"Bearer {token}"
    call = urllib.request.Request(f"{url}/admin/v1/explain", asked, headers)
    # The question and the key go to this machine's own port, never through a proxy that the environment names.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(call, timeout=30) as answer:
            return msgspec.json.decode(answer.read(), type=Explanation)
    except urllib.error.HTTPError as exc:
        message = json.loads(exc.read() or b"{}").get("error", {}).get("message", exc.reason)
        raise ConfigError(f"the running proxy refused: {message}") from exc
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigError(f"the running proxy at {url} did not answer: {exc}") from exc


def _explain_here(loaded: settings.Settings, request: ExplainRequest) -> Explanation:
    from cacheproxy import app

    idle = msgspec.structs.replace(loaded, upstream=settings.Upstream())  # no question goes to a backend

    async def once() -> Explanation:
        async with app.assemble(idle) as house:
            return await house.explain(request)

    return asyncio.run(once())
