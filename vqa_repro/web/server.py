"""The web page's server: reachable from this machine alone, and only with the token in its URL.

GET  /           the page, with ?token=
POST /images     the bytes of an image -> {"image": its key}
POST /answers    {"image": key, "question": ...} -> {"runs": [a Prediction each], "seconds": ...}
GET  /runs       the runs, the samples' questions and true answers, the limits
GET  /samples/N  the image of a sample
All but the page require "Authorization: Bearer TOKEN". Errors are JSON: {"error": ...}.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    LengthRequired,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
    UnprocessableEntity,
)
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from vqa_repro.utils.errors import UserError
from vqa_repro.utils.messages import LANGUAGES, translations
from vqa_repro.utils.palette import MIN_TOP, VIRIDIS
from vqa_repro.web.runs import Runs, Sample

IMAGE_BYTES = 20 << 20
QUESTION_CHARACTERS = 500
JSON_BYTES = 16 << 10
IDLE_SECONDS = 20  # without a byte from a client that has more to send
UPLOAD_SECONDS = 300  # for a whole request: 20 MB over a slow tunnel
STATIC = Path(__file__).parent / "static"
SCRIPTS = ["page.js", "answers.js", "attention.js"]  # one after the other, as one script

_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def texts() -> dict[str, dict[str, str]]:
    """Return the page's texts, and the names of attention maps: language -> key -> text."""
    return {
        language: {
            **translations("page.", language),
            **{f"level_{kind}": name for kind, name in translations("level_", language).items()},
        }
        for language in LANGUAGES
    }


def page() -> tuple[bytes, str]:
    """Return the page, and the Content-Security-Policy that allows its own script and style."""
    html, policy = (STATIC / "page.html").read_text("utf-8"), "default-src 'none'"
    table = json.dumps(texts(), ensure_ascii=False).replace("<", "\\u003c")
    palette = json.dumps({"colours": VIRIDIS, "top": MIN_TOP})
    for kind, files in (("style", ["page.css"]), ("script", SCRIPTS)):
        text = "".join((STATIC / name).read_text("utf-8") for name in files)
        text = text.replace("/* texts */ {}", table).replace("/* palette */ {}", palette)
        html = html.replace(f"/* {files[0]} */", text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy += f"; {kind}-src 'sha256-{digest}'"
    policy += "; img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    return html.encode(), f"{policy}; frame-ancestors 'none'"


class Application:
    """Answers one request at a time; holds the token and the open runs."""

    def __init__(self, runs: Runs, samples: Sequence[Sample], token: str) -> None:
        self.runs = runs
        self.samples = samples
        self.token = token
        # For a reload: the page's URL no longer holds the token. The cookie opens the page and
        # nothing else, because a browser sends a cookie of 127.0.0.1 to the servers on all ports.
        self.cookie = (f"page-{secrets.token_hex(4)}", secrets.token_urlsafe(24))
        self.page, self.policy = page()
        self.routes = {
            ("GET", "/"): self._page,
            ("GET", "/runs"): self._runs,
            ("POST", "/images"): self._add_image,
            ("POST", "/answers"): self._answer,
        }

    def respond(self, request: Request) -> Response:
        """Return the response to ``request``; every error becomes one."""
        path = request.environ["REQUEST_URI"].partition("?")[0]  # as sent, not decoded
        try:
            response = self._dispatch(request, path)
        except HTTPException as error:
            response = _json({"error": error.description}, error.code or 500)
        except UserError as error:
            response = _json({"error": str(error)}, 422)
        except ConnectionError:
            raise
        except Exception:
            traceback.print_exc()
            response = _json({"error": "the server failed; its terminal shows the error"}, 500)
        response.headers.extend({"Content-Security-Policy": self.policy, **_HEADERS})
        return response

    def _dispatch(self, request: Request, path: str) -> Response:
        # A name that an attacker's DNS resolves to this machine would let a foreign page call it.
        if not _LOCAL_HOST.fullmatch(request.environ.get("HTTP_HOST", "")):
            return Response(status=403)
        if not self._is_authorized(request, path):
            if (request.method, path) == ("GET", "/"):
                preferred = next(iter(request.accept_languages.values()), "")
                return _token_page("zh" if preferred.lower().startswith("zh") else "en")
            return Response(status=403)
        if request.method == "GET" and (sample := re.fullmatch(r"/samples/([0-9]{1,4})", path)):
            return self._sample(int(sample[1]))
        if handler := self.routes.get((request.method, path)):
            return handler(request)
        raise NotFound("no such address on this server")

    def _is_authorized(self, request: Request, path: str) -> bool:
        allowed = _equal(request.headers.get("Authorization", ""), f"Bearer {self.token}")
        if (request.method, path) == ("GET", "/"):
            name, value = self.cookie
            allowed |= _equal(request.args.get("token", ""), self.token)
            allowed |= _equal(request.cookies.get(name, ""), value)
        return allowed

    def _page(self, request: Request) -> Response:
        response = Response(self.page, mimetype="text/html")
        response.set_cookie(*self.cookie, httponly=True, samesite="Strict")
        return response

    def _runs(self, request: Request) -> Response:
        samples = [{"question": s.question, "answer": s.answer} for s in self.samples]
        limits = {"image_bytes": IMAGE_BYTES, "question_characters": QUESTION_CHARACTERS}
        return _json({"runs": self.runs.describe(), "samples": samples, **limits})

    def _sample(self, number: int) -> Response:
        if number >= len(self.samples):
            raise NotFound("there is no such sample")
        return Response(self.samples[number].image, mimetype="image/jpeg")

    def _add_image(self, request: Request) -> Response:
        return _json({"image": self.runs.add_image(_read_body(request, IMAGE_BYTES))})

    def _answer(self, request: Request) -> Response:
        try:
            body = json.loads(_read_body(request, JSON_BYTES))
        except (ValueError, RecursionError):
            raise BadRequest("the request is not JSON") from None
        image, question = (
            (body.get("image"), body.get("question")) if isinstance(body, dict) else (0, 0)
        )
        if not isinstance(image, str) or not isinstance(question, str):
            raise BadRequest('the request must be {"image": "...", "question": "..."}')
        if len(question) > QUESTION_CHARACTERS:
            raise UnprocessableEntity(
                f"the question is longer than {QUESTION_CHARACTERS} characters"
            )
        start = time.perf_counter()
        answers = self.runs.answer(image, question)
        return _json({"runs": answers, "seconds": time.perf_counter() - start})


def _equal(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode(errors="replace"), expected.encode())


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value, allow_nan=False), status, mimetype="application/json")


