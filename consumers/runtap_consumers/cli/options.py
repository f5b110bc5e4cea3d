"""Settings as options: every command takes the connection and the store as options, by one decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from runtap_consumers.settings import ConsumerSettings
from runtap_schemas import ConnectionSettings

PANEL = "Settings (or the variable)"
# More than any store holds, and far from what a database takes for a number.
_MOST_ROWS = 1_000_000_000
Limit = Annotated[int, typer.Option(min=0, max=_MOST_ROWS, help="At most so many; 0: all.")]


def takes_settings(*more: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command's `settings` parameter to people as options.

    Kafka's address, the store and `more` settings become options, which win over the environment. Secrets do not: what
    stands on a command line is readable by everybody on the machine.

    Args:
        *more: names of further settings that the command uses.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = _option_names(more)

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


def _option_names(more: tuple[str, ...]) -> list[str]:
    wanted = {*ConnectionSettings.model_fields, "database_url", *more}
    return [
        name
        for name, field in ConsumerSettings.model_fields.items()
        if name in wanted and field.annotation != SecretStr | None
    ]


def _option(name: str) -> inspect.Parameter:
    field = ConsumerSettings.model_fields[name]
    default = "" if field.default in (None, "") else f" [{field.default}]"
    # Brackets would be read as markup, were they not escaped.
    text = f"{field.description}{default} ($RUNTAP_{name.upper()})".replace("[", "\\[")
    option = typer.Option(f"--{name.replace('_', '-')}", help=text, rich_help_panel=PANEL, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )
