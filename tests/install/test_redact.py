"""No credential of a URL survives redaction, however odd the password is."""

from __future__ import annotations

import random
import string
import urllib.parse

import pytest

from vqa_repro.install.redact import redact, shown

PASSWORDS = [
    "s3cret-plain",
    "s3cr/et/with/slashes",
    "s3cr@et@at",
    "s3cr:et:colon",
    "s3cr#et",
    "s3cr?et=1",
    "s3cr%2Fet%40",
    "s3cr%20et",
    "s3cr'et\"quote",
    "s3cr://et",
    "s3cr,et;x",
    "pa/ss3cr3t",
    "8080/s3cret",
    "s3cr\\et",
    "pässw0rd-s3cret",
    "$s3cr&et!(x)*",
    "[s3cret]",
]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_does_not_survive(password: str) -> None:
    url = f"https://corp:{password}@packages.example/simple/"
    for text in (
        url,
        f"error: {url}: no answer",
        f"Looking in indexes: https://a.example/x, {url}, http://me:{password}@b.example/",
        f'index = "{url}"',
        f"({url}) http://other.example:8080/path",
    ):
        clean = redact(text, {})
        assert password not in clean and "s3cr" not in clean
        assert "***" in clean
    assert redact(url, {}) == "https://***@packages.example/simple/"


def test_text_without_credentials_is_unchanged() -> None:
    for text in (
        "https://a.example/simple/ answers",
        "http://127.0.0.1:8888/lab?token=abc",
        "yes (http://host:80), http://[::1]:8080/x and http://host:80: refused",
        "scp weights.pth host: then user@host logs in",
        "http://",
        "12:30:05 no URL here",
    ):
        assert redact(text, {}) == text


@pytest.mark.parametrize("password", [*PASSWORDS, "s3cr et with spaces", "12 s3cret"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("PIP_INDEX_URL", "https://corp:{}@packages.example/simple/"),
        ("https_proxy", "corp:{}@proxy.example:3128"),
        ("UV_INDEX", "internal=https://corp:{}@packages.example/simple/"),
    ],
)
def test_passwords_in_the_environment_are_known(password: str, name: str, form: str) -> None:
    environ = {name: form.format(password)}
    decoded = urllib.parse.unquote(password)
    for text in (
        environ[name],
        f"cannot reach {environ[name]}",
        f"user corp, password {password}",
        f"decoded: {decoded}",
        f"encoded: {urllib.parse.quote(decoded, safe='')}",
    ):
        clean = redact(text, environ)
        assert password not in clean and decoded not in clean and "s3cr" not in clean


@pytest.mark.parametrize("cut", [*"/#?:@ ", "%2F", "\\"])
def test_what_a_program_takes_for_host_or_port_is_known(cut: str) -> None:
    """urllib shows the port that is no number, and all programs the host that they cannot find."""
    environ = {"PIP_INDEX_URL": f"http://me:a@s3cret{cut}word@packages.example/simple"}
    for text in ("no port: 's3cret'", "s3cret: Name or service not known", repr(environ)):
        assert "s3cret" not in redact(text, environ)


def test_lists_of_urls_in_one_variable() -> None:
    environ = {"PIP_EXTRA_INDEX_URL": "https://a:first-s3cret@a.example/ https://b:2nd-s3cret@b/"}
    clean = redact("first-s3cret 2nd-s3cret " + environ["PIP_EXTRA_INDEX_URL"], environ)
    assert "s3cret" not in clean


def test_random_passwords() -> None:
    """Any printable password: unknown ones without a space, known ones with spaces too."""
    chance = random.Random(0)
    letters = string.ascii_letters + string.digits + string.punctuation + "äß漢"
    for _ in range(3000):
        password = "".join(chance.choices(letters, k=chance.randint(6, 24)))
        url = f"http://{chance.choice(['', 'me', 'a.b'])}:{password}@host.example/simple"
        before, after = chance.choice([("", ""), ("x ", " y"), ("'", "'"), ("(", ")"), (",", ",")])
        clean = redact(f"{before}{url}{after} and http://z:{password}@q", {})
        assert password not in clean, (password, clean)
        spaced = f"{password[:5]} {password[5:]}"
        environ = {"HTTPS_PROXY": f"http://me:{spaced}@proxy:1"}
        clean = redact(f"{before}{environ['HTTPS_PROXY']}{after}; {spaced}", environ)
        assert spaced not in clean, (spaced, clean)


def test_an_address_as_shown() -> None:
    assert shown("https://u:p/s@h:d@host/x?token=t#f") == "https://host/x"
    assert shown("http://a\r\nb/") == "http://a??b/"
    assert shown("host") == "host"
