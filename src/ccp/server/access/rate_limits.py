"""How often somebody may ask: rates that all workers of a machine share, throttled logins, and whose address it is.

A rate is kept as one number for each key, the *theoretical arrival time* of the generic cell rate algorithm (ATM Forum
Traffic Management 4.0, annex C): when the key's next call would come if it came exactly at its rate. A call is within
the rate as long as that time is no further ahead than the burst allows. Nothing has to be counted down, and a number
that lies in the past says nothing, so its place in the table is free again without anybody cleaning up.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final, TypeAlias

from ccp.errors import ConfigurationError, NotAuthenticated, TooManyRequests, Unavailable
from ccp.server.metrics import Limited
from ccp.server.runtime.private_files import create_private, reopen_private
from ccp.server.settings import Settings

_SECRET: Final = 32
_HEADER: Final = 64
# 65,536 keys of 16 octets are one mebibyte; a machine that is asked by more addresses than this within a few seconds
# forgets those that are nearest to being forgiven anyway.
_SLOTS: Final = 1 << 16
_SHORT: Final = 80
_WINDOW: Final = 8
"""How many places of the table a key may stand in."""

Clock: TypeAlias = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Rate:
    """interval: nanoseconds between two calls. burst: how many may come at once after a rest."""

    interval: int
    burst: int

    @staticmethod
    def of(per_second: float, burst: int) -> Rate | None:
        """None for 0: no limit."""
        return Rate(round(1e9 / per_second), burst) if per_second else None


_MARK: Final = Rate(0, 1)


class Meter:
    """The table, in memory that processes share.

    The only lock is that numbers of 64 bits are written whole. Two workers that count the same key in the same
    microsecond may count once: a limit is then exceeded by one call, which is cheaper than a lock for every call. The
    key of the hash is random and new with the file, so nobody outside can choose keys that meet in one place.
    """

    def __init__(self, memory: mmap.mmap, clock: Clock = time.monotonic_ns) -> None:
        """clock: nanoseconds, the same for all processes of the machine."""
        self._memory = memory
        self._secret = memory[:_SECRET]
        self._cells = memoryview(memory)[_HEADER:].cast("Q")
        self._clock = clock
        self._known = lru_cache(4096)(self._hashed)

    @classmethod
    def private(cls, clock: Clock = time.monotonic_ns) -> Meter:
        """For this process alone."""
        memory = mmap.mmap(-1, _HEADER + _SLOTS * 16)
        memory[:_SECRET] = os.urandom(_SECRET)
        return cls(memory, clock)

    @classmethod
    def shared(cls, file: Path) -> Meter:
        """For every process that opens the file. Raises ConfigurationError."""
        try:
            with reopen_private(file) as opened:
                memory = mmap.mmap(opened.fileno(), _HEADER + _SLOTS * 16)
        except (OSError, ValueError) as exc:
            raise ConfigurationError(f"The rate limits' file {file} cannot be used: {exc}.") from exc
        return cls(memory)

    @classmethod
    def prepare(cls, file: Path) -> None:
        """A table for processes to share: the one that is there, or a new one that its owner alone may read.

        One from before the machine started is replaced, since its numbers are of another clock. Raises
        ConfigurationError.
        """
        try:
            if os.path.lexists(file):
                if file.lstat().st_mtime >= time.time() - time.monotonic():
                    cls.shared(file)
                    return
                file.unlink()
            with create_private(file) as opened:
                opened.write(os.urandom(_SECRET))
                opened.truncate(_HEADER + _SLOTS * 16)
        except OSError as exc:
            raise ConfigurationError(f"The rate limits' file {file} cannot be made: {exc.strerror}.") from exc

    def take(self, key: bytes, rate: Rate) -> float:
        """Count a call if it is within the rate. Returns 0.0, or else the seconds until it would be."""
        now = self._clock()
        place, due = self._find(key, now)
        wait = due - now - rate.interval * (rate.burst - 1)
        if wait > 0:
            return wait / 1e9
        self._cells[place] = due + rate.interval
        return 0.0

    def wait(self, key: bytes, rate: Rate) -> float:
        """What `take` would return; nothing is counted."""
        now = self._clock()
        tag, place = self._place(key)
        cells = self._cells
        for each in range(place, place + 2 * _WINDOW, 2):
            if cells[each] == tag:
                return max(0, cells[each + 1] - now - rate.interval * (rate.burst - 1)) / 1e9
        return 0.0

    def charge(self, key: bytes, rate: Rate) -> None:
        """Count a call that has happened, be it within the rate or not: what is too much is paid for by waiting.

        No more than a second burst is owed, so that whoever was counted too often is not shut out for long.
        """
        now = self._clock()
        place, due = self._find(key, now)
        self._cells[place] = min(due, now + rate.interval * (2 * rate.burst - 1)) + rate.interval

    def mark(self, key: bytes, seconds: int) -> None:
        """Remember a key for this long; other keys do not displace it."""
        now = self._clock()
        place, _ = self._find(key, now)
        self._cells[place] = now + seconds * 1_000_000_000

    def is_marked(self, key: bytes) -> bool:
        return self.wait(key, _MARK) > 0

    def unmark(self, key: bytes) -> None:
        if self.is_marked(key):
            place, _ = self._find(key, self._clock())
            self._cells[place] = 0

    def _place(self, key: bytes) -> tuple[int, int]:
        """The mark of a key and the first cell that it may stand in; remembered for short keys that come often."""
        return self._known(key) if len(key) <= _SHORT else self._hashed(key)

    def _hashed(self, key: bytes) -> tuple[int, int]:
        digest = hashlib.blake2b(key, digest_size=16, key=self._secret).digest()
        tag = int.from_bytes(digest[:8], "little") | 1
        return tag, 2 * (int.from_bytes(digest[8:12], "little") % (_SLOTS - _WINDOW))

    def _find(self, key: bytes, now: int) -> tuple[int, int]:
        """The cell of the key's number, and that number, which is at least now. The key is entered if it is new."""
        tag, first = self._place(key)
        cells = self._cells
        oldest, least = first, None
        for each in range(first, first + 2 * _WINDOW, 2):
            due = cells[each + 1]
            if cells[each] == tag:
                return each + 1, max(due, now)
            if least is None or due < least:
                oldest, least = each, due
        cells[oldest] = tag
        return oldest + 1, now


