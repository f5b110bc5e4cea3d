"""Settings of workers, report and alerts; the only reader of the environment, and of `.env`, on this side."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from runtap_consumers.private_files import read_secret
from runtap_schemas import ConnectionSettings


class ConsumerSettings(ConnectionSettings):
    """Settings of everything that reads the stream or the store; also read from the `.env` of the working folder."""

    # A `.env` may hold variables of other programs, too: those are no mistakes.
    model_config = SettingsConfigDict(env_file=".env", dotenv_filtering="only_existing")

    database_password_file: str | None = Field(
        None, description="file whose first line is the password of the store's user"
    )
    # After that file, whose password it gets.
    database_url: str = Field(
        "sqlite:///.runtap/runtap.db",
        repr=False,
        description="the store: sqlite:///path or postgresql://user:password@host/database",
    )
    timezone: str | None = Field(
        None, description="time zone of a new store's days (UTC if unset); in `report`, how times are printed"
    )
    cost_by: str = Field(
        "", description="up to three metadata keys to attribute costs to: metadata.team,metadata.feature"
    )
    prices: str | None = Field(None, description="file of your own prices, TOML: docs/costs.md")
    price_data: str | None = Field(
        None,
        description="where `runtap prices update` keeps newer data; "
        "unset: beside a SQLite store, else in ~/.local/state/runtap",
    )
    commit_seconds: float = Field(
        0.25,
        gt=0,
        le=60,
        description="longest wait for more events before a commit, seconds; four times that where a whole commit waits",
    )
    commit_events: int = Field(10_000, ge=1, le=200_000, description="events of a partition that start a commit")
    runs_retention_days: float = Field(7, gt=0, le=400, description="how long single runs are kept, days")
    contents_retention_days: float = Field(7, gt=0, le=400, description="how long captured content is kept, days")
    sessions_retention_days: float = Field(90, gt=0, le=4_000, description="how long sessions are kept, days")
    session_timeout_seconds: float = Field(
        10, ge=1, le=300, description="how long a worker may be silent before its partitions go to others, seconds"
    )
    alerts: str | None = Field(
        None, description="file of alert rules; unset: alerts.toml in the working folder, else the built-in rules"
    )
    alert_learning_seconds: float = Field(
        600, ge=0, description="how long a new store learns its error groups without an alert, seconds"
    )

    serve_token: SecretStr | None = Field(
        None, description="what callers of `runtap serve` must have; without it, loopback only"
    )
    serve_token_file: str | None = Field(None, description="file whose first line is that token")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least level of what workers log: debug, info, warning or error"
    )

    @field_validator("database_url")
    @classmethod
    def _check_url(cls, value: str, info: ValidationInfo) -> str:
        # Loading SQLAlchemy would double the time that the help of a command takes.
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        from runtap_consumers.store.dialect import file_of

        try:
            url = make_url(value)
        except (ArgumentError, ValueError) as error:
            # make_url raises ValueError with what it took for the port, which may be the password.
            raise ValueError("expected sqlite:///path or postgresql://user:password@host/database") from error
        if value.count("@") > 1 or (url.username is None and "@" in value):
            raise ValueError("expected no @ but that before the host: in a password, / : and @ are %2F %3A %40")
        if file_of(url) is not None and (url.database in (None, "", ":memory:") or url.host or url.username):
            raise ValueError("expected a file, as in sqlite:///path: workers cannot share a store in memory")
        password_file = info.data.get("database_password_file")
        if password_file is None or not url.username:
            return value
        try:
            password = read_secret(password_file)
        except ValueError as error:
            raise ValueError(f"RUNTAP_DATABASE_PASSWORD_FILE={password_file!r} {error}") from error
        # The same where a process hands its settings to another.
        if url.password and url.password != password:
            raise ValueError("it has another password than RUNTAP_DATABASE_PASSWORD_FILE: leave one out")
        return url.set(password=password).render_as_string(hide_password=False)

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str | None) -> str | None:
        if value is not None and value not in available_timezones():
            raise ValueError("expected a name of the IANA time zone database, such as Europe/Berlin")
        return value

    @field_validator("cost_by")
    @classmethod
    def _check_attributes(cls, value: str) -> str:
        names = [name.strip() for name in value.split(",") if name.strip()]
        if len(names) > 3 or any(not name.removeprefix("metadata.") for name in names):
            raise ValueError("expected at most three metadata keys, such as metadata.team,metadata.feature")
        # A key that is named twice would be counted twice; the user always counts.
        keys = [name.removeprefix("metadata.") for name in names]
        if always := [key for key in ("user", "root") if key in keys]:
            raise ValueError(f"leave {always[0]!r} out: costs are always attributed to it as well")
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is named more than once: name each metadata key once")
        return ",".join(names)

    @property
    def cost_attributes(self) -> tuple[str, ...]:
        """The metadata keys that costs are attributed to."""
        return tuple(name.removeprefix("metadata.") for name in self.cost_by.split(",") if name)

    def zone(self) -> ZoneInfo:
        """The time zone to print in, UTC where none is set."""
        return ZoneInfo(self.timezone or "UTC")
