"""Rate limits: requests by address and by party, pings, requests without a valid token, failed logins."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Final

from ccp.errors import NotAuthenticated, TooManyRequests, Unavailable
from ccp.server.access.client_address import RemoteAddress, TrustedProxies
from ccp.server.access.token_bucket import Rate, SharedTokenBucket
from ccp.server.metrics import LimitCounter
from ccp.server.settings import Settings

# Logins that may wait for their secret check in one worker. With two checks at a time of some 20 ms each, the last one
# waits a third of a second.
_MAX_WAITING_LOGINS: Final = 32
_VERIFIED_LIFETIME: Final = 7 * 86_400  # Seconds; each login renews it. Parties log in once per token lifetime.


class RateLimits:
    """The rate limits of a pool. A check raises TooManyRequests when its limit is exceeded."""

    def __init__(self, config: Settings | None, limited: LimitCounter = lambda limit: None) -> None:
        """config: None for no limits. limited: called with a limit's name for each request that it refuses.

        Raises ConfigurationError when the rate limit file cannot be used.
        """
        self._limited = limited
        self._address: Rate | None = None
        self._party: Rate | None = None
        self._failures: Rate | None = None
        self._login: Rate | None = None
        self._login_more: Rate | None = None
        self._ping: Rate | None = None
        self._try_it: Rate | None = None
        self._logins = 0
        if config is None:
            self.proxies, self._bucket = TrustedProxies(()), SharedTokenBucket.private()
            return
        self.proxies = TrustedProxies(config.trusted_proxies)
        file = config.rate_limit_file
        self._bucket = SharedTokenBucket.shared(file) if file else SharedTokenBucket.private()
        self.configure(config)

    def configure(self, config: Settings) -> None:
        """Use the rates of the settings from now on. What was counted before stays counted."""
        self._address = Rate.of(config.rate_limit_per_address, 2 * config.rate_limit_per_address)
        self._party = Rate.of(config.rate_limit_per_party, 2 * config.rate_limit_per_party)
        self._failures = Rate.of(config.rate_limit_unauthenticated, 20 * config.rate_limit_unauthenticated)
        self._login = Rate.of(config.login_failures_per_minute / 60, config.login_failures_per_minute)
        self._login_more = Rate.of(config.login_failures_per_minute / 12, 5 * config.login_failures_per_minute)
        self._ping = Rate.of(config.event_pings_per_minute / 60, config.event_pings_per_minute)
        self._try_it = Rate.of(config.try_it_per_minute / 60, config.try_it_per_minute)

    def check_address(self, client: RemoteAddress) -> None:
        """Count a request from an address, before any part of it is processed. Raises TooManyRequests."""
        if self._address is not None and client.rate_limit_key is not None:
            wait = self._bucket.acquire(b"a" + client.rate_limit_key, self._address)
            self._refuse("address", wait, "Too many requests from this address.")

    def check_party(self, client_id: str) -> None:
        """Count a request of an authenticated caller. Raises TooManyRequests."""
        if self._party is not None:
            wait = self._bucket.acquire(b"p" + client_id.encode(), self._party)
            self._refuse("party", wait, "Too many requests of this party.")

    def check_ping(self, client_id: str) -> None:
        """Count a test event that a party sends to a webhook. Raises TooManyRequests."""
        if self._ping is not None:
            wait = self._bucket.acquire(b"w" + client_id.encode(), self._ping)
            self._refuse("ping", wait, "Too many pings of this party.")

    def check_try_it(self, client: RemoteAddress) -> None:
        """Count a message on the public page that explains messages. Raises TooManyRequests."""
        if self._try_it is not None:
            # Clients whose address is not known share one limit: the page is open to all.
            wait = self._bucket.acquire(b"t" + (client.rate_limit_key or b""), self._try_it)
            self._refuse("try_it", wait, "Too many messages from this address.")

    def check_unauthenticated(self, client: RemoteAddress) -> None:
        """Refuse a request whose token is not verified yet, from an address with too many failures.

        Raises TooManyRequests.
        """
        if self._failures is not None and client.rate_limit_key is not None:
            wait = self._bucket.peek(b"f" + client.rate_limit_key, self._failures)
            self._refuse("failures", wait, "Too many requests without a valid token from this address.")

    def record_auth_failure(self, client: RemoteAddress) -> None:
        """Count a request whose token was not valid."""
        if self._failures is not None and client.rate_limit_key is not None:
            self._bucket.debit(b"f" + client.rate_limit_key, self._failures)

    def login_attempt(
        self, client: RemoteAddress, client_id: str, secret: str, *, recognised: bool = False
    ) -> LoginAttempt:
        """A context manager in which the secret of a token request is checked.

        Failures are counted for three keys:

        - client id and address together;
        - the address, so that it cannot try a few secrets for each of many client ids;
        - the client id, because the address can be forged where a proxy passes on what its clients send.

        The last two allow five times as many, so that one address cannot lock a party out. Where the address is not
        known, failures count for the client id only. A failure is counted when it has happened, so more attempts than
        the limit may be in progress at once; the excess is debited, so the rate holds.

        recognised: this process has verified the secret before (`ccp.server.access.secret_cache`). Such a secret, or
        one that another process of the machine has verified, is not subject to the failures of others.
        Raises TooManyRequests, and Unavailable when too many logins are waiting.
        """
        text = f"{len(client_id)}:{client_id}{secret}".encode("utf-8", "replace")
        flag = b"k" + hashlib.blake2b(text, digest_size=32).digest()
        if not recognised and not self._bucket.has_flag(flag):
            rates = self._login_rates(client, client_id)
            wait = max((self._bucket.peek(key, rate) for key, rate in rates), default=0.0)
            self._refuse("login", wait, "Too many failed attempts to get a token; wait before the next one.")
            if self._logins >= _MAX_WAITING_LOGINS:
                self._limited("logins_waiting")
                raise Unavailable("Too many clients request a token now.")
        return LoginAttempt(self, client, client_id, flag)

    def login_began(self) -> None:
        """Count a login in progress."""
        self._logins += 1

    def login_ended(self) -> None:
        """Uncount a login in progress."""
        self._logins -= 1

    def login_succeeded(self, flag: bytes) -> None:
        """Flag the client id and secret as verified, for all processes of the machine."""
        self._bucket.set_flag(flag, _VERIFIED_LIFETIME)

    def login_failed(self, client: RemoteAddress, client_id: str, flag: bytes) -> None:
        """Count a failed login, and clear its flag: the secret was replaced, expired, or its party disabled."""
        self._bucket.clear_flag(flag)
        for key, rate in self._login_rates(client, client_id):
            self._bucket.debit(key, rate)

    def _refuse(self, limit: str, wait: float, sentence: str) -> None:
        """Raises TooManyRequests unless `wait`, the seconds until the limit admits a call, is zero."""
        if wait > 0:
            self._limited(limit)
            raise TooManyRequests(sentence, retry_after=math.ceil(wait))

    def _login_rates(self, client: RemoteAddress, client_id: str) -> Iterator[tuple[bytes, Rate]]:
        if self._login is None or self._login_more is None:
            return
        client_key = client_id.encode("utf-8", "replace")
        if client.rate_limit_key is None:
            yield b"i" + client_key, self._login
            return
        yield b"l" + client.rate_limit_key + b"/" + client_key, self._login
        yield b"m" + client.rate_limit_key, self._login_more
        yield b"n" + client_key, self._login_more


class LoginAttempt:
    """Context manager for the check of a secret; NotAuthenticated from the block counts as a failed login."""

    def __init__(self, limits: RateLimits, client: RemoteAddress, client_id: str, flag: bytes) -> None:
        self._limits, self._client, self._client_id, self._flag = limits, client, client_id, flag

    def __enter__(self) -> LoginAttempt:
        self._limits.login_began()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._limits.login_ended()
        if error is None:
            self._limits.login_succeeded(self._flag)
        elif isinstance(error, NotAuthenticated):
            self._limits.login_failed(self._client, self._client_id, self._flag)
