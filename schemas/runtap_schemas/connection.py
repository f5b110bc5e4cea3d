"""How to reach Kafka: the settings that emitters and workers share."""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from runtap_schemas.errors import SettingsError
from runtap_schemas.masking import shown

# A name, an IPv4 or, in brackets, an IPv6 address; and a port.
_SERVER = re.compile(r"(?:\[[^\]\s]+\]|[^\s/:\[\]]+):([0-9]{1,5})")


class Settings(BaseSettings):
    """Base of every settings class: read from `RUNTAP_…` variables, frozen, with errors that name the variable.

    Not from a `.env`: whether an app has one is the app's to say. What stands on its own, as commands do, adds it.
    """

    # A traceback shows pydantic's error too, whose input may hold a password.
    model_config = SettingsConfigDict(env_prefix="RUNTAP_", frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def load(cls, *, options: Collection[str] = (), **overrides: Any) -> Self:
        """Reads the environment, and the `.env` where the class has one.

        Args:
            options: overrides that a person gave as options of a command: errors name those instead of variables.
            **overrides: values that win over the environment; `None` means not given.

        Raises:
            SettingsError: a value cannot work; every such value is named.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError("; ".join(_explain(problem, options) for problem in error.errors())) from error
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"{cls.model_config.get('env_file')} cannot be read: {error}") from error


def _explain(problem: Any, options: Collection[str]) -> str:
    field_name = "_".join(str(part) for part in problem["loc"]) or "settings"
    secret = "password" in field_name.lower() or not problem["loc"] or problem["type"] == "extra_forbidden"
    value = "" if secret else f"={shown(problem['input'])}"
    name = field_name.upper() if field_name.upper().startswith("RUNTAP_") else f"RUNTAP_{field_name.upper()}"
    if field_name in options:
        name = f"--{field_name.replace('_', '-')}"
    said = problem["msg"].removeprefix("Value error, ")
    return f"{name if problem['loc'] else 'settings'}{value}: {said}"


class ConnectionSettings(Settings):
    """How to reach Kafka."""

    bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="Kafka's first contacts, host:port separated by commas"
    )
    topic_prefix: str = Field(
        "runtap",
        description="first part of the topics' names",
        pattern=r"^[A-Za-z0-9._-]{1,200}$",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how connections are secured"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "PLAIN", description="how a client proves who it is, with a SASL protocol"
    )
    sasl_username: str | None = Field(None, description="user name, with a SASL protocol")
    sasl_password: SecretStr | None = Field(None, description="password, with a SASL protocol")
    ssl_cafile: str | None = Field(None, description="file of the certificate authority; empty: the system's")

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        if "@" in value:
            raise ValueError(
                "expected host:port, such as kafka-1:9092: user and password are RUNTAP_SASL_USERNAME and "
                "RUNTAP_SASL_PASSWORD"
            )
        servers = [server.strip() for server in value.split(",") if server.strip()]
        for server in servers:
            found = _SERVER.fullmatch(server)
            if found is None or not 0 < int(found[1]) < 65_536:
                raise ValueError(f"expected host:port, such as kafka-1:9092, not {shown(server)}")
        if not servers:
            raise ValueError("expected at least one host:port")
        return ",".join(servers)

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"RUNTAP_SECURITY_PROTOCOL={self.security_protocol} needs RUNTAP_SASL_USERNAME and RUNTAP_SASL_PASSWORD"
            )
        return self

    def client_options(self) -> dict[str, Any]:
        """The connection's part of the arguments of any aiokafka client.

        Raises:
            SettingsError: `RUNTAP_SSL_CAFILE` cannot be read.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers.split(","),
            "security_protocol": self.security_protocol,
        }
        if self.security_protocol.startswith("SASL"):
            assert self.sasl_password is not None
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            options["sasl_plain_password"] = self.sasl_password.get_secret_value()
        if self.security_protocol.endswith("SSL"):
            try:
                options["ssl_context"] = ssl.create_default_context(cafile=self.ssl_cafile)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(
                    f"RUNTAP_SSL_CAFILE={self.ssl_cafile!r} cannot be read as a PEM file of certificates: {error}"
                ) from error
        return options
