"""A loopback HTTP server that misbehaves on demand, one fault per URL folder.

    with FaultServer({"weights.pth": data}) as server:
        server.url("drop_half")        # http://127.0.0.1:PORT/drop_half/
        server.log                     # the requests, in order

`/FAULT/FILE` serves FILE with FAULT. Faults named `..._once` affect the first request only, so that
a second one can show whether the client recovers. A URL with a full address in the request line,
as proxies get it, is served by its path.
"""

from __future__ import annotations

import email.utils
import gzip
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

LAST_MODIFIED = "Wed, 01 Jan 2020 00:00:00 GMT"
LOGIN_PAGE = b"<!DOCTYPE html><html><body>Please log in to Campus WiFi</body></html>"
FAULTS: dict[str, Callable[[Handler], None]] = {}


@dataclass(frozen=True)
class Request:
    """One request as received; absent headers are None."""

    method: str
    target: str
    range: str | None
    if_range: str | None
    authorization: str | None


class FaultServer:
    """Serve `files` (name -> bytes, changeable at any time) until the `with` block ends."""

    def __init__(self, files: dict[str, bytes], certificate: Path | None = None) -> None:
        self.files = files
        self.log: list[Request] = []
        self.stop = threading.Event()  # ends stalls
        self.resume = threading.Event()  # ends pauses
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.http.owner = self  # type: ignore[attr-defined]
        self.scheme = "http"
        if certificate is not None:
            self.scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.http.socket = context.wrap_socket(
                self.http.socket, server_side=True, do_handshake_on_connect=False
            )
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FaultServer:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop.set()
        self.resume.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.http.server_port}"

    def url(self, fault: str = "honest") -> str:
        return f"{self.scheme}://{self.address}/{fault}/"


