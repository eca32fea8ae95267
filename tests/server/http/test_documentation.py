"""The documentation site under /docs: its files, its headers, and what a directory must have."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccp.errors import ConfigurationError
from ccp.server.http import documentation_site as documentation
from ccp.testing.pki import PKI
from tests.world import Pool, start

PAGE = '<html><script>one()</script><p>Página</p><script src="a.js"></script><script>two()</script></html>'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    for name, text in {
        "index.html": PAGE,
        "reference/api/index.html": "<p>api</p>",
        "404.html": '<link href="/assets/a.css"><a href="/">Front</a><a href="//other.example/">x</a><p>Not found</p>',
        "a.js": "one = two = () => 0",
        "assets/a.css": "p { color: teal }",
        "images/a.svg": "<svg/>",
    }.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (site.parent / "secret.txt").write_text("secret")
    return site


@pytest.fixture(scope="module")
def documented(pkis: dict[str, PKI], directory: Path) -> Iterator[Pool]:
    with start(pkis, documentation_directory=directory) as pool:
        yield pool


def test_documentation_is_served_without_a_token(documented: Pool) -> None:
    front = documented.http.get("/docs/")
    assert (front.status_code, front.text) == (200, PAGE)
    assert front.headers["content-type"] == "text/html; charset=utf-8"
    assert documented.http.get("/docs/reference/api/").text == "<p>api</p>"
    for name, kind in (("a.js", "text/javascript; charset=utf-8"), ("assets/a.css", "text/css; charset=utf-8")):
        assert documented.http.get(f"/docs/{name}").headers["content-type"] == kind
    assert documented.http.get("/docs/images/a.svg").headers["content-type"] == "image/svg+xml"
    assert documented.http.head("/docs/a.js").status_code == 200
    moved = documented.http.get("/docs", follow_redirects=False)
    assert (moved.status_code, moved.headers["location"]) == (308, "/docs/")


def test_documentation_policy_permits_the_scripts_of_the_page_alone(documented: Pool) -> None:
    headers = documented.http.get("/docs/").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    digests = [b64decode(each) for each in re.findall(r"'sha256-([^']+)'", policy["script-src"])]
    assert digests == [hashlib.sha256(script).digest() for script in (b"one()", b"two()")]
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert policy["connect-src"] == policy["worker-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert "'sha256-" not in documented.http.get("/docs/a.js").headers["content-security-policy"]


def test_documentation_is_compressed_and_not_sent_again(documented: Pool) -> None:
    plain = documented.http.get("/docs/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    packed = documented.http.get("/docs/", headers={"Accept-Encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.text) == ("gzip", plain.text)
    tag = plain.headers["etag"]
    assert tag == packed.headers["etag"]
    assert tag.startswith('W/"'), "a strong tag would differ between codings (RFC 9110 clause 8.8.3.3)"
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}'):
        again = documented.http.get("/docs/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
    assert documented.http.get("/docs/", headers={"If-None-Match": 'W/"other"'}).status_code == 200
    assert again.headers["content-security-policy"] == plain.headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["nothing.html", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "reference", "/etc/passwd", "%00"]
)
def test_documentation_has_no_other_files(documented: Pool, path: str) -> None:
    answer = documented.http.get(f"/docs/{path}")
    assert answer.status_code == 404
    assert "secret" not in answer.text.replace("secret.txt", "")


def test_documentation_shows_its_own_page_for_an_unknown_path(documented: Pool) -> None:
    answer = documented.http.get("/docs/reference/nothing.html", headers={"If-None-Match": "*"})
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "path-not-found")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert re.findall(r'href="([^"]+)"', answer.text) == ["/docs/assets/a.css", "/docs/", "//other.example/"]


def test_documentation_is_not_there_without_the_setting(pool: Pool) -> None:
    assert pool.http.get("/docs/").status_code == 404
    assert pool.http.get("/docs").status_code == 404


def test_documentation_directory_must_have_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="run `ccp docs build` first"):
        documentation.read_site(tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no index\.html"):
        documentation.read_site(tmp_path / "missing")
    (tmp_path / "index.html").write_text("x" * 100)
    assert set(documentation.read_site(tmp_path)) == {"index.html"}
    monkeypatch.setattr(documentation, "MAX_SITE", 99)
    with pytest.raises(ConfigurationError, match="has more than 99 bytes"):
        documentation.read_site(tmp_path)
