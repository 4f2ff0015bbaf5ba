"""A page where one asks trained runs about a picture, and sees where they looked.

python -m vqa_repro.serve --run runs/easy-vqa
python -m vqa_repro.serve --run runs/san --run runs/hiecoatt --port 8000

Only this machine reaches it (127.0.0.1), and only with the token in the URL that it prints; the ssh
line printed with it brings the page to a laptop. Ctrl-C or SIGTERM is how it ends: exit code 0.

The standard library's server and one hand-written page: Gradio would bring some forty packages for
these five requests, and hovering over regions and words would be hand-written JavaScript there too.

GET  /           the page, with ?token=
POST /pictures   the bytes of a picture -> {"picture": its name here}
POST /answers    {"picture": ..., "question": ...} -> {"runs": [a Prediction each], "seconds": ...}
GET  /runs       the runs, the samples' questions, the limits
GET  /samples/N  the picture of a sample
All but the page with "Authorization: Bearer TOKEN". What is refused is told as {"error": ...}.
"""

import argparse
import base64
import hashlib
import io
import json
import os
import re
import secrets
import signal
import socket
import socketserver
import sys
import threading
import time
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

import vqa_repro
from vqa_repro.data.images import Picture
from vqa_repro.data.vocabulary import tokenize
from vqa_repro.evaluation.examples import read as read_gallery
from vqa_repro.evaluation.inference import Predictor
from vqa_repro.utils.device import add_device_option, describe
from vqa_repro.utils.errors import UserError, main_guard
from vqa_repro.web.tunnel import tunnel_lines

PORT = 8420  # stays the same from start to start, and with it the tunnel
PICTURE_BYTES = 20 << 20
QUESTION_CHARACTERS = 500
JSON_BYTES = 16 << 10
REMEMBERED = 8  # pictures whose features are kept
IDLE_SECONDS = 20  # without a byte from a client that has more to send
UPLOAD_SECONDS = 300  # for all of it: 20 MB over a slow tunnel
# What browsers show. Pillow reads more, some of it (EPS) with other programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP")

_THIS_MACHINE = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?", re.IGNORECASE)


class Refusal(Exception):
    """A request that is not granted: its status and, for the page, why."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Runs:
    """Trained runs, and the last pictures as they see them. Threads may share it."""

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = predictors
        self._sight = [
            json.dumps(p.run.features["made_by"], sort_keys=True) for p in self.predictors
        ]
        self._rows: OrderedDict[str, list[Tensor]] = OrderedDict()
        self._lock = threading.Lock()
        # Now rather than at the first question: the backbone is read, or found missing.
        for predictor, row in zip(
            predictors, self._look(np.zeros((8, 8, 3), np.uint8)), strict=True
        ):
            predictor.answer(row, "what is it?")

    def look(self, picture: bytes) -> str:
        """The picture's name in ``ask``, once every run has looked at it.

        Raises UserError for a picture that cannot be read.
        """
        name = hashlib.sha256(picture).hexdigest()
        with self._lock:
            if name not in self._rows:
                _check_format(picture)
                self._rows[name] = self._look(picture)
            self._rows.move_to_end(name)
            if len(self._rows) > REMEMBERED:
                self._rows.popitem(last=False)
        return name

    def ask(self, picture: str, question: str) -> list[dict[str, Any]]:
        """Each run's prediction. Raises Refusal for a picture that is not remembered any more."""
        with self._lock:
            if picture not in self._rows:
                why = "the picture is not remembered any more; send it again"
                raise Refusal(HTTPStatus.GONE, why)
            rows = self._rows[picture]
            self._rows.move_to_end(picture)
            said = [p.answer(row, question) for p, row in zip(self.predictors, rows, strict=True)]
        return [
            {**prediction.to_json(), "unread_words": tokenize(question)[len(prediction.words) :]}
            for prediction in said
        ]

    def _look(self, picture: Picture) -> list[Tensor]:
        """A row for each run; runs on the same features share the costly look."""
        rows: dict[str, Tensor] = {}
        for sight, predictor in zip(self._sight, self.predictors, strict=True):
            if sight not in rows:
                rows[sight] = predictor.look(picture)
        return [rows[sight] for sight in self._sight]


