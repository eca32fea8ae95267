"""Mapping of claims to a party, and validation of issuer settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ccp.errors import ConfigurationError
from ccp.server import settings
from ccp.server.access.jose import InvalidClaim, UnknownCaller
from ccp.server.access.trusted_issuers import TrustedIssuers, check_key_files, find_claim, party_from_claims
from ccp.server.domain.parties import CLIENT_ID_PATTERN, PartyRole
from ccp.server.external.outbound import OutboundClient
from ccp.server.settings.issuers import IssuerSettings
from tests.cli.run import ccp_error
from tests.server.access.tokens.issuer import key, key_set

CLAIMS = {
    "sub": "service-7",
    "azp": "backend",
    "resource_access": {"ccp": {"roles": ["pnc-mo", "pnc-maker", "unknown"]}},
    "https://example.com/ids": {"providers": ["DE-EXA", "nlexb"], "wmi": "WEX WXB"},
    "operators": ["DE*EXC"],
}
ROLES = {"pnc-mo": "emsp", "pnc-maker": "oem", "pnc-admin": "admin"}


def entry(**options: Any) -> IssuerSettings:
    own: dict[str, Any] = {
        "issuer": "https://idp.example.com/realms/pnc",
        "jwks_url": "https://idp.example.com/keys",
        "algorithms": ["ES256"],
        "role_claim": "resource_access.ccp.roles",
        "role_map": {"pnc-mo": "emsp", "pnc-maker": "oem"},
        "provider_claim": "https://example.com/ids.providers",
        "wmi_claim": "https://example.com/ids.wmi",
        "operator_claim": "operators",
    }
    return IssuerSettings(**{**own, **options})


def test_claims_become_a_party_with_the_pools_own_ids() -> None:
    party = party_from_claims(entry(), CLAIMS)
    assert party.client_id == party.name == "https://idp.example.com/realms/pnc:service-7"
    assert party.roles == {PartyRole.EMSP, PartyRole.OEM}
    assert party.provider_ids == {"DEEXA", "NLEXB"}
    assert party.wmis == {"WEX", "WXB"}
    assert party.operator_ids == {"DEEXC"}
    assert not party.all_providers


def test_caller_of_an_issuer_never_has_the_name_of_a_registered_party() -> None:
    import re

    registered = re.compile(CLIENT_ID_PATTERN)
    for prefix in (None, "partner", "x"):
        for name in ("emsp", "cpo", "-", "emsp:emsp"):
            client_id = party_from_claims(entry(prefix=prefix, role_claim=None, roles=["cpo"]), {"sub": name}).client_id
            assert not registered.fullmatch(client_id)
    assert party_from_claims(entry(prefix="partner"), CLAIMS).client_id == "partner:service-7"
    assert party_from_claims(entry(issuer="urn:example:idp"), CLAIMS).client_id == "urn:example:idp:service-7"


def test_callers_name_may_be_another_claim() -> None:
    assert (
        party_from_claims(entry(client_claim="azp"), CLAIMS).client_id == "https://idp.example.com/realms/pnc:backend"
    )


def test_roles_may_be_fixed_and_claims_add_to_them() -> None:
    assert party_from_claims(entry(roles=["cpo"], role_claim=None), CLAIMS).roles == {PartyRole.CPO}
    assert party_from_claims(entry(roles=["cpo"]), CLAIMS).roles == {PartyRole.CPO, PartyRole.EMSP, PartyRole.OEM}


def test_role_claim_without_map_uses_the_pools_role_names() -> None:
    plain = entry(role_map={}, role_claim="roles")
    assert party_from_claims(plain, {**CLAIMS, "roles": ["emsp", "CPO", "oem ", "admin", "x"]}).roles == {
        PartyRole.EMSP
    }
    assert party_from_claims(plain, {**CLAIMS, "roles": "emsp cpo"}).roles == {PartyRole.EMSP, PartyRole.CPO}
    assert party_from_claims(plain, CLAIMS).roles == frozenset()


def test_issuer_vouches_for_no_admin_unless_the_operator_says_so() -> None:
    claims = {"sub": "a", "roles": ["admin", "cpo"]}
    assert party_from_claims(entry(role_map={}, role_claim="roles"), claims).roles == {PartyRole.CPO}
    listed = entry(role_map={}, role_claim="roles", allowed_roles=["admin", "cpo"])
    assert party_from_claims(listed, claims).roles == {PartyRole.ADMIN, PartyRole.CPO}


def test_claims_beyond_an_issuer_s_limits_are_left_out() -> None:
    limited = entry(
        allowed_roles=["emsp", "oem"],
        allowed_provider_ids=["de-exa", "FRXYZ"],
        allowed_wmis=["WXB"],
        allowed_operator_ids=[],
    )
    party = party_from_claims(limited, CLAIMS)
    assert (party.provider_ids, party.wmis, party.operator_ids) == ({"DEEXA"}, {"WXB"}, frozenset())
    assert party_from_claims(entry(role_map={"pnc-mo": "emsp"}, allowed_roles=["emsp"]), CLAIMS).roles == {
        PartyRole.EMSP
    }


def test_all_providers_of_an_issuer_needs_setting_and_cps_role() -> None:
    anyone = entry(all_providers=True, role_claim="roles", role_map={})
    assert party_from_claims(anyone, {"sub": "a", "roles": ["cps"]}).all_providers
    assert not party_from_claims(anyone, {"sub": "a", "roles": ["emsp"]}).all_providers
    assert not party_from_claims(entry(role_claim="roles", role_map={}), {"sub": "a", "roles": ["cps"]}).all_providers
    no_cps = entry(all_providers=True, role_claim="roles", role_map={}, allowed_roles=["emsp"])
    assert not party_from_claims(no_cps, {"sub": "a", "roles": ["cps"]}).all_providers


def test_caller_that_the_operator_denies_is_unknown() -> None:
    with pytest.raises(UnknownCaller):
        party_from_claims(entry(denied_clients=["service-7"]), CLAIMS)
    party_from_claims(entry(denied_clients=["service-8"]), CLAIMS)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sub", "service-7"),
        ("resource_access.ccp.roles", CLAIMS["resource_access"]["ccp"]["roles"]),  # type: ignore[index]
        ("https://example.com/ids", CLAIMS["https://example.com/ids"]),
        ("https://example.com/ids.wmi", "WEX WXB"),
        ("resource_access.ccp.none", None),
        ("resource_access..roles", None),
        ("sub.sub", None),
        ("operators.0", None),
        ("", None),
        (".", None),
    ],
)
def test_path_goes_through_objects_and_knows_names_with_dots(path: str, value: Any) -> None:
    assert find_claim(CLAIMS, path) == value


@pytest.mark.parametrize("value", [5, True, {"DEEXA": 1}, ["DEEXA", 5], ["DEEXA", None], ["DEEX"], ["ſEEXA"], "DEEXA,"])
def test_claim_of_ids_that_is_malformed_refuses_the_token(value: Any) -> None:
    with pytest.raises(InvalidClaim):
        party_from_claims(entry(provider_claim="providers"), {**CLAIMS, "providers": value})


def test_claim_of_ids_that_is_missing_or_empty_gives_none() -> None:
    for claims in ({}, {"providers": None}, {"providers": []}, {"providers": " "}):
        assert party_from_claims(entry(provider_claim="providers"), {**CLAIMS, **claims}).provider_ids == frozenset()


# --- Settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"algorithms": ["none"]}, "none cannot be allowed"),
        ({"algorithms": ["HS256"]}, "HS256 cannot be allowed"),
        ({"algorithms": ["ES256", "HS512"]}, "HS512 cannot be allowed"),
        ({"algorithms": ["ES256K"]}, "ES256K cannot be allowed"),
        ({"algorithms": ["es256"]}, "es256 cannot be allowed"),
        ({"algorithms": []}, "at least 1 item"),
        ({"jwks_url": None}, "one of jwks_url and jwks_file"),
        ({"jwks_file": "keys.json"}, "one of jwks_url and jwks_file"),
        ({"jwks_url": "http://idp.example.com/keys"}, "https address"),
        ({"jwks_url": "file:///etc/keys"}, "https address"),
        ({"jwks_url": "file:///etc/keys", "allow_http": True}, "https address"),
        ({"role_claim": None}, "roles or role_claim is needed"),
        ({"roles": ["admin"]}, "admin has to be in allowed_roles"),
        ({"role_map": ROLES}, "admin has to be in allowed_roles"),
        ({"roles": ["cpo"], "allowed_roles": ["emsp", "oem"]}, "cpo has to be in allowed_roles"),
        ({"roles": ["king"]}, "roles"),
        ({"all_providers": True, "allowed_provider_ids": ["DEEXA"]}, "contradict"),
        ({"allowed_provider_ids": ["DEEX"]}, "providerId"),
        ({"allowed_wmis": ["WE"]}, "wmi"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a:b"}, "prefix"),
        ({"prefix": "cli"}, "prefix"),
        ({"issuer": ""}, "issuer"),
        ({"secret": "x"}, "secret"),
    ],
)
def test_issuer_that_would_be_unsafe_or_useless_is_refused_at_the_start(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        entry(**options)


def test_algorithms_have_to_be_named() -> None:
    with pytest.raises(ValidationError, match="algorithms"):
        IssuerSettings(issuer="https://a.example.com", jwks_url="https://a.example.com/keys", roles=("cpo",))  # type: ignore[call-arg,arg-type]


FILE = """
base_url = "https://ccp.example.com"

