"""One HTTP request to a channel: to an address that was looked at, within a time, without redirects.

A name may lead inside, or elsewhere when it is asked again: the address that was checked is the one that is connected
to, and the name goes only into the header and the check of the certificate.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping

import httpx2

from runtap_consumers.alerts.channels import Channel
from runtap_consumers.replies import Reply

TIMEOUT_SECONDS = 10.0
_IPV4_INSIDE = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: not private, shared, loopback, link-local, multicast or reserved,
    and no IPv6 address that stands for such an IPv4 address.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inside = found.ipv4_mapped or found.sixtofour
        if inside is None and any(found in network for network in _IPV4_INSIDE):
            inside = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        if inside is not None:
            return is_public(str(inside))
        if found.is_site_local or found in _LOCAL_NAT64:
            return False
    return found.is_global and not found.is_multicast


class Target:
    """The receiver of a channel."""

    def __init__(self, channel: Channel, path: str = "", headers: Mapping[str, str] | None = None) -> None:
        """`path` is added to the channel's address; `headers` are of every request."""
        self._url = httpx2.URL(channel.url.rstrip("/") + path if path else channel.url)
        self._allow_private = channel.allow_private
        # A proxy of the environment would look the name up by itself.
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
            trust_env=False,
            verify=ssl.create_default_context(),
        )
        self.close = self._client.aclose

    async def post(self, body: bytes, headers: dict[str, str], failures: int = 0) -> Reply:
        """POSTs JSON. Whatever the receiver does is an answer. Each attempt takes the next of the host's addresses."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                addresses = await self._addresses()
                request = self._client.build_request(
                    "POST",
                    self._url.copy_with(host=addresses[failures % len(addresses)]),
                    content=body,
                    headers={**headers, "content-type": "application/json", "host": self._url.netloc.decode()},
                    extensions={"sni_hostname": self._url.raw_host.decode()},
                )
                # The body is not read: nobody needs it, and nobody knows how long it is.
                answer = await self._client.send(request, stream=True)
                await answer.aclose()
        except TimeoutError:
            return Reply(None, f"no answer within {TIMEOUT_SECONDS:.0f} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            return Reply(None, str(error) or type(error).__name__)
        return Reply(answer.status_code, f"HTTP {answer.status_code}", answer.headers.get("retry-after"))

    async def _addresses(self) -> list[str]:
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(self._url.host, port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        inside = next((address for address in addresses if not is_public(address)), None)
        # One of several is enough: who answers so means no good.
        if inside is not None and not self._allow_private:
            raise OSError(f"its host is {inside}, not on the internet: if it may be, allow_private = true")
        return addresses
