"""Commands that other packages bring, found by the entry points of the group `runtap.commands`.

They are loaded when they are called: what they need may not be installed.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from runtap_consumers.cli.terminal import say

GROUP = "runtap.commands"


class CommandGroup(TyperGroup):
    """The commands of this package, and those of others after them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All names; those of other packages last."""
        return [*self.commands, *sorted(entry_points(group=GROUP).names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a name, `None` where there is none."""
        if cmd_name in self.commands or cmd_name not in entry_points(group=GROUP).names:
            return self.commands.get(cmd_name)
        app = typer.Typer(add_completion=False)
        try:
            app.command(cmd_name)(entry_points(group=GROUP)[cmd_name].load())
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("runtap_"):
                raise
            anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            hint = "Needs the extra: pip install 'runtap\\[demo]'"
            app.command(cmd_name, help=hint, context_settings=anything, add_help_option=False)(_name_the_extra)
        return get_command(app)


def _name_the_extra(context: typer.Context) -> None:
    say(f"runtap {context.info_name} needs the extra: pip install 'runtap[demo]'", err=True)
    raise typer.Exit(2)
