"""What commands that read settings share: options that set one setting each, and how settings are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from cacheproxy import configure, logs
from cacheproxy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cacheproxy import settings
    from cacheproxy.evaluate.vectors import TextEncoder

# (option, section, key, metavar, help): the settings that have a flag. Everything else is set by file or environment.
COMMON_FLAGS = (
    ("--policies", "policies", "pack", "DIR-or-NAME", "Policy pack.  [default: balanced]"),
    ("--data-dir", "data", "dir", "DIR", "Files of this install.  [default: ~/.local/share/cacheproxy]"),
    ("--encoder", "encoder", "name", "NAME-or-DIR", "Embedding model.  [default: all-MiniLM-L6-v2]"),
    ("--verifier", "verifier", "path", "DIR|off", "Verifier, made by `verifier train`.  [default: shipped]"),
    ("--device", "encoder", "device", "auto|cpu|cuda|mps", "Where the encoder runs.  [default: auto]"),
    ("--log-format", "log", "format", "json|text", "Form of the logs on stderr.  [default: text]"),
)


def with_flags(*flags: tuple[str, str, str, str, str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add options that set one setting each, and `--config`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option, section, key, metavar, text in reversed(flags):
            command = click.option(option, f"{section}__{key}", metavar=metavar, help=text)(command)
        return click.option(
            "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file with settings."
        )(command)

    return decorate


def load(
    config: Path | None, flags: Mapping[str, str | None], environ: Mapping[str, str] | None = None
) -> settings.Settings:
    """Return the settings that a file, the environment and flags (by `section__key`) give. Raises ConfigError."""
    tree: dict[str, dict[str, object]] = {}
    for name, value in flags.items():
        if value is not None:
            section, _, key = name.partition("__")
            tree.setdefault(section, {})[key] = value
    loaded = configure.load(config, environ, flags=tree)
    logs.configure(loaded.log)
    return loaded


def refuse(why: str, *names: str) -> None:
    """Raise ConfigError where an option that would do nothing was written all the same; `names` as parameters."""
    context = click.get_current_context()
    for one in context.command.params:
        if one.name in names and context.get_parameter_source(one.name) is ParameterSource.COMMANDLINE:
            raise ConfigError(f"{one.opts[0]} does nothing here: {why}; leave it out")


def run(work: Any) -> Any:
    """Run a coroutine to its end on the fast event loop."""
    import uvloop

    return uvloop.run(work)


def encoder_of(loaded: settings.Settings) -> TextEncoder:
    """Open the encoder that settings mean. Raises ConfigError."""
    from cacheproxy.embed.open import open_encoder
    from cacheproxy.install import open_data_dir

    return open_encoder(loaded.encoder, open_data_dir(loaded))