def _token_page(language: str) -> Response:
    """Return the page for a missing or wrong token: it says where the right URL is."""
    table = texts()[language]
    lines = "".join(f"<p>{escape(table[key])}</p>" for key in ("token_open", "token_keep"))
    title = escape(table["token_title"])
    html = f'<!doctype html><html lang="{language}"><meta charset="utf-8">'
    html += '<meta name="color-scheme" content="light dark">'
    html += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    html += f"<title>{title}</title><main><h1>{title}</h1>{lines}</main></html>"
    return Response(html, 403, mimetype="text/html")


def _read_body(request: Request, limit: int) -> bytes:
    """Return the request's body; refuse one above ``limit`` bytes before reading any of it."""
    length_text = request.environ["CONTENT_LENGTH"]
    if not length_text or "HTTP_TRANSFER_ENCODING" in request.environ:
        raise LengthRequired("the request has no Content-Length")
    if not re.fullmatch("[0-9]{1,15}", length_text):
        raise BadRequest("the Content-Length is not a number")
    length = int(length_text)
    if length > limit:
        sizes = f"{length / 1e6:.1f} MB; the limit is {limit / 1e6:.1f} MB"
        raise RequestEntityTooLarge(f"too large: {sizes}")
    body = bytearray()
    deadline = time.monotonic() + UPLOAD_SECONDS
    while len(body) < length:
        try:
            part = request.environ["wsgi.input"].read1(min(length - len(body), 1 << 16))
        except TimeoutError:
            part = None
        if part is None or time.monotonic() > deadline:
            raise RequestTimeout("the request took too long to arrive")
        if not part:
            raise BadRequest("the request was cut off")
        body += part
    return bytes(body)


class Handler(WSGIRequestHandler):
    """Reads one request and writes its response; the connection is closed after it."""

    server: "Server"
    timeout = IDLE_SECONDS

    def make_environ(self) -> dict[str, Any]:
        lengths = ",".join(self.headers.get_all("Content-Length", []))
        return {**super().make_environ(), "CONTENT_LENGTH": lengths}

    def run_wsgi(self) -> None:
        """Write the application's response, without werkzeug's Server and Date headers."""
        try:
            environ = self.make_environ()
        except ValueError:  # an address that cannot be parsed: "http://["
            self.send_error(403)
            return
        response = self.server.application.respond(Request(environ))
        self._send(response.status_code, response.get_data(), response.get_wsgi_headers(environ))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is not HTTP with an empty 403, as without a token."""
        self._send(403, b"", {"Content-Length": "0"})

    def _send(self, status: int, body: bytes, headers: Any) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        # A browser reads the response after it has sent its whole request, and would lose it if
        # the connection were closed before.
        deadline = time.monotonic() + IDLE_SECONDS
        with suppress(OSError):  # the client left, or is too slow
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and self.connection.recv(1 << 16):
                pass

    def log(self, type: str, message: str, *args: Any) -> None:
        """Log nothing: a line for each request would bury the errors."""


class Server(ThreadedWSGIServer):
    """Serve ``runs`` on 127.0.0.1. Raise OSError if the port is in use; port 0 is a free one."""

    def __init__(self, port: int, runs: Runs, samples: Sequence[Sample], token: str = "") -> None:
        self.application = Application(runs, samples, token or secrets.token_urlsafe(24))
        # Bound here: werkzeug ends the process if the port is in use.
        with socket.create_server(("127.0.0.1", port), backlog=64) as listener:
            super().__init__(
                "127.0.0.1", listener.getsockname()[1], _unused, Handler, fd=listener.fileno()
            )


def _unused(environ: Any, start_response: Any) -> Any:
    raise NotImplementedError("Handler calls the application itself")
