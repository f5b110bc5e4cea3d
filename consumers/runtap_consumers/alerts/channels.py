"""Where alerts are sent: the tables `[[channel]]` of the file of alert rules."""

from __future__ import annotations

import os
import re
from typing import Literal, Self

from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runtap_schemas import SettingsError


class Channel(BaseModel):
    """One receiver of alerts. `url` of an Alertmanager is what stands before `/api/v2/alerts`; `secret_env` names the
    environment variable with a webhook's secret, or an Alertmanager's bearer token; `allow_private`: its host may be
    in a private network, or this machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: str = Field(pattern=r"^[a-z0-9_-]{1,64}$")
    kind: Literal["webhook", "alertmanager"]
    url: str
    secret_env: str | None = None
    allow_private: bool = False

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        # Here, since it takes a tenth of a second to load.
        import httpx2

        # What is wrong is not repeated: addresses of webhooks are often secrets themselves.
        expected = "expected http://HOST[:PORT]/PATH or https://…, with all but ASCII percent-encoded"
        try:
            url = httpx2.URL(value)
        except httpx2.InvalidURL as error:
            raise ValueError(expected) from error
        if url.scheme not in ("http", "https") or not url.host or re.search(r"[^!-~]", value):
            raise ValueError(expected)
        if url.userinfo:
            raise ValueError("leave user and password out: a secret is in the variable that secret_env names")
        return value

    @model_validator(mode="after")
    def _check_webhook(self) -> Self:
        if self.kind == "webhook" and self.secret_env is None:
            raise ValueError(
                "secret_env is missing: name the environment variable that holds the secret, whsec_…, that signs"
            )
        return self

    def read_secret(self) -> str | None:
        """The secret, of the environment or the `.env` of the working folder; `None`: the channel has none.

        Raises:
            SettingsError: the variable is not set.
        """
        if self.secret_env is None:
            return None
        secret = os.environ.get(self.secret_env) or dotenv_values(".env").get(self.secret_env)
        if not secret:
            raise SettingsError(f"channel {self.id}: {self.secret_env} is not set: put the channel's secret there")
        return secret