[[issuers]]
issuer = "{issuer}"
jwks_file = "keys.json"
algorithms = ["ES256", "RS256"]
roles = ["cpo"]
operator_claim = "operator.ids"

[[issuers]]
issuer = "https://b.example.com"
jwks_url = "https://b.example.com/keys"
algorithms = ["{algorithm}"]
role_claim = "roles"
role_map = {{ "pnc-mo" = "emsp" }}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("CCP_")]:
        monkeypatch.delenv(name)
    return tmp_path / "ccp.toml"


def written(file: Path, issuer: str = "https://a.example.com", algorithm: str = "EdDSA") -> Path:
    file.write_text(FILE.format(issuer=issuer, algorithm=algorithm))
    return file


def test_issuers_are_tables_of_the_file_and_their_files_lie_beside_it(file: Path) -> None:
    first, second = settings.load(written(file)).issuers
    assert first.jwks_file == file.parent / "keys.json"
    assert first.algorithms == ("ES256", "RS256")
    assert second.role_map == {"pnc-mo": PartyRole.EMSP}
    with pytest.raises(ConfigurationError, match=r"keys.json cannot be used"):
        check_key_files([first, second])
    (file.parent / "keys.json").write_bytes(key_set(key()))
    check_key_files([first, second])
    assert len(list(TrustedIssuers([first, second], OutboundClient(), audience="x"))) == 2


