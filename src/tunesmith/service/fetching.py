"""Reading a file from an http(s) address that a client names, without becoming its way into the house.

Off unless the settings say otherwise. The host is looked up once, every address it has must be public (unless private
ones are allowed), and the connection goes to exactly the address that was checked: a name that points elsewhere a
moment later gains nothing. Redirects are followed a few times, each checked like the first address. Nothing of the
answer but its bytes, and nothing of where it was found, is told to the client.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from tunesmith.service.errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], list[str]]

_PIECE = 1 << 20
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 3
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Rules:
    """What may be fetched. `most` in bytes; `patience` until something arrives and `seconds` for all of it."""

    most: int
    private: bool = False
    patience: float = 30.0
    seconds: float = 540.0


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, looking through the forms that carry another within them."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast and not address.is_reserved


def looked_up(host: str, port: int) -> list[str]:
    """The addresses of a host. Raises `OSError`."""
    return list(dict.fromkeys(str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


@contextmanager
def fetched(url: str, rules: Rules, lookup: Lookup = looked_up) -> Iterator[Iterator[bytes]]:
    """The bytes behind an address, in pieces. Raises `ApiError` 400 `fileImportFailed`, also while they are read."""
    with closing(_Clock(rules.seconds)) as clock:
        for _ in range(_MOST_REDIRECTS + 1):
            connection, answer = _asked(url, rules, lookup, clock)
            try:
                if answer.status in _REDIRECTS:
                    url = _next(url, answer.headers.get("location"))
                    continue
                if answer.status != 200:
                    raise failed(f"its server answered with status {answer.status}")
                if (answer.length or 0) > rules.most:
                    raise _too_large(rules)
                yield _pieces(answer, rules, clock)
                return
            finally:
                connection.close()
        raise failed(f"it redirects more than {_MOST_REDIRECTS} times")


def failed(reason: str) -> ApiError:
    """400 in Azure's code."""
    return ApiError(
        400,
        f"The file could not be imported from 'content_url': {reason}.",
        param="content_url",
        code="fileImportFailed",
    )


def _asked(
    url: str, rules: Rules, lookup: Lookup, clock: _Clock
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = checked_url(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    addresses = _allowed(host, port, rules, lookup)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    reasons: OSError | http.client.HTTPException | None = None
    for address in addresses:
        connection = _Pinned(host, port, address, secure, rules.patience, clock)
        try:
            connection.request(
                "GET", target, headers={"Accept": "*/*", "User-Agent": "tunesmith", "Connection": "close"}
            )
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reasons = error
    raise failed(clock.told if clock.over else _why(reasons)) from reasons


def checked_url(url: str) -> SplitResult:
    """The parts of an address that may be opened at all. Raises `ApiError`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise failed("it is no address") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise failed("expected an address that begins with https:// or http://")
    if parts.username is not None or parts.password is not None:
        raise failed("an address with a user or password in it is not opened; use a signed address")
    if port == 0 or not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
        raise failed("it has characters that belong percent-encoded")
    return parts


def _allowed(host: str, port: int, rules: Rules, lookup: Lookup) -> list[str]:
    try:
        addresses = lookup(host, port)
    except (OSError, UnicodeError) as error:
        raise failed("its host could not be found") from error
    if not rules.private and not all(is_public(ipaddress.ip_address(one.partition("%")[0])) for one in addresses):
        raise failed("its host is not on the public internet, and this server opens no private addresses")
    return addresses


def _next(url: str, location: str | None) -> str:
    if not location:
        raise failed("it redirects to nowhere")
    target = urljoin(url, location)
    if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
        raise failed("it redirects from https to something less")
    return target


def _pieces(answer: http.client.HTTPResponse, rules: Rules, clock: _Clock) -> Iterator[bytes]:
    size, announced = 0, answer.length
    try:
        # read1 takes what is there, so that one who sends a byte now and then does not hold us beyond the limit.
        while size != announced and (piece := answer.read1(_PIECE)):
            size += len(piece)
            if size > rules.most:
                raise _too_large(rules)
            if clock.over:
                break
            yield piece
    except (OSError, http.client.HTTPException) as error:
        raise failed(clock.told if clock.over else _why(error)) from error
    if clock.over and size != announced:
        raise failed(clock.told)
    if announced is not None and size != announced:
        raise failed("it ended in the middle")


def _too_large(rules: Rules) -> ApiError:
    return failed(f"it is larger than {rules.most // 1_000_000} MB")


def _why(error: BaseException | None) -> str:
    """A reason without addresses, ports or paths in it."""
    if isinstance(error, TimeoutError):
        return "its server did not answer in time"
    if isinstance(error, ssl.SSLError):
        return "its server's certificate is not valid"
    if isinstance(error, http.client.IncompleteRead):
        return "it ended in the middle"
    return "the connection to its server failed"


class _Clock:
    """Cuts a connection off when the time for all of it is over, whatever it waits for: a server that sends a byte of
    its headers now and then always answers in time.
    """

    def __init__(self, seconds: float) -> None:
        self.told = f"it was not there within {seconds:.0f} seconds"
        self._until = time.monotonic() + seconds
        self._twin: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._until

    def watch(self, connected: socket.socket) -> None:
        """Keep a second hand on a connection: encryption takes the first one away."""
        with self._lock:
            self._let_go()
            self._twin = connected.dup()
        if self.over:
            self._cut()

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            self._let_go()

    def _cut(self) -> None:
        with self._lock, suppress(OSError):  # it may have ended by itself
            if self._twin is not None:
                self._twin.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        if self._twin is not None:
            self._twin.close()
            self._twin = None


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was looked up and checked before, under the name of its host."""

    def __init__(self, host: str, port: int, address: str, secure: bool, patience: float, clock: _Clock) -> None:
        super().__init__(host, port, timeout=patience)
        self.default_port = 443 if secure else 80  # so that the Host header is written as the scheme has it
        self._address, self._secure, self._clock = address, secure, clock

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self._clock.watch(plain)
        self.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self._secure else plain
        )