def _check_format(picture: bytes) -> None:
    try:
        Image.open(io.BytesIO(picture), formats=FORMATS).close()
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise UserError(f"this is not a picture in a format known here ({known})") from None
    except Exception:  # read_picture says what is wrong with it
        return


def samples(runs: Sequence[Path]) -> list[tuple[bytes, str]]:
    """(JPEG, question) from the gallery of the first run folder that has one."""
    for folder in runs:
        if gallery := read_gallery(folder):
            asked = [gallery.asked[position] for position in gallery.lists.get("sample", [])]
            return [(gallery.pictures[a.picture], a.question) for a in asked if a.picture]
    return []


def page() -> tuple[bytes, str]:
    """The page, and the Content-Security-Policy that lets it run its own script and no other."""
    folder = Path(__file__).parent / "web" / "static"
    html, policy = (folder / "page.html").read_text("utf-8"), "default-src 'none'"
    for kind, name in (("style", "page.css"), ("script", "page.js")):
        text = (folder / name).read_text("utf-8")
        html = html.replace(f"/* {name} */", text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy += f"; {kind}-src 'sha256-{digest}'"
    policy += "; img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
    return html.encode(), f"{policy}; frame-ancestors 'none'"


class Server(socketserver.ThreadingTCPServer):
    """Serves ``runs`` on 127.0.0.1. Raises OSError for a port in use; port 0 is a free one."""

    allow_reuse_address = True  # at once after the last one ended
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, runs: Runs, samples: Sequence[tuple[bytes, str]]) -> None:
        self.runs = runs
        self.samples = samples
        self.token = secrets.token_urlsafe(24)
        # Reloading the page: its URL has no token any more. This gives the page and nothing else,
        # since a browser shows a cookie of 127.0.0.1 to the servers on all its ports.
        self.cookie = f"page-{secrets.token_hex(4)}={secrets.token_urlsafe(24)}"
        self.page, self.policy = page()
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client went away
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request; the connection is closed after it."""

    server: Server
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is no GET or POST, or no HTTP: nothing, as without a token."""
        self._refuse(HTTPStatus.FORBIDDEN)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line of its own for each request would bury the errors."""

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        if not self._allowed(path, query):
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        try:
            self._answer(path)
        except Refusal as refusal:
            self._refuse(refusal.status, str(refusal))
        except UserError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except ConnectionError:
            raise
        except Exception:
            traceback.print_exc()
            why = "the server failed; its terminal says how"
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, why)

    def _allowed(self, path: str, query: str) -> bool:
        # A name that an attacker's DNS points here would let his page talk to this server.
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not _THIS_MACHINE.fullmatch(hosts[0]):
            return False
        given = [self.headers.get("Authorization", "")]
        wanted = [f"Bearer {self.server.token}"]
        if path == "/" and self.command == "GET":
            given += [f"Bearer {token}" for token in parse_qs(query).get("token", [])]
            given += [part.strip() for part in self.headers.get("Cookie", "").split(";")]
            wanted.append(self.server.cookie)
        return any(
            secrets.compare_digest(one.encode(errors="replace"), other.encode())
            for one in given
            for other in wanted
        )

    def _answer(self, path: str) -> None:
        request = f"{self.command} {path}"
        if request == "GET /":
            cookie = f"{self.server.cookie}; Path=/; HttpOnly; SameSite=Strict"
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8", cookie)
        elif request == "GET /runs":
            self._send_json(HTTPStatus.OK, self._runs())
        elif sample := re.fullmatch(r"GET /samples/([0-9]{1,4})", request):
            self._send(HTTPStatus.OK, self._sample(int(sample[1])), "image/jpeg")
        elif request == "POST /pictures":
            picture = self._body(PICTURE_BYTES)
            self._send_json(HTTPStatus.OK, {"picture": self.server.runs.look(picture)})
        elif request == "POST /answers":
            self._send_json(HTTPStatus.OK, self._answers())
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such thing here")

    def _runs(self) -> dict[str, Any]:
        opened = [predictor.run for predictor in self.server.runs.predictors]
        return {
            "runs": [{"title": run.recipe.title, "folder": str(run.folder)} for run in opened],
            "samples": [question for _, question in self.server.samples],
            "picture_bytes": PICTURE_BYTES,
            "question_characters": QUESTION_CHARACTERS,
        }

    def _sample(self, number: int) -> bytes:
        if number >= len(self.server.samples):
            raise Refusal(HTTPStatus.NOT_FOUND, "there is no such sample")
        return self.server.samples[number][0]

    def _answers(self) -> dict[str, Any]:
        try:
            asked = json.loads(self._body(JSON_BYTES))
        except (ValueError, RecursionError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request is not JSON") from None
        picture, question = (
            (asked.get("picture"), asked.get("question")) if isinstance(asked, dict) else (0, 0)
        )
        if not isinstance(picture, str) or not isinstance(question, str):
            why = 'the request has to be {"picture": "...", "question": "..."}'
            raise Refusal(HTTPStatus.BAD_REQUEST, why)
        if len(question) > QUESTION_CHARACTERS:
            why = f"the question is too long; ask in at most {QUESTION_CHARACTERS} characters"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, why)
        start = time.perf_counter()
        said = self.server.runs.ask(picture, question)
        return {"runs": said, "seconds": time.perf_counter() - start}

    def _body(self, limit: int) -> bytes:
        """The request's body, of at most ``limit`` bytes: nothing is read of a longer one."""
        lengths = self.headers.get_all("Content-Length", [])
        if len(lengths) != 1 or "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is")
        if not re.fullmatch("[0-9]{1,15}", lengths[0]):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the request's length is not a number")
        length = int(lengths[0])
        if length > limit:
            why = f"too large: {length / 1e6:.1f} MB; at most {limit / 1e6:.1f} MB are taken"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, why)
        body = bytearray()
        deadline = time.monotonic() + UPLOAD_SECONDS
        while len(body) < length:
            try:
                part = self.rfile.read1(min(length - len(body), 1 << 16))
            except TimeoutError:
                part = None
            if part is None or time.monotonic() > deadline:
                raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request did not come in time")
            if not part:
                raise Refusal(HTTPStatus.BAD_REQUEST, "the request was cut off")
            body += part
        return bytes(body)

    def _refuse(self, status: HTTPStatus, why: str = "") -> None:
        if why:
            self._send_json(status, {"error": why})
        else:
            self._send(status, b"", "text/plain")
        # A browser reads the answer when it has sent its whole request, and would lose it if the
        # connection were closed before.
        deadline = time.monotonic() + IDLE_SECONDS
        with suppress(OSError):  # it went away, or is too slow
            self.connection.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and self.connection.recv(1 << 16):
                pass

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        body = json.dumps(value, allow_nan=False).encode()
        self._send(status, body, "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, cookie: str = "") -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(body)


def _listen(port: int | None, runs: Runs, samples: Sequence[tuple[bytes, str]]) -> Server:
    try:
        return Server(PORT if port is None else port, runs, samples)
    except (OSError, OverflowError) as error:
        if port is not None:
            why = error.strerror if isinstance(error, OSError) else str(error)
            fix = "name another one, or 0 for any that is free"
            raise UserError(f"--port {port}: {why}; {fix}") from None
        print(f"port {PORT} is taken; this is another one")
        return Server(0, runs, samples)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vqa_repro.serve", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        required=True,
        help="a run folder; give it twice to compare two runs side by side",
    )
    parser.add_argument("--weights", type=Path, help="the backbone's checkpoint, if not seeded")
    parser.add_argument(
        "--port",
        type=int,
        help=f"by default {PORT}, or a free one where it is taken; 0: a free one",
    )
    add_device_option(parser)
    args = parser.parse_args(arguments)
    # Pillow only warns of pictures up to twice its limit, which take half a gigabyte to decode.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends it as Ctrl-C does
    predictors = [vqa_repro.load(f, device=args.device, weights=args.weights) for f in args.run]
    runs = Runs(predictors)
    with _listen(args.port, runs, samples(args.run)) as server:
        print(f"on {describe(predictors[0].device)}:")
        for predictor in predictors:
            print(f"  {predictor.run.folder}  {predictor.run.recipe.title}")
        path = f"/?token={server.token}"
        print(f"open http://127.0.0.1:{server.port}{path}")
        print(*tunnel_lines(server.port, path), "Ctrl-C stops it", sep="\n", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    print("stopped", flush=True)
    # At once: a thread that is still computing in torch would crash the interpreter's own end.
    os._exit(0)


if __name__ == "__main__":
    main_guard(main)
