"""Settings of the collector, the only reader of the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from runtap_schemas import ConnectionSettings
from runtap_schemas.events import MAX_METADATA_KEYS, MAX_METADATA_LENGTH, MAX_NAME_LENGTH

MIN_BUFFER_BYTES = 64 * 1024


class SettingsOverrides(TypedDict, total=False):
    """The fields of `CollectorSettings` but the service, as arguments; `None` means not given."""

    bootstrap_servers: str | None
    topic_prefix: str | None
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None
    sasl_username: str | None
    sasl_password: SecretStr | str | None
    ssl_cafile: str | None
    environment: str | None
    metadata: dict[str, str] | str | None
    capture_content: bool | None
    error_messages: bool | None
    stream_tokens: bool | None
    buffer_bytes: int | None
    spool_dir: str | None
    spool_bytes: int | None
    signals: Literal["on", "off"] | None


class CollectorSettings(ConnectionSettings):
    """How a service's runs are captured and named."""

    service: str = Field(
        "unnamed", min_length=1, max_length=MAX_NAME_LENGTH, description="name of the service whose runs these are"
    )
    environment: str = Field(
        "default", min_length=1, max_length=MAX_NAME_LENGTH, description="where it runs, such as production"
    )
    metadata: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="metadata of every event, as team=x,region=y",
    )
    capture_content: bool = Field(False, description="whether prompts, answers and tool arguments are captured")
    error_messages: bool = Field(
        False, description="whether errors carry their message, which may quote prompts, answers, arguments and keys"
    )
    stream_tokens: bool = Field(
        False,
        description="whether streamed text is sent as it comes, joined over 100 ms; only where content is captured",
    )
    buffer_bytes: int = Field(
        32 * 1024 * 1024,
        ge=MIN_BUFFER_BYTES,
        description="most memory for events that Kafka has not acknowledged, in bytes",
    )

    spool_dir: str = Field(
        "",
        description="folder for events while Kafka is away; empty: runtap/spool in the user's state folder; off: none",
    )
    spool_bytes: int = Field(
        1024 * 1024 * 1024, ge=0, description="most that a process may keep there, compressed, in bytes"
    )

    signals: Literal["on", "off"] = Field(
        "on", description="whether SIGTERM and SIGHUP wait until what is in memory is sent or spooled; off: left alone"
    )

    @property
    def spool_directory(self) -> Path | None:
        """The folder of spools. `None`: there is none."""
        if self.spool_dir == "off":
            return None
        return Path(
            self.spool_dir or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "runtap", "spool")
        ).expanduser()

    @field_validator("metadata", mode="before")
    @classmethod
    def _split_metadata(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        for name, equals, _ in pairs:
            if not name.strip() or not equals:
                raise ValueError("expected key=value pairs separated by commas, as in team=x,region=y")
        return {name.strip(): text.strip() for name, _, text in pairs}

    @field_validator("metadata")
    @classmethod
    def _check_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) > MAX_METADATA_KEYS:
            raise ValueError(f"expected at most {MAX_METADATA_KEYS} keys, not {len(value)}")
        if any(len(text) > MAX_METADATA_LENGTH for pair in value.items() for text in pair):
            raise ValueError(f"expected keys and values of at most {MAX_METADATA_LENGTH} characters")
        return value
