"""Settings as options, by one decorator: each command names those that it is about."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any

import typer

from runtap_consumers.errors import InputError
from runtap_consumers.figures.words import RUN_TYPES, STATUSES
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
# By option: the field of RunFilter.
_RUN_FILTERS: dict[str, tuple[str, Any]] = {
    "session": ("session_id", typer.Option(help="Only runs of this session.")),
    "trace": ("trace_id", typer.Option(help="Only runs of this trace.")),
    "user": ("user_id", typer.Option(help="Only runs of this user.")),
    "service": ("service", typer.Option(help="Only this service.")),
    "name": ("name", typer.Option(help="Only runs of this name.")),
    "model": ("model", typer.Option(help="Only runs of this model, as asked for or answered.")),
    "tag": ("tag", typer.Option(help="Only ended runs with this tag.")),
    "metadata": ("metadata", typer.Option(metavar="K=V", help="Only ended runs with this metadata.")),
    "run_type": ("run_type", typer.Option("--type", help=f"Only these: {', '.join(RUN_TYPES)}.")),
}


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

        _replace(with_settings, command, "settings", [*map(_setting, names)], at_end=True)
        return with_settings

    return decorate


def takes_run_filter(statuses: Sequence[str] = STATUSES) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command's `wanted` parameter to people as options: which runs it is about, as `RunFilter` names it, of
    what may be any of these statuses.
    """
    options = {**_RUN_FILTERS, "status": ("status", typer.Option(help=f"Only these: {', '.join(statuses)}."))}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_filter(**arguments: Any) -> None:
            from runtap_consumers.figures.runs import metadata_pair

            wanted = {field: arguments.pop(name) for name, (field, _) in options.items()}
            for field, known in (("status", statuses), ("run_type", RUN_TYPES)):
                check_known(field.replace("_", " "), filter(None, [wanted[field]]), known)
            command(wanted={**wanted, "metadata": metadata_pair(wanted["metadata"])}, **arguments)

        _replace(with_filter, command, "wanted", [_parameter(name, option) for name, (_, option) in options.items()])
        return with_filter

    return decorate


def _replace(
    wrapper: Any, command: Callable[..., None], name: str, added: Iterable[inspect.Parameter], at_end: bool = False
) -> None:
    """Gives a wrapper the parameters of what it wraps, with others in place of one."""
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
    ]
    index = next(index for index, parameter in enumerate(own) if parameter.name == name)
    before, after = own[:index], own[index + 1 :]
    parameters = [*before, *after, *added] if at_end else [*before, *added, *after]
    wrapper.__signature__ = inspect.Signature(parameters)
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _setting(name: str) -> inspect.Parameter:
    field = ConsumerSettings.model_fields[name]
    default = "" if field.default in (None, "") else f" [{field.default}]"
    # Brackets would be read as markup, were they not escaped.
    text = f"{field.description}{default} ($RUNTAP_{name.upper()})".replace("[", "\\[")
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=PANEL, show_default=False)
    return _parameter(name, option)


def _parameter(name: str, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
