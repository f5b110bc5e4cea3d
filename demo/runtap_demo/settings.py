"""Settings of the demo package, read from the environment, else the working folder's `.env`."""

from __future__ import annotations

from pathlib import Path

import platformdirs
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from runtap_schemas.connection import Settings


class DemoSettings(Settings):
    """Where the embedded Kafka keeps what it downloaded."""

    model_config = SettingsConfigDict(env_file=".env", dotenv_filtering="only_existing")

    kafka_cache: Path = Field(
        default_factory=lambda: platformdirs.user_cache_path("runtap"),
        description="folder of Apache Kafka's jars and of what is made from them once, about 110 MB",
    )
