"""Codes of findings, each with its severity, its meaning, and what to do.

Operators and scripts rely on the codes: a code keeps its meaning and its severity. docs/doctor.md lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Severity(StrEnum):
    """ok: nothing was found. warning: the pool works, but not for long or not as intended. failure: something fails."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def exit_status(self) -> int:
        """0, 1 or 2."""
        return tuple(Severity).index(self)

    @classmethod
    def worst(cls, severities: Iterable[Severity]) -> Severity:
        """The worst of several; OK for none."""
        return max(severities, key=lambda each: each.exit_status, default=cls.OK)


@dataclass(frozen=True, slots=True)
class FindingKind:
    """A code. meaning: for the documents. action: what to do, unless a check knows better."""

    severity: Severity
    meaning: str
    action: str


def _warning(meaning: str, action: str) -> FindingKind:
    return FindingKind(Severity.WARNING, meaning, action)


def _failure(meaning: str, action: str) -> FindingKind:
    return FindingKind(Severity.FAILURE, meaning, action)


_RENEW: Final = "Renew the certificate; running workers load the new files by themselves."

CODES: Final[Mapping[str, FindingKind]] = MappingProxyType({
    # The diagnosis itself.
    "check.failed": _failure(
        "A check ended with an unexpected error; the others are not affected.",
        "Report the error to the pool's developers, with the log of this command.",
    ),
    "check.timed-out": _warning(
        "A check did not end in its time; what it found until then is shown.",
        "Run the command again; if it repeats, examine what the check calls, or leave network checks out (--offline).",
    ),
    # Configuration.
    "configuration.invalid": _failure(
        "A setting is unknown, invalid, or contradicts another one. The other checks use its default.",
        "Correct the setting; until then no server starts. `ccp config --explain` lists all settings.",
    ),
    "configuration.laboratory": _warning(
        "A setting that turns off a check, for laboratories, is in effect.",
        "Remove the setting in production.",
    ),
    "configuration.base-url-missing": _warning(
        "The pool listens beyond this machine and `base_url` is not set, so tokens are issued for the local address.",
        "Set base_url to the URL that partners call.",
    ),
    "configuration.base-url-http": _warning(
        "`base_url` is http, or not set, beyond this machine: tokens and contracts are readable on the network.",
        "Set tls_cert and tls_key, or let a proxy terminate TLS and set base_url to its https URL.",
    ),
    # Files.
    "file.missing": _failure(
        "A file that a setting names does not exist.", "Create the file, or correct the setting."
    ),
    "file.unreadable": _failure(
        "A file that a setting names cannot be read by this user.",
        "Give the pool's user the right to read the file; run this command as that user.",
    ),
    "file.readable-by-others": _failure(
        "A file with a key, a secret, or the database can be read by every user of the machine.",
        "Run chmod o= on the file, and replace what it contains if other users may have read it.",
    ),
    "file.writable-by-others": _failure(
        "A file or its folder can be changed by every user of the machine.",
        "Run chmod o-w on it.",
    ),
    "file.wrong-owner": _warning(
        "A file with a key, a secret, or the database belongs to neither root nor the user who runs this command.",
        "Run this command as the pool's user; if you did, let that user or root own the file (chown).",
    ),
    # TLS of the server and of the public URL.
    "tls.unusable": _failure(
        "`tls_cert` and `tls_key` cannot be used: unreadable, not PEM, or not of the same key.",
        "Write the certificate, then its issuers, into tls_cert, and the key of that certificate into tls_key.",
    ),
    "tls.expired": _failure("The TLS certificate has expired.", _RENEW),
    "tls.not-yet-valid": _failure(
        "The TLS certificate is not valid yet.",
        "Check the clock of this machine, or wait until the certificate is valid.",
    ),
    "tls.expires-soon": _warning("The TLS certificate expires within 30 days.", _RENEW),
    "tls.weak": _warning(
        "The key or the signature of the TLS certificate is weak (RSA below 2,048 bits, SHA-1, MD5).",
        "Request a certificate with a P-256 key, or RSA with 2,048 bits or more, signed with SHA-256.",
    ),
    "tls.chain-order": _warning(
        "A certificate in `tls_cert` is not the issuer of the one before it; some clients refuse such a chain.",
        "Order tls_cert: the server's certificate first, then each one's issuer, and nothing else.",
    ),
    "tls.chain-incomplete": _warning(
        "The last certificate of `tls_cert` was issued by a CA that is neither in the file nor in the system.",
        "Append the certificates of the issuing CAs to tls_cert; clients that do not have them refuse the connection.",
    ),
    "tls.wrong-name": _warning(
        "The TLS certificate is not for the host of `base_url`.",
        "Request a certificate with this name, or correct base_url; clients that connect directly refuse this one.",
    ),
    "tls.not-reloaded": _warning(
        "The running server presents another certificate than the one in `tls_cert`.",
        "Send SIGHUP to the server, or read in its log why the new files cannot be used.",
    ),
    "public-url.unreachable": _warning(
        "The host of `base_url` cannot be reached from this machine.",
        "Check the name, the proxy and the firewall; ignore this if this machine may not call its own public URL.",
    ),
    "public-url.tls": _warning(
        "The certificate of `base_url` is not accepted with the CAs of this machine.",
        "Correct the certificate, its chain or its names at the proxy; ignore this if partners have its private CA.",
    ),
    "public-url.expires-soon": _warning(
        "The certificate of `base_url` expires within 30 days.", "Renew the certificate at the proxy."
    ),
    # Database.
    "database.unreachable": _failure(
        "The database cannot be opened.",
        "Start the database, or correct the setting database; the message has the cause.",
    ),
    "database.schema": _failure(
        "The schema is missing or older than this release needs.", "Make a backup, then run `ccp db upgrade`."
    ),
    "database.schema-newer": _warning(
        "The schema is of a newer release. The pool runs on it, as during an upgrade.",
        "Upgrade this installation too, or restore the backup that was made before the upgrade.",
    ),
    "database.secrets-key-missing": _failure(
        "The secrets in the database are encrypted with a key that this process does not have.",
        "Set secrets_key_file to the file with the key; if it is lost, `ccp keys rotate-storage --discard-unreadable`.",
    ),
    "database.secret-unreadable": _failure(
        "A secret in the database cannot be decrypted: its row was damaged, or copied from another place.",
        "Store a new secret in its place; the message names it.",
    ),
    "database.encoding": _failure(
        "The encoding of the database is not UTF8.", "Create the database with encoding UTF8."
    ),
    "database.read-only": _failure(
        "The server accepts no writes: it is a standby, or its transactions are read-only by default.",
        "Name all hosts in the setting database, or the primary; promote the standby if the primary is lost.",
    ),
    "database.fsync-off": _failure(
        "fsync is off: a crash of the machine loses contracts that were acknowledged, or the whole database.",
        "Set fsync = on in postgresql.conf and reload the server.",
    ),
    "database.synchronous-commit-off": _warning(
        "synchronous_commit is off. The pool switches it on for its own connections; other programs are not protected.",
        "Set synchronous_commit = on, at least for the pool's database and user.",
    ),
    "database.no-synchronous-standby": _failure(
        "synchronous_standby_names is set, but no synchronous standby is connected, so every write waits.",
        "Start the standby, or remove it from synchronous_standby_names and reload the server.",
    ),
    "database.standby-lags": _warning(
        "A standby is behind by more than 30 seconds or 100 MB.",
        "Check network and disk of the standby; a switch to it now would lose or delay changes.",
    ),
    "database.connections": _warning(
        "The workers may open more connections than the server accepts.",
        "Lower database_connections or workers, raise max_connections, or put a pooler in front.",
    ),
    "database.network-file-system": _warning(
        "The SQLite database is on a network file system, where locks and shared memory do not work reliably.",
        "Move the file to a local disk, or use PostgreSQL.",
    ),
    # Clock and disk.
    "clock.differs-from-database": _failure(
        "The clock differs from the database server's by more than five minutes; the pool purges nothing.",
        "Synchronise both clocks (chrony, systemd-timesyncd), then restart the pool.",
    ),
    "clock.drifts-from-database": _warning(
        "The clock differs from the database server's by more than ten seconds.",
        "Synchronise both clocks (chrony, systemd-timesyncd).",
    ),
    "clock.differs-from-http": _warning(
        "The clock differs by more than a minute from the Date headers of most servers that were called.",
        "Synchronise the clock of this machine; certificates and tokens are judged by it.",
    ),
    "disk.full": _failure(
        "Less than 200 MB, or less than 1 % and 4 GB, are free where the pool writes.",
        "Free disk space now; writes fail when it is used up.",
    ),
    "disk.low": _warning(
        "Less than 1 GB, or less than 5 % and 20 GB, are free where the pool writes.", "Free or add disk space."
    ),
    # Trust.
    "anchors.none": _failure(
        "No certificate is trusted, so every message is refused.", "Add roots with `ccp trust add`."
    ),
    "anchors.no-v2g": _failure(
        "No V2G root is trusted, so every publication is refused.", "Add a root with `ccp trust add --role v2g`."
    ),
    "anchors.no-oem": _failure(
        "No OEM root is trusted, so every vehicle's request is refused.",
        "Add the manufacturers' roots with `ccp trust add --role oem`.",
    ),
    "anchors.expired": _warning(
        "A trusted certificate has expired; what it issued is refused.",
        "Add its successor, then remove it with `ccp trust remove`.",
    ),
    "anchors.not-yet-valid": _warning(
        "A trusted certificate is not valid yet.", "Check the clock of this machine; otherwise wait."
    ),
    "anchors.expires-soon": _warning(
        "A trusted certificate expires within 90 days.", "Ask its operator for the successor, and add it now."
    ),
    "anchors.unusable": _warning(
        "A trusted certificate can never be part of a valid chain: unreadable, weak or foreign algorithm, not a CA.",
        "Remove it with `ccp trust remove`, and ask its operator for a certificate of the ISO 15118 profile.",
    ),
    "parties.none": _warning(
        "There are no parties and no other issuer, so every request is refused.", "Add parties with `ccp party add`."
    ),
    # Other systems.
    "service.unusable": _failure(
        "An external service cannot be called with the settings or files that are configured.",
        "Correct the settings that the message names.",
    ),
    "service.failed": _failure(
        "An external service does not work: its name, connection, TLS, token or first call failed.",
        "Follow the sentence of the check; `ccp neighbour test` repeats it.",
    ),
    "revocation.host-unreachable": _warning(
        "An OCSP responder or CRL server that stored certificates name does not answer.",
        "Check the firewall and the name server; without evidence contracts become undeliverable.",
    ),
    "revocation.host-refused": _warning(
        "An OCSP responder or CRL server is at an address that is not public, or its name does not exist.",
        "If it is right, add its network to egress_allow_networks, or set crl_urls for the issuer.",
    ),
    "peer.unusable": _failure(
        "A peer cannot be called with what is registered for it.", "Correct it with `ccp peer edit`."
    ),
    "peer.unreachable": _warning(
        "A peer does not answer, or its TLS is not accepted.",
        "Ask the peer's operator, or disable it with `ccp peer disable`; vehicles wait for it otherwise.",
    ),
    "peer.refuses-credentials": _failure(
        "A peer does not accept our credentials, or does not permit vehicles' requests.",
        "Ask the peer's operator for new credentials, and store them with `ccp peer rotate-secret`.",
    ),
    "peer.unexpected-answer": _warning(
        "A peer does not answer as a pool does.",
        "Check its URL and dialect with `ccp peer show`, and ask its operator.",
    ),
    "webhook.dead-events": _warning(
        "Events to a webhook were given up.",
        "Ask the partner to repair its webhook, then run `ccp events replay --endpoint ID`.",
    ),
    "webhook.fails": _warning(
        "A webhook failed at its last attempt; its events wait.",
        "Tell the partner the reason; the pool repeats by itself until event_max_age.",
    ),
    "webhook.backlog": _warning(
        "Events to a webhook have waited for more than an hour without an attempt.",
        "Check that event_dispatch is on, or that `ccp events dispatch` runs.",
    ),
    "audit-stream.unreachable": _warning(
        "The receiver of the audit trail's stream cannot be reached or written. Rows wait in the database.",
        "Correct the settings audit_stream_…, the firewall or the receiver; nothing is lost meanwhile.",
    ),
    "openid.fails": _warning(
        "The OpenID provider of the console does not answer as its issuer, so log-ins with it fail.",
        "Correct console_oidc, its ca, or the firewall; log in with a client secret meanwhile.",
    ),
    # The running server.
    "server.not-ready": _failure(
        "The running server reports that it is not ready.", "Follow the reasons; the log has more."
    ),
    "proxies.untrusted": _warning(
        "Requests with X-Forwarded-For arrive from an address that is not in `trusted_proxies`.",
        "If the address is your proxy's (log event \"X-Forwarded-For is not believed\"), add it to trusted_proxies.",
    ),
    "proxies.no-address": _warning(
        "A trusted proxy sends requests without X-Forwarded-For, so limits by address do not hold.",
        "Let the proxy set X-Forwarded-For; the log event \"no client address from trusted proxy\" names it.",
    ),
    "memory.limit-near": _warning(
        "The pool uses more than 85 % of its memory limit.",
        "Raise the limit (MemoryMax of the unit, memory of the container) or lower workers; at it, workers are killed.",
    ),
    "memory.limit-low": _warning(
        "The memory limit is below what the workers need: 200 MB for each, 100 MB in addition.",
        "Raise the limit (MemoryMax of the unit, memory of the container) or lower workers.",
    ),
})  # fmt: skip
"""Every code that a check may report."""
