"""Photos from URLs that a request names, without letting the request choose what this server talks to.

https on its port only; the name is resolved once and every address it has must be public; the connection goes to that very address, while
the certificate must be the name's. Each redirect is checked in the same way. Bytes and time are bounded, and no proxy is asked.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from typing import NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from serve.fetch_config import FetchConfig
from serve.pools import FETCHING
from serve.problems import ApiError

HTTPS_PORT = 443
_REDIRECTS = {301, 302, 303, 307, 308}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is assigned to the public internet; Python takes the rest for global
# Inside the ranges that Python takes for global, and yet of no public host.
_RESERVED = tuple(map(ipaddress.ip_network, (
    "168.63.129.16/32",  # Azure's host: metadata, DNS and the agents of the virtual machine
    "192.0.0.0/24",  # of protocols, and the metadata of Oracle's virtual machines
    "192.88.99.0/24",  # relays of 6to4, taken out of use (RFC 7526)
    "3fff::/20",  # documentation (RFC 9637)
)))
_CHUNK_BYTES = 65_536


class _Place(NamedTuple):
    host: str
    address: str
    path: str


async def fetch_photo(url: str, config: FetchConfig, max_bytes: int, param: str) -> bytes:
    """The bytes behind `url`. Raises ApiError: `image_url` for one that is not to be asked, `image_fetch` for one that gave nothing,
    `body_too_large`."""
    return await FETCHING.run(_fetch, url, config, max_bytes, param)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, as seen through IPv6 forms that carry an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(str(carried))
        if ip not in _GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _RESERVED)


def _fetch(url: str, config: FetchConfig, max_bytes: int, param: str) -> bytes:
    deadline_s = time.monotonic() + config.timeout_s
    for _ in range(config.max_redirects + 1):
        place = _check(url, config, param)
        try:
            connection = _PinnedConnection(place, max(0.001, deadline_s - time.monotonic()))
            with contextlib.closing(connection), _closed_at(connection, deadline_s):
                connection.request("GET", place.path, headers={"Accept": "image/jpeg, image/png, image/webp", "User-Agent": "pixellm"})
                response = connection.getresponse()
                if response.status not in _REDIRECTS:
                    return _read(response, max_bytes, deadline_s, param)
                url = urljoin(url, response.headers.get("Location", ""))
        except (OSError, http.client.HTTPException, ValueError):  # no details: they would tell what is reachable from here
            raise ApiError(422, "image_fetch", f"The URL of {param} gave no photo in time.", param) from None
    raise ApiError(422, "image_fetch", f"The URL of {param} redirects more than {config.max_redirects} times.", param)


def _check(url: str, config: FetchConfig, param: str) -> _Place:
    def refused(why: str) -> ApiError:
        return ApiError(422, "image_url", f"The URL of {param} {why}; send the photo itself.", param)

    try:
        parts: SplitResult = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise refused("is not a URL") from None
    if parts.scheme != "https" or port not in (None, HTTPS_PORT) or "@" in parts.netloc or not host or not url.isascii() or " " in url:
        raise refused(f"is not a plain https URL with port {HTTPS_PORT}, without a user, in ASCII")
    if config.hosts and host not in config.hosts:
        raise refused("names a host that this server does not ask")
    try:
        found = socket.getaddrinfo(host, HTTPS_PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise refused("names a host that has no address") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise refused("names a host that is not on the public internet")
    return _Place(host, addresses[0], (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline_s: float, param: str) -> bytes:
    if response.status != 200:
        raise ApiError(422, "image_fetch", f"The URL of {param} answered with status {response.status}.", param)
    data = bytearray()
    while True:
        chunk = response.read1(_CHUNK_BYTES)
        if time.monotonic() > deadline_s:  # then an end is not the photo's
            raise TimeoutError
        if not chunk:
            return bytes(data)
        data += chunk
        if len(data) > max_bytes:
            raise ApiError(413, "body_too_large", f"The photo behind the URL of {param} is larger than {max_bytes:,} bytes.", param)


class _PinnedConnection(http.client.HTTPSConnection):
    """To one address, whatever the name resolves to by now."""

    def __init__(self, place: _Place, timeout_s: float):
        self._address, self._tls = place.address, ssl.create_default_context()
        self.secured: ssl.SSLSocket | None = None  # also when a response that ends the connection has taken `sock` over
        super().__init__(place.host, HTTPS_PORT, timeout=timeout_s)

    def connect(self) -> None:
        plain = socket.create_connection((self._address, HTTPS_PORT), self.timeout)
        try:
            self.sock = self.secured = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


@contextlib.contextmanager
def _closed_at(connection: _PinnedConnection, deadline_s: float):
    """A server that sends a byte of its headers now and then is cut off too: the timeout of a socket begins anew with each."""

    def cut() -> None:
        if connection.secured is not None:
            with contextlib.suppress(OSError):
                connection.secured.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline_s - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
