"""Alerts as signed POSTs: https://www.standardwebhooks.com."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

from standardwebhooks import Webhook

from runtap_consumers.alerts.channels import Channel
from runtap_schemas import SettingsError

_PREFIX, _LEAST_BYTES, _MOST_BYTES = "whsec_", 24, 64


def signer_of(channel: Channel) -> Webhook:
    """What signs a channel's requests.

    Raises:
        SettingsError: there is no secret, or it is none of Standard Webhooks.
    """
    secret = channel.read_secret() or ""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not secret.startswith(_PREFIX) or not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise SettingsError(
            f"channel {channel.id}: {channel.secret_env} is no secret of Standard Webhooks: expected {_PREFIX} and "
            f"{_LEAST_BYTES} to {_MOST_BYTES} bytes in base64, as `echo whsec_$(openssl rand -base64 32)` makes"
        )
    return Webhook(key)


def signed_headers(signer: Webhook, alert_id: str, body: bytes) -> dict[str, str]:
    """The headers of a request. A repeat has the same id, by which its receiver knows it."""
    now = datetime.now(UTC)
    return {
        "webhook-id": alert_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signer.sign(alert_id, now, body.decode()),
        "idempotency-key": alert_id,
    }
