"""Structured logs on stderr: one event a line, as text for people or JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from cacheproxy.settings import Log

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(config: Log) -> None:
    """Set the format and level of every log of this process, those of uvicorn included."""
    json = config.format == "json"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Tracebacks without local variables: those may hold prompt text and keys.
            structlog.processors.ExceptionRenderer(),
            structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[config.level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    # uvicorn's own words on one connection (an unfinished answer, a malformed request) are metrics and events of ours.
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if config.level == "debug" else logging.CRITICAL)


class _Forward(logging.Handler):
    """Hands records of the standard library's logging to structlog, without their arguments' text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log the first line of the template only: arguments and further lines may quote a request."""
        message = str(record.msg).partition("\n")[0]
        structlog.get_logger().warning(
            "library_logged", source=record.name, level_name=record.levelname, message=message
        )
