"""HTTP requests whose every failure is one of two: this source failed, or try it again."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import functools
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from vqa_repro.install.errors import ExitCode, InstallError
from vqa_repro.install.progress import say
from vqa_repro.install.redact import shown

RETRY_AFTER_MAX_S = 120.0
DRIP_WINDOW_S = 60.0
DRIP_FLOOR = 1024  # bytes/s, averaged over a window

QUOTING = "write / : @ # ? of a password as %2F %3A %40 %23 %3F"
STATUS_REASONS = {
    401: "it asks for a password (401); put it in the URL: https://USER:PASSWORD@HOST/",
    403: "it refuses access to the file (403)",
    404: "it does not have the file (404)",
    407: "the proxy asks for a password (407); set it in https_proxy: http://USER:PASSWORD@HOST",
}


class BadAddress(InstallError):
    """A URL that cannot be opened as it is written."""

    def __init__(self, text: str) -> None:
        super().__init__(ExitCode.BAD_INPUT, text)


class SourceFailed(Exception):
    """This source does not serve the file; the next one may."""

    def __init__(self, reason: str, wrong_bytes: bool = False) -> None:
        super().__init__(reason)
        self.wrong_bytes = wrong_bytes


class TryAgain(Exception):
    """The same source may succeed in a moment."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def check_url(url: str) -> str:
    """Return ``url`` with its path quoted; raise BadAddress for what urllib could not open."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        if not (url.isprintable() and parts.netloc.isascii()):
            raise ValueError
    except ValueError:
        text = f"not a usable http(s) URL: {shown(url)}"
        if "@" in url.partition("://")[2]:
            text += f"; {QUOTING}"
        raise BadAddress(text) from None
    return parts._replace(path=urllib.parse.quote(parts.path, safe="/%~:@!$&'()*+,;=")).geturl()


def join_url(folder: str, filename: str) -> str:
    """Return the URL of a file in the folder with this URL."""
    parts = urllib.parse.urlsplit(folder)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{filename}").geturl()


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but none away from https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        allowed = ("https:",) if req.type == "https" else ("http:", "https:")
        if not newurl.lower().startswith(allowed):
            raise SourceFailed(f"it redirects away from {req.type}, to {shown(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class EveryStatus(urllib.request.HTTPDefaultErrorHandler):
    """Return 4xx and 5xx answers like any other."""

    def http_error_default(self, req: Any, fp: Any, code: int, msg: str, hdrs: Any) -> Any:
        return fp


def request_for(url: str, method: str, start: int, validator: str | None) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host).geturl(), method=method)
    request.add_header("Accept-Encoding", "identity")
    request.add_header("User-Agent", "vqa_repro-checkpoints")
    if credentials:  # unredirected: another host must not get them
        token = base64.b64encode(urllib.parse.unquote_to_bytes(credentials)).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
        if validator:
            request.add_header("If-Range", validator)
    return request


def proxy_handler(url: str) -> urllib.request.ProxyHandler:
    """Return the handler of the environment's proxies; all_proxy serves where no other is named.

    Raise SourceFailed where the proxy for ``url`` cannot be used.
    """
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies()
    general = proxies.pop("all", "")
    if general and parts.scheme not in proxies:
        if is_socks(general):
            note_once("note: all_proxy is a SOCKS proxy, which is not used here")
        else:
            proxies[parts.scheme] = general
    proxy = proxies.get(parts.scheme, "").strip()
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        name = f"{parts.scheme}_proxy"
        if is_socks(proxy):
            raise SourceFailed(f"{name} is a SOCKS proxy, which cannot be used: name an HTTP proxy")
        try:
            address = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            if not address.hostname or address.port == 0:
                raise ValueError
        except ValueError:
            text = f"{name} is not an address like http://HOST:3128"
            raise SourceFailed(f"{text}; {QUOTING}" if "@" in proxy else text) from None
        proxies[parts.scheme] = proxy
    return urllib.request.ProxyHandler(proxies)


def is_socks(proxy: str) -> bool:
    return proxy.strip().lower().startswith("socks")


@functools.cache
def note_once(text: str) -> None:
    say(text)


@contextlib.contextmanager
def open_url(
    url: str, timeout_s: float, start: int = 0, validator: str | None = None, method: str = "GET"
) -> Iterator[Answer]:
    """Open ``url`` from byte ``start`` on. Raise SourceFailed or TryAgain."""
    opener = urllib.request.build_opener(proxy_handler(url), Redirects, EveryStatus)
    with network_errors(timeout_s, resuming=start > 0):
        response = opener.open(request_for(url, method, start, validator), timeout=timeout_s)
    with response:
        yield Answer(response, timeout_s)


class Answer:
    """A response: where its body starts, and the body as it arrives."""

    def __init__(self, response: Any, timeout_s: float) -> None:
        self.response, self.timeout_s = response, timeout_s
        self.url: str = response.url
        self.length: int | None = response.length

    @property
    def validator(self) -> str | None:
        """The strong ETag, or else the date, that tells one version of the file from another."""
        headers = self.response.headers
        etag: str | None = headers.get("ETag")
        modified: str | None = headers.get("Last-Modified")
        return etag if etag and not etag.startswith("W/") else modified

    def is_complete(self, present: int) -> bool:
        """Return whether it says that nothing follows the ``present`` bytes."""
        content_range: str | None = self.response.headers.get("Content-Range")
        status: int = self.response.status
        return status == 416 and content_range == f"bytes */{present}"

    def start(self, present: int, fits: Callable[[int], bool]) -> int | None:
        """Return the byte at which the body starts: 0, or ``present`` for the requested part.

        None when the server answered with another part, or had none.
        """
        status, headers = self.response.status, self.response.headers
        encoding = headers.get("Content-Encoding", "").strip().lower()
        if present and status in (206, 416):
            content_range = headers.get("Content-Range", "")
            part = re.fullmatch(r"bytes (\d{1,15})-\d{1,15}/(\d{1,15}|\*)", content_range)
            right = part and int(part[1]) == present
            right = right and part and (part[2] == "*" or fits(int(part[2])))
            return present if right and status == 206 and not encoding else None
        if status in (408, 425, 429) or status >= 500:
            reason = f"the server is busy or broken ({status})"
            raise TryAgain(reason, retry_after(headers.get("Retry-After")))
        if status != 200:
            raise SourceFailed(STATUS_REASONS.get(status, f"it answers with status {status}"))
        if encoding not in ("", "identity"):
            raise SourceFailed("it sends the file compressed, which was not requested")
        return 0

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives; raise TryAgain for a server that stalls or drips."""
        window_start, window_bytes = time.monotonic(), 0
        while True:
            with network_errors(self.timeout_s, resuming=True):
                chunk = self.response.read1(1 << 18)
            if not chunk:
                return
            yield chunk
            window_bytes += len(chunk)
            elapsed = time.monotonic() - window_start
            if elapsed >= DRIP_WINDOW_S:
                if window_bytes < DRIP_FLOOR * elapsed:
                    raise TryAgain(f"only {window_bytes:,} bytes came in {elapsed:.0f} s")
                window_start, window_bytes = time.monotonic(), 0


