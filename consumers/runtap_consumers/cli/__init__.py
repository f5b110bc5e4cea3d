"""The command line. One module a group of commands; what is raised on purpose becomes one line on standard error."""

from __future__ import annotations

import sys
from importlib.metadata import version

import typer

from runtap_consumers.cli import account, look, operate, prices, rebuild, reprice, streams, work
from runtap_consumers.cli.commands import CommandGroup
from runtap_consumers.cli.lines import say
from runtap_consumers.cli.terminal import one_line
from runtap_consumers.errors import InputError, PriceFileError
from runtap_schemas import RuntapError, SettingsError
from runtap_schemas.masking import without_passwords

app = typer.Typer(
    name="runtap",
    cls=CommandGroup,
    no_args_is_help=True,
    add_completion=False,
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


for _command in (
    work.worker,
    look.report,
    look.runs,
    look.sessions,
    streams.tail,
    reprice.reprice,
    rebuild.rebuild,
    operate.doctor,
):
    app.command()(_command)
app.add_typer(streams.alerts_app, name="alerts")
app.add_typer(account.ledger_app, name="ledger")
app.add_typer(account.dead_letters_app, name="dead-letters")
app.add_typer(operate.topics_app, name="topics")
app.add_typer(work.store_app, name="store")
app.add_typer(prices.prices_app, name="prices")


def run() -> None:
    """Runs the command line; exits with 2 for a wrong request or setting, 1 for what failed."""
    try:
        app(prog_name="runtap")
    except RuntapError as error:
        say(f"runtap: {without_passwords(one_line(str(error)))}", err=True)
        sys.exit(2 if isinstance(error, SettingsError | InputError | PriceFileError) else 1)
