"""The command line. One module a group of commands; what is raised on purpose becomes one line on standard error."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from runtap_consumers.cli import (
    alerts,
    costs,
    dataset,
    dead_letters,
    evaluate,
    forward,
    look,
    prices,
    rebuild,
    reprice,
    serve,
    traces,
    work,
)
from runtap_consumers.cli.terminal import one_line, say
from runtap_consumers.errors import AlertFileError, InputError, PriceFileError
from runtap_schemas import RuntapError, SettingsError
from runtap_schemas.masking import without_passwords

HELP = {"help_option_names": ["-h", "--help"]}


class CommandGroup(TyperGroup):
    """The commands of this package, and after them those that others bring as entry points of `runtap.commands`.

    These are loaded when they are called: what they need may not be installed.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """All names."""
        return [*self.commands, *sorted(entry_points(group="runtap.commands").names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, `None` where there is none."""
        found = None if cmd_name in self.commands else entry_points(group="runtap.commands", name=cmd_name)
        if not found:
            return self.commands.get(cmd_name)
        single = typer.Typer(add_completion=False, context_settings=HELP)
        try:
            single.command(cmd_name, rich_help_panel="Try")(found[cmd_name].load())
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("runtap_"):
                raise
            anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            hint = "Needs the extra: pip install 'runtap\\[demo]'"
            single.command(
                cmd_name, help=hint, rich_help_panel="Try", context_settings=anything, add_help_option=False
            )(_name_the_extra)
        return get_command(single)


def _name_the_extra(context: typer.Context) -> None:
    say(f"runtap {context.info_name} needs the extra: pip install 'runtap[demo]'", err=True)
    raise typer.Exit(2)


app = typer.Typer(
    name="runtap",
    cls=CommandGroup,
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="What LangChain and LangGraph runs cost, how fast they were, what broke and whose session it was.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(version("runtap"))
        raise typer.Exit


@app.callback()
def _root(
    shows_version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and stop."
    ),
) -> None:
    pass


LOOK, RUN, CORRECT, IMPROVE = "Look", "Run", "Correct", "Improve"
for _panel, _commands in (
    (LOOK, (look.report, costs.costs, look.runs, traces.trace, look.sessions, traces.session, look.tail)),
    (RUN, (work.worker, serve.serve, work.doctor)),
    (CORRECT, (reprice.reprice, rebuild.rebuild)),
    (IMPROVE, (evaluate.evaluate,)),
):
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
for _name, _app, _panel in (
    ("alerts", alerts.alerts_app, LOOK),
    ("ledger", look.ledger_app, LOOK),
    ("prices", prices.prices_app, LOOK),
    ("topics", work.topics_app, RUN),
    ("store", work.store_app, RUN),
    ("forward", forward.forward_app, RUN),
    ("dead-letters", dead_letters.dead_letters_app, CORRECT),
    ("dataset", dataset.dataset_app, IMPROVE),
    ("experiments", evaluate.experiments_app, IMPROVE),
):
    app.add_typer(_app, name=_name, rich_help_panel=_panel)


def run() -> None:
    """Runs the command line; exits with 2 for a wrong request or setting, 1 for what failed."""
    try:
        app(prog_name="runtap")
    except RuntapError as error:
        say(f"runtap: {without_passwords(one_line(str(error)))}", err=True)
        sys.exit(2 if isinstance(error, SettingsError | InputError | PriceFileError | AlertFileError) else 1)