@contextlib.contextmanager
def network_errors(timeout_s: float, resuming: bool) -> Iterator[None]:
    """Sort what urllib, sockets and TLS raise into SourceFailed and TryAgain."""
    try:
        yield
    except urllib.error.HTTPError:
        raise SourceFailed("it redirects in a circle, or to no web address") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise SourceFailed(
                "its certificate is not trusted; where a proxy opens https, set SSL_CERT_FILE to "
                "the site's CA file"
            ) from None
        if "407 " in str(cause):
            raise SourceFailed(STATUS_REASONS[407]) from None
        if isinstance(cause, socket.gaierror) and not resuming:
            raise SourceFailed("its host name cannot be resolved (no network?)") from None
        if isinstance(cause, TimeoutError):
            raise TryAgain(f"nothing came for {timeout_s:g} s") from None
        if isinstance(cause, http.client.InvalidURL) or not isinstance(
            cause, (OSError, http.client.HTTPException)
        ):
            raise SourceFailed("its address, or one it redirects to, is garbled") from None
        text = getattr(cause, "strerror", None) or type(cause).__name__
        raise TryAgain(f"the connection failed ({text})") from None


def retry_after(header: str | None) -> float | None:
    """Return the seconds a server asks to wait, as number or date, up to RETRY_AFTER_MAX_S."""
    if header is None:
        return None
    if re.fullmatch("[0-9]{1,9}", header.strip()):
        seconds = float(header)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):  # TypeError: what 3.10 makes of no date
            return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)
