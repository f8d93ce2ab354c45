"""The child process: load the model, then serve it on the inherited socket until the parent goes.

Started by `process.LocalModel` only. Standard input is a pipe whose end means that the parent died, however it did;
standard output carries the log, one JSON object a line, which the parent logs as its own. Connections made before the
model is loaded wait in the socket's backlog. Exit code 2 means that starting again is of no use.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from pathlib import Path

import structlog

from cacheproxy.errors import ConfigError
from cacheproxy.upstream.local import CONTEXT_TOKENS, QUEUE

log = structlog.get_logger()

CONFIG_EXIT = 2
_GRACE_S = 2


def main() -> int:
    """Run the child; return its exit code."""
    arguments = _arguments()
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
    try:
        _serve(arguments)
    except ConfigError as exc:
        log.error("local_model_refused", problem=exc.message)  # noqa: TRY400 - the message says it all
        return CONFIG_EXIT
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    # Heavy imports come late: the parent watch must already run.
    import uvicorn
    from transformers.utils import logging as transformers_logging

    from cacheproxy.upstream.local.convert import ensure_converted
    from cacheproxy.upstream.local.engine import Engine
    from cacheproxy.upstream.local.server import create_app
    from cacheproxy.upstream.local.worker import Worker

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    engine = Engine(ensure_converted(arguments.data_dir), context_tokens=arguments.context_tokens)
    config = uvicorn.Config(
        create_app(Worker(engine, queue=arguments.queue)),
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    log.info("local_model_loaded", precision=engine.precision, load_s=round(engine.load_s, 2))
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=arguments.fd)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cacheproxy.upstream.local", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="listening Unix socket, inherited")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the converted weights are kept")
    parser.add_argument("--context-tokens", type=int, default=CONTEXT_TOKENS)
    parser.add_argument("--queue", type=int, default=QUEUE, help="requests that may wait")
    return parser.parse_args()


def _die_with_parent() -> None:
    while os.read(0, 1024):
        pass
    # At once, whatever runs: there is nothing to save, and nobody to answer.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