@pytest.mark.parametrize("issuer", ["https://b.example.com", "https://ccp.example.com"])
def test_issuers_of_one_name_and_of_the_pools_own_are_refused(file: Path, issuer: str) -> None:
    with pytest.raises(ConfigurationError, match="a unique issuer"):
        settings.load(written(file, issuer))


def test_serve_refuses_an_issuer_with_unsafe_algorithms(file: Path) -> None:
    sentence = ccp_error("serve", "--config", written(file, algorithm="none"))
    assert sentence.startswith("issuers.1.algorithms: none cannot be allowed, only ES256")


def test_issuer_without_its_file_of_keys_keeps_serve_from_starting_in_one_sentence(file: Path) -> None:
    sentence = ccp_error("serve", "--config", written(file), "--database", f"sqlite:///{file.parent / 'ccp.db'}")
    assert sentence.startswith("The keys of https://a.example.com in ")


def test_issuer_keys_age_is_no_matter_of_minutes() -> None:
    assert settings.load().token_key_lifetime == 30 * 86_400
    assert settings.load(token_key_lifetime=0).token_key_lifetime == 0
    with pytest.raises(ConfigurationError, match=r"token_key_lifetime: .*0 or at least 3600"):
        settings.load(token_key_lifetime=60)


def test_issuers_may_come_from_the_environment_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCP_ISSUERS", entry().model_dump_json().join("[]"))
    assert settings.load().issuers == (entry(),)


def test_binding_tokens_needs_a_way_to_know_the_certificate() -> None:
    with pytest.raises(ConfigurationError, match="certificate_bound_tokens needs"):
        settings.load(certificate_bound_tokens=True)
    with pytest.raises(ConfigurationError, match="tls_client_ca needs tls_cert"):
        settings.load(tls_client_ca="ca.pem")
