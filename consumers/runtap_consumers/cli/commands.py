"""Commands that other packages bring, found by the entry points of the group `runtap.commands`.

They are loaded when they are called: what they need may not be installed.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from runtap_consumers.cli.lines import say

GROUP = "runtap.commands"


class CommandGroup(TyperGroup):
    """The commands of this package, and those of others after them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names; those of other packages last."""
        return [*self.commands, *(name for name in _others() if name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, `None` where there is none."""
        entry_point = _others().get(cmd_name)
        if cmd_name in self.commands or entry_point is None:
            return self.commands.get(cmd_name)
        return _load(entry_point)


def _others() -> dict[str, EntryPoint]:
    return {name: entry_points(group=GROUP)[name] for name in sorted(entry_points(group=GROUP).names)}


def _load(entry_point: EntryPoint) -> Any:
    try:
        target = entry_point.load()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("runtap_"):
            raise
        return _unavailable(entry_point.name)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False)
        app.command(entry_point.name)(target)
    command = get_command(app)
    command.name = entry_point.name
    return command


def _unavailable(name: str) -> Any:
    app = typer.Typer(add_completion=False)

    @app.command(
        name,
        help="Needs the extra: pip install 'runtap\\[demo]'",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def unavailable(context: typer.Context) -> None:
        say(f"runtap {name} needs the extra: pip install 'runtap[demo]'", err=True)
        raise typer.Exit(2)

    return get_command(app)
