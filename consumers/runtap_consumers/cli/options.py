"""Settings as options, by one decorator: each command names those that it is about."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Annotated, Any

import typer

from runtap_consumers.errors import InputError
from runtap_consumers.instants import EXPECTED, parse_instant
from runtap_consumers.settings import ConsumerSettings

PANEL = "Settings (all others: variables RUNTAP_…, or a file .env)"
# More than any store holds, and far from what a database takes for a number.
_MOST_ROWS = 1_000_000_000
Limit = Annotated[int, typer.Option(min=0, max=_MOST_ROWS, help="At most so many; 0: all.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help=f"Begin: {EXPECTED}.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="End, not included; now if left out.")]
Csv = Annotated[bool, typer.Option("--csv", help="As CSV, with all columns.")]
Wide = Annotated[bool, typer.Option("--wide", help="All columns, however wide the terminal.")]
JsonObject = Annotated[bool, typer.Option("--json", help="One JSON object with all of it.")]
Health = Annotated[
    str | None,
    typer.Option(metavar="[HOST:]PORT", help="Serve /livez, /readyz and /metrics, on 127.0.0.1 if left out."),
]
JsonLines = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


def check_known(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises `InputError` where a name is none of those that there are."""
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"there is no {kind} {', '.join(map(repr, unknown))}: expected any of {', '.join(known)}")


def health_address(given: str) -> tuple[str, int]:
    """Host and port of `[HOST:]PORT`."""
    host, _, port = given.rpartition(":")
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise InputError(f"--health: expected PORT or HOST:PORT, as in 8080 or 0.0.0.0:8080, not {given!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


def instant_of(text: str | None, settings: ConsumerSettings, now_ns: int) -> int | None:
    """The instant that an option names; `None`: it is left out."""
    return None if text is None else parse_instant(text, settings.zone(), now_ns)


def takes_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command's `settings` parameter to people: these settings as options, which win over the environment; all
    others by the environment or `.env`. No secret is one: what stands on a command line is readable by everybody on the
    machine.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_settings(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            options = [name for name, value in given.items() if value is not None]
            command(settings=ConsumerSettings.load(options=options, **given), **arguments)

        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name != "settings"
        ]
        parameters = [*own, *(_option(name) for name in names)]
        with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_settings.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_settings

    return decorate


def _option(name: str) -> inspect.Parameter:
    field = ConsumerSettings.model_fields[name]
    default = "" if field.default in (None, "") else f" [{field.default}]"
    # Brackets would be read as markup, were they not escaped.
    text = f"{field.description}{default} ($RUNTAP_{name.upper()})".replace("[", "\\[")
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=PANEL, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
