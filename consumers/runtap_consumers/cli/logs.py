"""Logging of worker processes: structlog, one JSON object a line, on standard error.

Only commands configure logging; everything else just logs.
"""

from __future__ import annotations

import logging
import sys

from runtap_consumers.kafka.client_log import watch_client_log
from runtap_schemas.masking import mask_log_event


def configure_logs(level: str) -> None:
    """Sends structlog's events, and what libraries log, to standard error as JSON lines, from a level on.

    What keeps the Kafka client from connecting is told by the error, once, and not logged.
    """
    import structlog

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                mask_log_event,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # The first, loaded where a store is opened, tells of its own plugins; the second of each request, with the whole
    # address, in which a webhook's secret may stand.
    for name in ("alembic", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    watch_client_log(is_silent=True)
