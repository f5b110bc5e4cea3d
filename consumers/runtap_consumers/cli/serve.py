"""`runtap serve`: the figures over HTTP."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from runtap_consumers.cli.logs import configure_logs
from runtap_consumers.cli.options import takes_settings
from runtap_consumers.cli.terminal import say
from runtap_consumers.errors import InputError
from runtap_consumers.private_files import read_secret
from runtap_consumers.settings import ConsumerSettings


@takes_settings("database_url", "prices", "timezone")
def serve(
    settings: ConsumerSettings,
    host: Annotated[str, typer.Option(help="Where to listen; others than this machine need RUNTAP_SERVE_TOKEN.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Where to listen.")] = 8484,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also called by this name. May be repeated.")
    ] = None,
) -> None:
    """Serves a page of the figures, and them as JSON under /api/v1; read-only. SIGTERM ends it."""
    configure_logs(settings.log_level)
    from runtap_consumers.pricing.source import PriceSource
    from runtap_consumers.serve import app
    from runtap_consumers.serve.query import Source
    from runtap_consumers.store.engine import open_store

    token = _token(settings)
    app.check_address(host, token)
    with closing(open_store(settings.database_url)) as store:
        say(f"http://{f'[{host}]' if ':' in host else host}:{port}/", err=True)
        app.serve(Source(store, settings, PriceSource(settings)), host, port, allow_host or (), token)


def _token(settings: ConsumerSettings) -> str | None:
    if settings.serve_token_file is None:
        token = None if settings.serve_token is None else settings.serve_token.get_secret_value()
        if token == "":
            raise InputError("RUNTAP_SERVE_TOKEN is empty: set a token, or leave it out for loopback alone")
        return token
    if settings.serve_token is not None:
        raise InputError("RUNTAP_SERVE_TOKEN and RUNTAP_SERVE_TOKEN_FILE are both set: one says which token it is")
    try:
        return read_secret(settings.serve_token_file)
    except ValueError as error:
        raise InputError(f"RUNTAP_SERVE_TOKEN_FILE={settings.serve_token_file!r} {error}") from error
