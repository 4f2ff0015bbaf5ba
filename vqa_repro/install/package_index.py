"""Find a wheel in the page that a package index has of its package (PEP 503), with its hash."""

from __future__ import annotations

import html.parser
import os
import platform
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator

from vqa_repro.install.download import RemoteFile
from vqa_repro.install.http_client import (
    SourceFailed,
    TryAgain,
    check_url,
    network_errors,
    open_url,
)
from vqa_repro.install.lockfile import Entry

STALL_S = 30.0
PAGE_LIMIT = 64 << 20  # bytes
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl")


def indexes(pip: list[str]) -> list[str]:
    """Return the indexes that pip or uv are configured to use, the main one first; or pip's own."""
    get = os.environ.get
    if get("PIP_NO_INDEX") or get("UV_NO_INDEX"):
        return []
    main = get("UV_DEFAULT_INDEX") or get("UV_INDEX_URL") or get("PIP_INDEX_URL")
    if not main and pip:
        text = subprocess.run([*pip, "download", "--help"], capture_output=True, text=True).stdout
        default = re.search(r"\(default\s+(https://[^\s)]+)\)", text)
        main = default[1] if default else ""
    others = [get(name, "") for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL")]
    return addresses(main or "", *others)


def pages() -> list[str]:
    """Further pages that pip or uv are configured to look at."""
    found = [os.environ.get(name, "") for name in ("PIP_FIND_LINKS", "UV_FIND_LINKS")]
    return addresses(*found)


def addresses(*texts: str) -> list[str]:
    """The web addresses among the words of these settings, each once."""
    words = re.split(r"[\s,]+", " ".join(texts))
    return list(dict.fromkeys(word for word in words if re.match("https?://", word)))


class Links(html.parser.HTMLParser):
    """The addresses that a page points to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def find_wheel(entry: Entry, page: str, python: str) -> tuple[RemoteFile, str] | None:
    """The best of the entry's wheels that this page points to, and its URL."""
    content, where, _ = ask(check_url(page), "GET")
    best: tuple[tuple[int, ...], str, str] | None = None
    for link in Links(content.decode("utf-8", "replace")).found:
        url, _, fragment = with_password(urllib.parse.urljoin(where, link), page).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rpartition("/")[2])
        if fragment.removeprefix("sha256=") in entry.hashes and NAME.fullmatch(name):
            rank = tag_priority(name, python)
            if rank and (best is None or rank > best[0]):
                best = rank, name, url
    if best is None:
        return None
    url = check_url(best[2])
    size = ask(url, "HEAD")[2]
    return None if size is None else (RemoteFile(best[1], size, entry.hashes), url)


def ask(url: str, method: str) -> tuple[bytes, str, int | None]:
    """Return (body, the URL after redirects, Content-Length) of a page. Raise SourceFailed."""
    for wait_s in (1.0, 3.0, 0.0):
        try:
            with open_url(url, STALL_S, method=method) as answer:
                answer.start(0, lambda size: False)
                with network_errors(STALL_S, resuming=True):
                    length = answer.response.headers.get("Content-Length")
                    size = int(length) if re.fullmatch("[0-9]{1,12}", length or "") else None
                    return answer.response.read(PAGE_LIMIT), answer.url, size
        except TryAgain as trouble:
            reason = str(trouble)
            time.sleep(wait_s if trouble.wait_s is None else trouble.wait_s)
    raise SourceFailed(reason)


def with_password(url: str, page: str) -> str:
    """``url`` with the page's user and password, if it is on the same host."""
    parts, known = urllib.parse.urlsplit(url), urllib.parse.urlsplit(page)
    same = (parts.scheme, parts.netloc) == (known.scheme, known.netloc.rpartition("@")[2])
    return parts._replace(netloc=known.netloc).geturl() if same else url


def tag_priority(name: str, python: str) -> tuple[int, ...] | None:
    """How well a wheel of this name suits this Python (3.X) on this machine; None: not at all."""
    pythons, abis, platforms = (tags.split(".") for tags in name[: -len(".whl")].split("-")[-3:])
    minor = int(python.partition(".")[2])
    own, older = f"cp3{minor}", [f"cp3{number}" for number in range(2, minor + 1)]
    if own in pythons and (own in abis or "none" in abis):
        kind = 3
    elif "abi3" in abis and not set(older).isdisjoint(pythons):
        kind = 2
    elif "none" in abis and {"py3", *(f"py3{n}" for n in range(minor + 1))} & set(pythons):
        kind = 1
    else:
        return None
    ours = [*platform_tags(), "any"]
    ranks = [len(ours) - ours.index(tag) for tag in platforms if tag in ours]
    return (kind, max(ranks)) if ranks else None


def platform_tags() -> Iterator[str]:
    """pip's names of the platform of this machine, best first; of any age that PyTorch serves."""
    machine = platform.machine()
    if sys.platform == "darwin":
        for version in range(14, 10, -1):
            for kind in (machine, "universal2"):
                yield f"macosx_{version}_0_{kind}"
        return
    for version in range(28, 4, -1):
        yield f"manylinux_2_{version}_{machine}"
    for year in ("2014", "2010", "1"):
        yield f"manylinux{year}_{machine}"