# --- Whose address it is ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """Who is on the other end. address: as far as it is known.

    counted: what limits by address count under; None where the address is a trusted proxy's own, since counting that
    would throttle all partners behind it together.
    """

    address: str | None
    counted: bytes | None


class Proxies:
    """The proxies whose `X-Forwarded-For` is believed."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """trusted: networks as CIDR."""
        self._networks = tuple(map(ip_network, trusted))
        # The same few partners come again and again; reading an address costs some microseconds.
        self.trusts = lru_cache(4096)(self._trusts)
        self.client = lru_cache(4096)(self._client)

    def _trusts(self, peer: str | None) -> bool:
        """Whether the peer of a connection, an address, is one of them."""
        address = _address(peer or "")
        return address is not None and self._has(address)

    def _client(self, peer: str | None, forwarded: str) -> Client:
        """The client of a connection's peer.

        forwarded: all `X-Forwarded-For` of the request in their order. Each proxy writes behind what it was told by
        whom, so they are read from the right: the first that is not a trusted proxy is the client. What stands
        further left was said by it and is worth nothing.
        """
        found = _address(peer or "")
        if found is None:
            return Client(peer, None)
        if not self._has(found):
            return Client(str(found), _counted(found))
        for text in reversed(forwarded.split(",")):
            hop = _address(text.strip())
            if hop is None:
                break
            found = hop
            if not self._has(hop):
                return Client(str(hop), _counted(hop))
        return Client(str(found), None)

    def _has(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, as it stands or with a port behind it, IPv4 in IPv6 as IPv4; None for anything else."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _counted(address: IPv4Address | IPv6Address) -> bytes:
    """An IPv6 client has a network of /64 at least, and could use another address of it for every call."""
    return address.packed if address.version == 4 else address.packed[:8]


# --- The limits themselves -------------------------------------------------------------------------------------------

# How many callers may wait for their secret to be checked in one worker: with two checks at a time of some 20 ms each
# the last one waits for a third of a second.
_LOGINS_WAITING: Final = 32
_RECOGNISED_SECONDS: Final = 7 * 86_400  # Every login begins it anew; parties log in once a token's lifetime.


class Limits:
    """What a pool lets through. All of it raises TooManyRequests when it is too much."""

    def __init__(self, config: Settings | None, limited: Limited = lambda limit: None) -> None:
        """config: None for no limits. Raises ConfigurationError when the file of its rates cannot be used."""
        self._limited = limited
        self._address = self._party = self._failures = self._login = self._login_more = None
        self._logins = 0
        if config is None:
            self.proxies, self._meter = Proxies(()), Meter.private()
            return
        self.proxies = Proxies(config.trusted_proxies)
        self._meter = Meter.shared(config.rate_limit_file) if config.rate_limit_file else Meter.private()
        self._address = Rate.of(config.rate_limit_per_address, 2 * config.rate_limit_per_address)
        self._party = Rate.of(config.rate_limit_per_party, 2 * config.rate_limit_per_party)
        self._failures = Rate.of(config.rate_limit_unauthenticated, 20 * config.rate_limit_unauthenticated)
        self._login = Rate.of(config.login_failures_per_minute / 60, config.login_failures_per_minute)
        self._login_more = Rate.of(config.login_failures_per_minute / 12, 5 * config.login_failures_per_minute)

    def request(self, client: Client) -> None:
        """Any request at all, before anything of it is looked at."""
        if self._address is not None and client.counted is not None:
            self._refuse(
                "address",
                self._meter.take(b"a" + client.counted, self._address),
                "Too many requests from this address.",
            )

    def party(self, client_id: str) -> None:
        """A request of a caller who is known."""
        if self._party is not None:
            self._refuse(
                "party", self._meter.take(b"p" + client_id.encode(), self._party), "Too many requests of this party."
            )

    def stranger(self, client: Client) -> None:
        """A request whose token has to be verified first: not from where many came that were no good."""
        if self._failures is not None and client.counted is not None:
            wait = self._meter.wait(b"f" + client.counted, self._failures)
            self._refuse("failures", wait, "Too many requests without a valid token from this address.")

    def stranger_failed(self, client: Client) -> None:
        if self._failures is not None and client.counted is not None:
            self._meter.charge(b"f" + client.counted, self._failures)

    def login(self, client: Client, client_id: str, secret: str, *, recognised: bool = False) -> Login:
        """A client that wants a token; a context in which its secret is checked.

        Failures count for the client id together with the address, for the address, so nobody tries a few secrets for
        each of many client ids, and for the client id alone, since an address can be invented where a proxy passes on
        what its clients say. The last two allow more, so that one address locks no party out. Where the address is
        not known they count for the client id alone. Failures are counted when they have happened, and more than the
        limit may be under way at once; what was too much is paid for by waiting, so the rate holds.

        recognised: this process has verified the secret before (`ccp.server.access.secret_cache`). Then, or if another
        process of the machine has, no failures of others keep it out.
        Raises TooManyRequests, and Unavailable where too many wait already.
        """
        text = f"{len(client_id)}:{client_id}{secret}".encode("utf-8", "replace")
        mark = b"k" + hashlib.blake2b(text, digest_size=32).digest()
        if not recognised and not self._meter.is_marked(mark):
            wait = max((self._meter.wait(key, rate) for key, rate in self._login_rates(client, client_id)), default=0.0)
            self._refuse("login", wait, "Too many failed attempts to get a token; wait before the next one.")
            if self._logins >= _LOGINS_WAITING:
                self._limited("logins_waiting")
                raise Unavailable("Too many clients ask for a token just now.")
        return Login(self, client, client_id, mark)

    def login_began(self) -> None:
        self._logins += 1

    def login_ended(self) -> None:
        self._logins -= 1

    def login_succeeded(self, mark: bytes) -> None:
        self._meter.mark(mark, _RECOGNISED_SECONDS)

    def login_failed(self, client: Client, client_id: str, mark: bytes) -> None:
        self._meter.unmark(mark)  # It was replaced, has expired, or is a disabled party's.
        for key, rate in self._login_rates(client, client_id):
            self._meter.charge(key, rate)

    def _refuse(self, limit: str, seconds: float, sentence: str) -> None:
        """Raises TooManyRequests unless seconds, to wait until the limit lets through, is zero."""
        if seconds > 0:
            self._limited(limit)
            raise TooManyRequests(sentence, retry_after=math.ceil(seconds))

    def _login_rates(self, client: Client, client_id: str) -> Iterator[tuple[bytes, Rate]]:
        if self._login is None or self._login_more is None:
            return
        client_key = client_id.encode("utf-8", "replace")
        if client.counted is None:
            yield b"i" + client_key, self._login
            return
        yield b"l" + client.counted + b"/" + client_key, self._login
        yield b"m" + client.counted, self._login_more
        yield b"n" + client_key, self._login_more


class Login:
    """A secret that is being checked; NotAuthenticated says that it was wrong."""

    def __init__(self, limits: Limits, client: Client, client_id: str, mark: bytes) -> None:
        self._limits, self._client, self._client_id, self._mark = limits, client, client_id, mark

    def __enter__(self) -> Login:
        self._limits.login_began()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._limits.login_ended()
        if error is None:
            self._limits.login_succeeded(self._mark)
        elif isinstance(error, NotAuthenticated):
            self._limits.login_failed(self._client, self._client_id, self._mark)
