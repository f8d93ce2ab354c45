"""The command line: reads options, calls, prints, and maps errors to exit codes.

They are 0 done, 1 no, 2 wrong usage, 3 done but not by all replicas yet.
"""

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

from cacheproxy import __version__, admin_cli, entries_cli, eval_cli, examples_cli, settings
from cacheproxy.bench_cli import bench
from cacheproxy.errors import CacheProxyError, ConfigError, RequestError
from cacheproxy.federated_cli import federated
from cacheproxy.flags import COMMON_FLAGS, encoder_of, load, run, with_flags
from cacheproxy.keys_cli import keys
from cacheproxy.query.canonical import decode
from cacheproxy.ready_cli import ready
from cacheproxy.replicas_cli import replicas
from cacheproxy.verifier_cli import verifier

if TYPE_CHECKING:
    from cacheproxy.explain import ExplainRequest, Explanation

# (option, section, key, metavar, help): the settings that have a flag. Everything else is set by file or environment.
_SERVE_FLAGS = (
    ("--host", "server", "host", "ADDRESS", "Address of the data port.  [default: 127.0.0.1]"),
    ("--port", "server", "port", "PORT", "Data port: OpenAI's API.  [default: 8080]"),
    ("--admin-port", "server", "admin_port", "PORT", "Admin port: metrics, health, the admin API.  [default: 8081]"),
    (
        "--store",
        "store",
        "url",
        "URL",
        "sqlite:///FILE, memory:// or redis://HOST.  [default: a file in the data directory]",
    ),
)


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
@with_flags(*_SERVE_FLAGS, *COMMON_FLAGS)
@click.option("--workers", "server__workers", metavar="N", help="Processes, on a store that is shared.  [default: 1]")
@click.option("--worker", type=int, hidden=True, help="The number of this one, given by the parent.")
@click.option("--upstream", "upstream__url", metavar="URL|local", help="Backend.  [default: $OPENAI_BASE_URL]")
@click.option("--small-upstream", "small__url", metavar="URL|local", help="Small model that may answer with examples.")
@click.option("--small-model", "small__model", metavar="NAME", help="What that backend calls it; not needed for local.")
def serve(config: Path | None, worker: int | None, **flags: str | None) -> None:
    """Serve until SIGTERM; SIGHUP reads the policy pack again.

    \b
    Examples:
      cacheproxy serve --upstream https://api.openai.com/v1
      cacheproxy serve --upstream http://127.0.0.1:11434/v1      # Ollama
      cacheproxy serve --upstream local                          # the embedded small model: no key, no network
      cacheproxy serve --workers 4 --store redis://127.0.0.1:6379/0
    """
    # The official client's variable names the backend too, where no CACHEPROXY_UPSTREAM__URL does.
    base_url = os.environ.get("OPENAI_BASE_URL")
    loaded = load(config, flags, {"CACHEPROXY_UPSTREAM__URL": base_url, **os.environ} if base_url else None)
    if loaded.server.workers > 1:
        from cacheproxy import workers

        sys.exit(run(workers.serve(loaded, sys.argv[1:])))
    from cacheproxy import serving  # here and below: help must not wait for the engines

    if run(serving.serve(loaded, worker)):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # the same command, the same process


@main.command()
@with_flags(*COMMON_FLAGS)
def demo(config: Path | None, **flags: str | None) -> None:
    """Send real questions, rephrasings and traps through the proxy to the embedded small model, and show what happened.

    Needs no key and no network. The first run prepares the two models, which takes about a minute.
    """
    loaded = load(config, {"log__level": "warning", **flags})
    from cacheproxy import serving
    from cacheproxy.demo import run_demo

    sys.exit(0 if run(run_demo(loaded, serving.running)) else 1)


@main.command()
@with_flags(*COMMON_FLAGS)
@click.argument("pack", required=False)
def check(config: Path | None, pack: str | None, **flags: str | None) -> None:
    """Validate a policy PACK (a name or a directory) and run its probes; failures name file, line and key (exit 1).

    \b
    Examples:
      cacheproxy check                  # the pack in force
      cacheproxy check policies/mine    # one of your own
    """
    loaded = load(config, flags)
    from cacheproxy.evaluate.check import check_pack, render_check
    from cacheproxy.policy.loader import find_pack
    from cacheproxy.verifying import open_verifier

    report = check_pack(
        find_pack(pack or loaded.policies.pack), partial(encoder_of, loaded), partial(open_verifier, loaded)
    )
    click.echo(render_check(report))
    sys.exit(0 if report.passed else 1)


@main.command()
@with_flags(*COMMON_FLAGS)
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

    loaded = load(config, {"log__level": "error", **flags})
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


@main.command()
@with_flags(*COMMON_FLAGS)
def feedback(config: Path | None, **flags: str | None) -> None:
    """Print what callers said of similarity hits, as labelled pairs for `eval pairs` and `calibrate`.

    \b
    cacheproxy feedback > pairs.jsonl && cacheproxy eval pairs pairs.jsonl
    """
    from cacheproxy.learn.verdicts import pairs

    for pair in pairs(load(config, flags).data.path() / "feedback.sqlite3"):
        click.echo(msgspec.json.encode(pair).decode())


for _command in (
    bench,
    federated,
    keys,
    ready,
    replicas,
    verifier,
    *eval_cli.COMMANDS,
    *entries_cli.COMMANDS,
    *examples_cli.COMMANDS,
    *admin_cli.COMMANDS,
):
    main.add_command(_command)


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

    # No question goes to a backend, so none is opened.
    small = loaded.small if loaded.small.url != "local" else settings.Small()  # that one would be started
    idle = msgspec.structs.replace(loaded, upstream=settings.Upstream(), small=small)

    async def once() -> Explanation:
        async with app.assemble(idle) as house:
            return await house.explain(request)

    return asyncio.run(once())
