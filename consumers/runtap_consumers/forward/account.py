"""LangSmith's variables, as its own client reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from runtap_schemas import SettingsError

DEFAULT_ENDPOINT = "https://api.smith.langchain.com"
_HOSTED = "langchain.com"


class Account(NamedTuple):
    """Where LangSmith is, and who asks. `workspace_id` is needed with a key that is of several workspaces."""

    endpoint: str
    api_key: str | None
    workspace_id: str | None

    def headers(self) -> dict[str, str]:
        """What every request says of who asks."""
        found = {"x-api-key": self.api_key, "x-tenant-id": self.workspace_id}
        return {name: value for name, value in found.items() if value}


def find_variable(variables: Mapping[str, str], *names: str) -> str:
    """The first that is set; each may begin with LANGSMITH_ or with LANGCHAIN_. Empty: none is."""
    values = (variables.get(f"{space}_{name}") for name in names for space in ("LANGSMITH", "LANGCHAIN"))
    return next(filter(None, values), "")


def find_account(variables: Mapping[str, str]) -> Account:
    """The account that the variables name.

    Raises:
        SettingsError: a variable cannot work, or there is no key where one is needed.
    """
    endpoint, key, workspace = (
        find_variable(variables, name).strip().strip("\"'") for name in ("ENDPOINT", "API_KEY", "WORKSPACE_ID")
    )
    endpoint = (endpoint or DEFAULT_ENDPOINT).rstrip("/")
    try:
        url = urlsplit(endpoint)
        is_address = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or url.username is not None or url.query or url.fragment:
        # Not shown: it may hold a password.
        raise SettingsError(f"LANGSMITH_ENDPOINT: expected an address such as {DEFAULT_ENDPOINT}, without user or key")
    for name, value in (("LANGSMITH_API_KEY", key), ("LANGSMITH_WORKSPACE_ID", workspace)):
        if not value.isascii() or not value.isprintable():
            raise SettingsError(f"{name}: expected printable ASCII characters")
    if not key and (url.hostname or "").endswith(_HOSTED):
        raise SettingsError(f"LANGSMITH_API_KEY is not set: {endpoint} takes nothing without one")
    return Account(endpoint, key or None, workspace or None)
