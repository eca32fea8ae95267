"""Confusable party names: refused by the command line and the admin API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccp.errors import FieldError
from ccp.server.domain.parties import PartyRole, parse_name
from ccp.server.http.routes.admin import BASE
from ccp.testing.pki import PKI
from tests.cli.run import ccp_error, ccp_ok
from tests.server.storage.made import new_database, sql
from tests.world import Pool, party, start

CYRILLIC_A, GREEK_O, CHEROKEE_A, LISU_A = "\u0410", "\u039f", "\u13aa", "\ua4ee"
CONFUSING = {
    f"{CYRILLIC_A}cme Charging": "mixes letters of several scripts (Cyrillic, Latin)",
    f"Acme {GREEK_O}pen": "mixes letters of several scripts (Greek, Latin)",
    f"{CHEROKEE_A}cme": "mixes letters of several scripts (Cherokee, Latin)",
    f"{LISU_A}cme": "mixes letters of several scripts (Latin, Lisu)",
    "Acme \u0645": "mixes letters of several scripts (Arabic, Latin)",
    "Ltd \u0420\u043e\u0441": "mixes letters of several scripts (Cyrillic, Latin)",
    "Acme \u09ea": "mixes letters of several scripts (Bengali, Latin)",
    "Acme 4\u09ea": "mixes digits of several scripts",
    "Ac\ufe0fme": "has a character that is not visible (U+FE0F)",
    "Ac\u034fme": "has a character that is not visible (U+034F)",
    "Acme\u3164": "has a character that is not visible (U+3164)",
    "\u2800Acme": "has a character that is not visible (U+2800)",
    "Acme\U000e0100": "has a character that is not visible (U+E0100)",
}
ALLOWED = [
    "Škoda Ørsted Straße", "Ελλάς Ενέργεια", "ООО Энергия 24", "東京チャージ Mobility", "한국 EV 충전", "北京 ㄅ EV",
    "חשמל", "बिजली ७",
    "كهرباء ٣", "O’Neill & Söhne µ-Grid™", "\uff25\uff36 Charge", "テスト々ー", "Ħal Għaxaq",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({"iso2": pkis["iso2"]}, [party("admin", PartyRole.ADMIN)]) as running:
        yield running


@pytest.mark.parametrize(("name", "why"), CONFUSING.items(), ids=map(ascii, CONFUSING))
def test_party_name_that_is_confusable_is_refused(place: Pool, name: str, why: str) -> None:
    sentence = f"name : {why}, so it could be taken for another one"
    headers = {"Authorization": f"Bearer {place.token('admin')}"}
    new = {"name": name, "client_id": "confusing", "roles": ["cpo"]}
    for answer in (
        place.http.post(f"{BASE}/parties", json=new, headers=headers),
        place.http.patch(f"{BASE}/parties/cpo", json={"name": name}, headers=headers),
    ):
        assert answer.status_code == 400
        assert answer.json()["errorMessages"] == [sentence]
    assert place.sql("select count(*) from party where name = ?", name) == [(0,)]


@pytest.mark.parametrize("character", ["\u202e", "\u200b", "\u2066", "\u00ad", "\x1b", "\x9b", "\u2028"])
def test_party_name_with_a_control_character_is_refused(character: str) -> None:
    with pytest.raises(FieldError, match="printable characters"):
        parse_name(f"Ac{character}me")


@pytest.mark.parametrize("name", ALLOWED)
def test_party_name_of_compatible_scripts_is_accepted(name: str) -> None:
    assert parse_name(name)


def test_party_name_of_an_earlier_release_can_be_changed(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    config = ("--config", tmp_path / "ccp.toml")
    (tmp_path / "ccp.toml").write_text(f'database = "{url}"\n')
    assert "mixes letters of several scripts" in ccp_error("party", "add", f"{CYRILLIC_A}cme", "--role", "cpo", *config)
    ccp_ok("party", "add", "Acme", "--role", "cpo", *config)
    sql(url, "update party set name = ?", f"{CYRILLIC_A}cme")
    assert json.loads(ccp_ok("party", "list", "--json", *config).out)[0]["name"] == f"{CYRILLIC_A}cme"
    ccp_ok("party", "edit", "acme", "--add-operator-id", "DEEXC", *config)
    ccp_ok("party", "disable", f"{CYRILLIC_A}cme", *config)
    ccp_ok("party", "edit", "acme", "--name", "Acme", *config)
    assert json.loads(ccp_ok("party", "show", "acme", "--json", *config).out)["name"] == "Acme"
