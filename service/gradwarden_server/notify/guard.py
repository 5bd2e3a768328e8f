"""Where the service may connect to: no internal addresses unless that receiver allows them.

The host is resolved once per try, every address is judged, and the connection goes to a
judged address (the URL's host is replaced by it, with Host and SNI kept), so that a name
that changes its answer between judging and connecting gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Iterable[str]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Of these the operator's own translation chooses where in them an IPv4 address stands.
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")
_V4_COMPATIBLE = ipaddress.IPv6Network("::/96")


class Refused(Exception):
    """This URL is not to be called; the text says why."""


class Unresolved(Exception):
    """The host has no address at the moment."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL whose host is a judged address, and the name it was asked for."""

    url: httpx.URL
    host_header: str
    sni: str


def system_resolve(host: str, port: int) -> list[str]:
    """Every address of a host, by the system's resolver."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unresolved(f"the name of the host does not resolve: {error}") from error
    return [str(answer[4][0]) for answer in answers]


def check_url(text: str, allow_private: bool) -> httpx.URL:
    """Judge what can be judged without the network.

    Raises:
        Refused: Not an https URL (http needs ``allow_private``), carries user information,
            or names an internal address.
    """
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError) as error:
        raise Refused("not a URL") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Refused("expected https://host/...")
    if url.scheme == "http" and not allow_private:
        raise Refused("http is refused unless allow_private is true")
    if url.userinfo:
        raise Refused("user and password in a URL are refused")
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:
        return url
    if not allow_private and not is_public(address):
        raise Refused("an internal address is refused unless allow_private is true")
    return url


def admit(text: str, allow_private: bool, resolve: Resolve = system_resolve) -> Target:
    """Resolve and judge a URL, and pin it to one judged address.

    Raises:
        Refused: As ``check_url``, or any address of the host is internal.
        Unresolved: The host has no address now; worth another try.
    """
    url = check_url(text, allow_private)
    port = url.port or (443 if url.scheme == "https" else 80)
    pinned = url.copy_with(host=pin(url.host, port, allow_private, resolve))
    return Target(url=pinned, host_header=url.netloc.decode("ascii"), sni=url.raw_host.decode())


def pin(host: str, port: int, allow_private: bool, resolve: Resolve = system_resolve) -> str:
    """Resolve a host, judge every address of it, and give one of them.

    Raises:
        Refused: Any address of the host is internal.
        Unresolved: The host has no address now; worth another try.
    """
    # A zone (fe80::1%eth0) says on which link, not which address.
    addresses = [ipaddress.ip_address(a.split("%")[0]) for a in resolve(host, port)]
    if not addresses:
        raise Unresolved("the name of the host does not resolve")
    if not allow_private and not all(is_public(address) for address in addresses):
        raise Refused("the host has an internal address, refused unless allow_private is true")
    return str(addresses[0])


def is_public(address: Address) -> bool:
    """Whether an address, and the one it may carry inside, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _LOCAL_NAT64:
            return False
        carried = _carried(address)
        if carried is not None:
            return is_public(carried)
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified
    )


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64 or address in _V4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour
