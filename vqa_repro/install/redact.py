"""Remove credentials from text before it is printed or logged.

A password in a URL may hold "/", "@", ":", "#" or "?", so a URL in free text cannot be parsed for
certain. The rule errs on the safe side: everything from "://" to the last "@" of the word goes.
Credentials in the environment (proxies, package indexes) are known, and removed wherever they
stand, also when a message shows them without their URL, decoded, or cut at a space.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path

HIDDEN = "***"
MIN_SECRET = 4  # characters; anything shorter would be found in ordinary words
URL_VARIABLE = re.compile("proxy|index|links|mirror|url", re.IGNORECASE)


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Return ``text`` without the credentials of any URL in it, or in the environment."""
    for secret in known_secrets(os.environ if environ is None else environ):
        text = text.replace(secret, HIDDEN)
    # The user and password of a URL, up to the last "@" of the word.
    text = re.sub(r"(://)\S*@", rf"\1{HIDDEN}@", text)
    # A password with a space: what follows "user:" is no port, so the "@" comes in a later word.
    text = re.sub(r"(://)[^\s/:@\[]*:(?!\d+(?:[\s/?#,;.)'\"]|$))[^@\n]*@", rf"\1{HIDDEN}@", text)
    # An address cut off before its "@" still begins with "user:" and part of the password.
    return re.sub(r"(://)[^\s/:@\[]+:(?!\d*(?:[\s/?#,;.:)'\"]|$))\S*", rf"\1{HIDDEN}", text)


def known_secrets(environ: Mapping[str, str]) -> list[str]:
    """Return the credentials in the environment's URLs in all spellings, longest first."""
    secrets: set[str] = set()
    for name, value in environ.items():
        if "@" in value and ("://" in value or URL_VARIABLE.search(name)):
            for url in {value, *value.split()}:
                secrets.update(spellings(userinfo(url)))
    return sorted(filter(is_secret, secrets), key=len, reverse=True)


def userinfo(url: str) -> str:
    """Return all before the last "@", without the scheme; "" where there is no "@"."""
    return re.sub(r"^(\w+=)?[A-Za-z][A-Za-z0-9+.-]*://", "", url.rpartition("@")[0])


def spellings(credentials: str) -> Iterable[str]:
    """Yield the credentials, and the password alone, as typed, percent-decoded and -encoded."""
    password = credentials.partition(":")[2]
    for part in (credentials, password):
        decoded = urllib.parse.unquote(part)
        yield part
        yield repr(part)[1:-1]  # with a backslash doubled
        yield decoded
        yield urllib.parse.quote(decoded, safe=":")
        yield urllib.parse.quote(decoded, safe="")
    # A program that cannot parse the address shows what it takes for the host or the port.
    for piece in re.split(r"[/?#@:\\\s]", urllib.parse.unquote(password or credentials)):
        if len(piece) > MIN_SECRET + 1:
            yield piece


def is_secret(text: str) -> bool:
    return len(text) >= MIN_SECRET and not text.isspace()


def shown(source: Path | str) -> str:
    """Return a path, or a URL without credentials, query and control characters."""
    if isinstance(source, Path):
        return str(source)
    scheme, separator, rest = source.partition("://")
    text = (scheme + separator + rest.rpartition("@")[2]) if separator else source
    text = text.partition("?")[0]
    return "".join(c if c.isprintable() else "?" for c in text)
