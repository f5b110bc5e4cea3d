"""The `runtap` command. Only the standard library may be imported before it is known that the extra is installed."""

from __future__ import annotations

import sys

_DEMO_COMMANDS = ("demo", "dev", "kafka")


def main() -> None:
    """Runs the command line, or says which extra it needs."""
    try:
        from runtap_consumers.cli import run
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("runtap_"):
            raise
        command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
        extra = "demo" if command in _DEMO_COMMANDS else "workers"
        sys.stderr.write(f"runtap {command} needs the extra: pip install 'runtap[{extra}]'\n".replace("  ", " "))
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