class Handler(BaseHTTPRequestHandler):
    """Handle one request. Fault functions call `send` with the parts that go wrong."""

    protocol_version = "HTTP/1.1"

    @property
    def owner(self) -> FaultServer:
        return self.server.owner  # type: ignore[attr-defined,no-any-return]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client left or refused the certificate
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.note()
        self.plain(405)

    def do_CONNECT(self) -> None:
        self.note()
        self.plain(407, {"Proxy-Authenticate": "Basic"})

    def note(self) -> None:
        get = self.headers.get
        asked = Request(
            self.command, self.path, get("Range"), get("If-Range"), get("Authorization")
        )
        self.owner.log.append(asked)

    def do_GET(self) -> None:
        self.close_connection = True
        path = urlsplit(self.path).path
        fault, _, name = path.strip("/").partition("/")
        self.earlier = sum(urlsplit(a.target).path == path for a in self.owner.log)
        self.note()
        self.body = self.owner.files.get(name, b"")
        self.start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        if fault in FAULTS and self.body:
            FAULTS[fault](self)
        else:
            self.plain(404)

    def plain(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a complete answer without faults."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def send(
        self,
        *,
        etag: str = '"v1"',
        ranges: bool = True,
        cut: int | None = None,
        headers: dict[str, str | None] | None = None,
        chunked: bool = False,
    ) -> None:
        """Send a correct answer, except: `cut` the connection after so many bytes of body,
        replace or (None) leave out `headers`, ignore `ranges`."""
        total = len(self.body)
        unchanged = self.headers.get("If-Range") in (None, etag, LAST_MODIFIED)
        partial = bool(self.start) and ranges and unchanged
        if partial and self.start >= total:
            self.plain(416, {"Content-Range": f"bytes */{total}"})
            return
        start = self.start if partial else 0
        fields: dict[str, str | None] = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(total - start),
            "ETag": etag,
            "Last-Modified": LAST_MODIFIED,
        }
        if partial:
            fields["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if chunked:
            fields |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        fields |= headers or {}
        self.send_response(206 if partial else 200)
        for key, value in fields.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        body = self.body[start:][:cut]
        if chunked:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
            if cut is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(body)


def fault(function: Callable[[Handler], None]) -> Callable[[Handler], None]:
    FAULTS[function.__name__] = function
    return function


@fault
def honest(a: Handler) -> None:
    a.send()


# ---------------------------------------------------------------- cut connections


@fault
def drop_half_once(a: Handler) -> None:
    a.send(cut=len(a.body) // 2 if a.earlier == 0 else None)


@fault
def drop_often(a: Handler) -> None:
    a.send(cut=len(a.body) // 7)


@fault
def drop_always_at_half(a: Handler) -> None:
    a.send(cut=max(0, len(a.body) // 2 - a.start))


@fault
def drop_half_chunked_once(a: Handler) -> None:
    a.send(chunked=True, cut=len(a.body) // 2 if a.earlier == 0 else None)


@fault
def drop_half_unannounced_once(a: Handler) -> None:
    """Only the end of the connection ends the body."""
    a.send(headers={"Content-Length": None}, cut=len(a.body) // 2 if a.earlier == 0 else None)


@fault
def reset_once(a: Handler) -> None:
    if a.earlier:
        a.send()
    else:
        linger = struct.pack("ii", 1, 0)  # close with RST
        a.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        a.connection.close()


@fault
def empty_reply_once(a: Handler) -> None:
    if a.earlier:
        a.send()


@fault
def garbage_status_once(a: Handler) -> None:
    if a.earlier:
        a.send()
    else:
        a.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")


@fault
def empty_body(a: Handler) -> None:
    a.plain(200)


# ---------------------------------------------------------------- ranges


def broken_range(a: Handler, **wrong: Any) -> None:
    """Cut the first answer, answer the first range request wrongly, then behave."""
    if a.earlier == 0:
        a.send(cut=len(a.body) // 2)
    elif a.earlier == 1:
        a.send(**wrong)
    else:
        a.send()


@fault
def ignores_range(a: Handler) -> None:
    broken_range(a, ranges=False)


@fault
def range_from_elsewhere(a: Handler) -> None:
    """206 with a part that starts 1,000 bytes before the requested range, as its header states."""
    if a.earlier == 1:
        a.start -= 1000
    broken_range(a)


@fault
def range_with_wrong_total(a: Handler) -> None:
    wrong = f"bytes {a.start}-{len(a.body) - 1}/{len(a.body) + 1}"
    broken_range(a, headers={"Content-Range": wrong})


@fault
def range_unsaid(a: Handler) -> None:
    broken_range(a, headers={"Content-Range": None})


@fault
def range_garbled(a: Handler) -> None:
    broken_range(a, headers={"Content-Range": "bytes " + "9" * 6000 + "-x/*"})


@fault
def range_of_unknown_total(a: Handler) -> None:
    """Allowed: the server does not know the total length."""
    broken_range(a, headers={"Content-Range": f"bytes {a.start}-{len(a.body) - 1}/*"})


@fault
def range_refused(a: Handler) -> None:
    if a.earlier == 1:
        a.plain(416, {"Content-Range": f"bytes */{len(a.body) // 3}"})
    else:
        broken_range(a)


@fault
def etag_changes(a: Handler) -> None:
    """Another version of the file from the second request on: If-Range must return all of it."""
    if a.earlier == 0:
        a.body = b"PK\x03\x04" + bytes(len(a.body) - 4)
        a.send(cut=len(a.body) // 2)
    else:
        a.send(etag='"v2"', headers={"Last-Modified": "Thu, 02 Jan 2020 00:00:00 GMT"})


@fault
def etag_is_weak(a: Handler) -> None:
    a.send(etag='W/"v1"', cut=len(a.body) // 2 if a.earlier == 0 else None)


@fault
def no_validators(a: Handler) -> None:
    bare: dict[str, str | None] = {"ETag": None, "Last-Modified": None}
    a.send(headers=bare, cut=len(a.body) // 2 if a.earlier == 0 else None)


@fault
def login_page_on_resume(a: Handler) -> None:
    if a.earlier == 1:
        a.plain(200, {"Content-Type": "application/octet-stream"}, LOGIN_PAGE)
    else:
        broken_range(a)


# ---------------------------------------------------------------- slow


@fault
def stall_once(a: Handler) -> None:
    if a.earlier == 0:
        a.send(cut=len(a.body) // 2)
        a.owner.stop.wait(20)
    else:
        a.send()


@fault
def stall_always(a: Handler) -> None:
    a.send(cut=0)
    a.owner.stop.wait(20)


@fault
def stall_before_answering_once(a: Handler) -> None:
    if a.earlier == 0:
        a.owner.stop.wait(20)
    else:
        a.send()


@fault
def drip(a: Handler) -> None:
    """Send a byte at a time without end: no single read stalls."""
    a.send(cut=600)
    while not a.owner.stop.wait(0.02):
        a.wfile.write(b"\0")


@fault
def drip_once(a: Handler) -> None:
    if a.earlier == 0:
        a.send(cut=len(a.body) // 2)
        for byte in a.body[len(a.body) // 2 :]:
            if a.owner.stop.wait(0.02):
                return
            a.wfile.write(bytes([byte]))
    else:
        a.send()


@fault
def slow(a: Handler) -> None:
    """Send everything over about a second, so that the client can be killed half way."""
    body, a.body = a.body, a.body
    a.send(cut=0)
    for i in range(a.start, len(body), len(body) // 40):
        if a.owner.stop.wait(0.03):
            return
        a.wfile.write(body[i : i + len(body) // 40])


@fault
def paused(a: Handler) -> None:
    """Send half, and the rest once `resume` is set."""
    body, half = a.body, len(a.body) // 2
    a.send(cut=half)
    a.owner.resume.wait()
    a.wfile.write(body[half:])


# ---------------------------------------------------------------- statuses


def once(a: Handler, status: int, retry_after: str | None = None) -> None:
    if a.earlier:
        a.send()
    else:
        a.plain(status, {"Retry-After": retry_after} if retry_after else {})


@fault
def busy_once(a: Handler) -> None:
    once(a, 503, "1")


@fault
def busy_until_date_once(a: Handler) -> None:
    once(a, 503, email.utils.formatdate(time.time() + 60, usegmt=True))


@fault
def busy_with_garbled_date_once(a: Handler) -> None:
    once(a, 503, "soon, 99 Foo 99999999")


@fault
def busy_for_a_year_once(a: Handler) -> None:
    once(a, 503, "31536000")


@fault
def too_many_requests_once(a: Handler) -> None:
    once(a, 429, "60")


@fault
def broken_once(a: Handler) -> None:
    once(a, 500)


@fault
def busy_always(a: Handler) -> None:
    a.plain(503)


@fault
def forbidden(a: Handler) -> None:
    a.plain(403)


@fault
def missing(a: Handler) -> None:
    a.plain(404)


@fault
def proxy_password(a: Handler) -> None:
    a.plain(407, {"Proxy-Authenticate": "Basic"})


@fault
def teapot(a: Handler) -> None:
    a.plain(418)


@fault
def unasked_piece(a: Handler) -> None:
    """206 to a request without Range."""
    half = len(a.body) // 2
    says = {"Content-Range": f"bytes {half}-{len(a.body) - 1}/{len(a.body)}"}
    a.plain(206, says, a.body[half:])


@fault
def needs_password(a: Handler) -> None:
    if a.headers.get("Authorization") == "Basic dXNlcjpwQHNz":  # user:p@ss
        a.send()
    else:
        a.plain(401)


# ---------------------------------------------------------------- redirects


def redirect(a: Handler, location: str) -> None:
    a.plain(302, {"Location": location})


@fault
def redirected(a: Handler) -> None:
    redirect(a, a.path.replace("redirected", "honest"))


@fault
def redirected_to_other_host(a: Handler) -> None:
    """Redirect to `localhost`, which counts as another host than 127.0.0.1."""
    port = a.owner.http.server_port
    redirect(a, f"http://localhost:{port}{a.path.replace('redirected_to_other_host', 'honest')}")


@fault
def redirected_in_circle(a: Handler) -> None:
    redirect(a, a.path)


@fault
def redirected_to_file(a: Handler) -> None:
    redirect(a, "file:///etc/passwd")


@fault
def redirected_to_ftp(a: Handler) -> None:
    redirect(a, "ftp://127.0.0.1/x")


@fault
def redirected_to_http(a: Handler) -> None:
    redirect(a, f"http://{a.owner.address}/honest/x")


@fault
def redirected_to_nonsense(a: Handler) -> None:
    redirect(a, "http://user:secret@[::bad/\x1b[31m")


@fault
def redirected_to_login(a: Handler) -> None:
    redirect(a, a.path.replace("redirected_to_login", "login_page"))


# ---------------------------------------------------------------- other bytes


@fault
def login_page(a: Handler) -> None:
    a.plain(200, {"Content-Type": "text/html; charset=utf-8"}, LOGIN_PAGE)


@fault
def login_page_unlabelled(a: Handler) -> None:
    """A login page as long as the real file, not labelled HTML."""
    a.body = LOGIN_PAGE.ljust(len(a.body))
    a.send()


@fault
def json_error_unannounced(a: Handler) -> None:
    a.body = b'{"error": "quota exceeded"}'
    a.send(headers={"Content-Length": None})


@fault
def labelled_text(a: Handler) -> None:
    """Harmless: many servers label unknown file types text/plain."""
    a.send(headers={"Content-Type": "text/plain"})


@fault
def gzipped(a: Handler) -> None:
    a.plain(200, {"Content-Encoding": "gzip"}, gzip.compress(a.body, 1))


@fault
def flipped(a: Handler) -> None:
    half = len(a.body) // 2
    a.body = a.body[:half] + bytes([a.body[half] ^ 1]) + a.body[half + 1 :]
    a.send()


@fault
def flipped_once(a: Handler) -> None:
    (honest if a.earlier else flipped)(a)


@fault
def other_length(a: Handler) -> None:
    a.body = a.body[:-1]
    a.send()


@fault
def longer_unannounced(a: Handler) -> None:
    a.body = a.body + bytes(50_000)
    a.send(headers={"Content-Length": None})


@fault
def endless_chunks(a: Handler) -> None:
    a.send(chunked=True, cut=len(a.body))
    while not a.owner.stop.is_set():
        a.wfile.write(b"400\r\n" + bytes(1024) + b"\r\n")


@fault
def announces_less(a: Handler) -> None:
    a.send(headers={"Content-Length": str(len(a.body) // 2)})


@fault
def announces_more(a: Handler) -> None:
    a.send(headers={"Content-Length": str(len(a.body) * 2)})


@fault
def chunked(a: Handler) -> None:
    """Harmless."""
    a.send(chunked=True)
