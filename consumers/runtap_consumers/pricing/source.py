"""Where prices come from: genai-prices as installed or as updated, runtap's corrections and the owner's file over them.
Read again when one of the files changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import orjson
import structlog
from genai_prices.types import Provider
from sqlalchemy.engine import make_url

from runtap_consumers.errors import PriceFileError
from runtap_consumers.pricing.corrections import correct, load_corrections
from runtap_consumers.pricing.overrides import Overrides, load_overrides
from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.settings import ConsumerSettings
from runtap_consumers.store.dialect import file_of

logger = structlog.get_logger(__name__)

_FILE_NAME = "prices.json"
_TIMEOUT_SECONDS = 20
_MAX_BYTES = 64 * 2**20

Stamp = tuple[int, int, int] | None


class PriceUpdate(NamedTuple):
    """Newer data that were stored: what they are called in a price set, how many models, and where they lie."""

    name: str
    models: int
    path: Path


class PriceSource:
    """The prices of a process, and whether they are still those of the files."""

    def __init__(self, settings: ConsumerSettings) -> None:
        """Raises:
        PriceFileError: a file cannot be read or is wrong: at the start that stops a process.
        """
        self._files = (data_path(settings), Path(settings.prices) if settings.prices else None)
        self._stamps = self._read_stamps()
        self.table = load_prices(settings)
        self._settings = settings

    def refresh(self) -> bool:
        """Reads the files again if one has changed. A file that is wrong leaves the prices as they are, and says so
        once.

        Returns:
            Whether `table` is another one now.
        """
        stamps = self._read_stamps()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            table = load_prices(self._settings)
        except PriceFileError as error:
            logger.error("prices_refused", price_set=self.table.price_set, reason=str(error))
            return False
        if table.price_set == self.table.price_set:
            return False
        logger.info("prices_reloaded", price_set=table.price_set, before=self.table.price_set)
        self.table = table
        return True

    def _read_stamps(self) -> tuple[Stamp, ...]:
        return tuple(None if path is None else _stamp(path) for path in self._files)


def load_prices(settings: ConsumerSettings) -> PriceTable:
    """The table that the settings name.

    Raises:
        PriceFileError: a file cannot be read, or something in it cannot work.
    """
    overrides = load_overrides(Path(settings.prices)) if settings.prices else Overrides()
    providers, name = _base(data_path(settings))
    return PriceTable(correct(providers, load_corrections()), name, overrides)


def data_path(settings: ConsumerSettings) -> Path:
    """Where `runtap prices update` keeps newer data: beside a store that is a file, else in the user's state folder."""
    if settings.price_data:
        return Path(settings.price_data)
    store = file_of(make_url(settings.database_url))
    return (Path.home() / ".local" / "state" / "runtap" if store is None else store.parent) / _FILE_NAME


def update_prices(settings: ConsumerSettings, file: Path | None, now_ns: int) -> PriceUpdate:
    """Stores newer data of genai-prices, once they are found to be usable.

    Args:
        settings: where to.
        file: the data (`data.json` of genai-prices); `None`: from where genai-prices itself updates.
        now_ns: the present, which names the data: they carry no date.

    Raises:
        PriceFileError: they cannot be had, or are not what genai-prices reads.
    """
    content = _download() if file is None else _read(file)
    origin = "the network" if file is None else str(file)
    providers = _parse(content, origin)
    name = f"genai-prices-{datetime.fromtimestamp(now_ns / 10**9, UTC):%Y-%m-%d}"
    path = data_path(settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".new")
        unfinished.write_bytes(orjson.dumps({"name": name, "providers": orjson.Fragment(content)}))
        unfinished.replace(path)
    except OSError as error:
        raise PriceFileError(f"{path}: cannot be written: {error.strerror}. Check RUNTAP_PRICE_DATA") from error
    return PriceUpdate(name, sum(len(provider.models) for provider in providers), path)


def _base(path: Path) -> tuple[Sequence[Provider], str]:
    if path.exists():
        try:
            stored = orjson.loads(_read(path))
            return _parse(orjson.dumps(stored["providers"]), str(path)), str(stored["name"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise PriceFileError(f"{path}: no data that `runtap prices update` wrote: remove it, or update") from error
    # 30,000 lines, which only commands that price need to load.
    from genai_prices.data import providers

    return providers, f"genai-prices-{version('genai-prices')}"


def _parse(content: bytes, origin: str) -> list[Provider]:
    # genai-prices offers no public reader; this is its own updater's.
    from genai_prices.types import _providers_from_raw
    from pydantic import ValidationError

    try:
        raw = orjson.loads(content)
        if not isinstance(raw, list) or not raw:
            raise PriceFileError(f"{origin}: expected genai-prices' data.json, an array of providers")
        return _providers_from_raw(raw)
    except (orjson.JSONDecodeError, ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PriceFileError(f"{origin}: genai-prices {version('genai-prices')} cannot read it: {reason}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PriceFileError(f"{path}: cannot be read: {error.strerror}") from error


def _download() -> bytes:
    import httpx2
    from genai_prices import update_prices as genai_update

    try:
        answer = httpx2.get(genai_update.DEFAULT_UPDATE_URL, timeout=_TIMEOUT_SECONDS)
        answer.raise_for_status()
    except httpx2.HTTPError as error:
        raise PriceFileError(
            f"{genai_update.DEFAULT_UPDATE_URL}: {error}. Without a network, bring data.json and use --from-file"
        ) from error
    content: bytes = answer.content
    if len(content) > _MAX_BYTES:
        raise PriceFileError(f"{genai_update.DEFAULT_UPDATE_URL}: {len(content)} bytes are no price table")
    return content


def _stamp(path: Path) -> Stamp:
    try:
        state = path.stat()
        return state.st_mtime_ns, state.st_size, state.st_ino
    except OSError:
        return None
