"""Which Host names the server accepts: the protection against DNS rebinding.

An attacker's page can make its own name resolve to this machine. A browser then treats the page
and this server as one site and lets the page read every response. The Host header still carries
the attacker's name, so such a request can be rejected.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

_PORT = re.compile(r":[0-9]*\Z")
# An attacker cannot register an address, a name without a dot or a name under .localhost (RFC
# 6761), so a foreign page never has one of these as its host.
_UNREGISTRABLE = re.compile(r"\[.*|[0-9.]*|[^.]*|.*\.localhost")


class HostPolicy:
    """Accepts unregistrable names and `allowed` names; `.example.com` stands for example.com and
    all its subdomains.

    Without allowed names, a server that other machines can reach at `address` accepts every name:
    it may have any name, and other clients can read its responses anyway. So does one on a unix
    socket (None), which a browser cannot reach.
    """

    def __init__(self, allowed: Collection[str], address: str | None) -> None:
        self._allowed = allowed
        self._domains = tuple(name for name in allowed if name.startswith("."))
        is_loopback = False
        if address is not None:
            ip = ipaddress.ip_address(address)
            # Before Python 3.13, ::ffff:127.0.0.1 is not a loopback address.
            is_loopback = (getattr(ip, "ipv4_mapped", None) or ip).is_loopback
        self._accepts_all = not allowed and not is_loopback

    def accepts(self, host: str) -> bool:
        # A trailing dot makes a name absolute; it is the same host.
        name = _PORT.sub("", host.lower()).removesuffix(".")
        return (
            self._accepts_all
            or bool(_UNREGISTRABLE.fullmatch(name))
            or name in self._allowed
            or f".{name}".endswith(self._domains)
        )
