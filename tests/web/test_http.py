"""The server of serve, over real HTTP: tokens, refusals, limits."""

import io
import json
import socket
import zlib
from typing import Any

import numpy as np
import pytest
from conftest import LIMIT
from PIL import Image
from serving import Served, upload

from vqa_repro.web.server import IMAGE_BYTES, JSON_BYTES, QUESTION_CHARACTERS, texts


def test_unread_words_of_a_long_question_are_reported(served: Served, photo: bytes) -> None:
    payload = served.question(upload(served, photo), "is " * 26 + "it red?")
    _, content, _ = served.ask("POST", "/answers", payload)
    for run in json.loads(content)["runs"]:
        assert len(run["words"]) == 26 and run["unread_words"] == ["it", "red", "?"]


PATHS = ("/", "/runs", "/samples/0", "/images", "/answers", "/nothing", "/favicon.ico")


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "BREW"])
@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_every_path_is_forbidden(served: Served, method: str, path: str) -> None:
    wrong = [None, "", "Bearer", "Bearer ", f"Bearer {served.token[:-1]}", f"Basic {served.token}"]
    wrong += [served.token, f"Bearer {served.token}x", "Bearer \xe9"]
    for authorization in wrong if method in ("GET", "POST") else wrong[:1]:
        body = b"{}" if method == "POST" else None
        status, content, _ = served.ask(method, path, body, Authorization=authorization)
        assert status == 403, authorization
        if (method, path) == ("GET", "/"):
            assert is_token_page(content, served)
        else:
            assert content == b"", authorization


def is_token_page(body: bytes, served: Served) -> bool:
    """Return whether this is the page that explains the URL, free of the server's secrets."""
    return b"--token FILE" in body and b"<script" not in body and served.token.encode() not in body


def test_the_token_in_the_url_opens_only_the_page(served: Served) -> None:
    status, page, headers = served.ask("GET", f"/?token={served.token}", Authorization=None)
    assert status == 200 and b"<!doctype html>" in page
    assert served.token.encode() not in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Server"] is None
    wrong = (
        "/?token=",
        "/?token=%00",
        "/?token=%ff",
        f"/?token={served.token}x",
        "/?tok=1",
        "//?token=x",
    )
    for path in wrong:
        status, body, _ = served.ask("GET", path, Authorization=None)
        assert status == 403 and is_token_page(body, served)
    for path in (f"/runs?token={served.token}", f"//runs?token={served.token}"):
        assert served.ask("GET", path, Authorization=None)[:2] == (403, b"")
    # Reloading: the page's cookie gives the page again, and nothing else.
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and served.token not in cookie
    pair = f"other=1; {cookie.split(';')[0]}"
    assert served.ask("GET", "/", Authorization=None, Cookie=pair)[1] == page
    assert served.ask("GET", "/runs", Authorization=None, Cookie=pair)[:2] == (403, b"")
    assert served.ask("GET", "/", Authorization=None, Cookie=pair[:-1])[0] == 403
    chinese = served.ask("GET", "/", Authorization=None, Accept_Language="zh-CN,en;q=0.5")
    assert texts()["zh"]["token_title"].encode() in chinese[1]


def test_requests_for_other_host_names_are_forbidden(served: Served) -> None:
    for host in (
        "attacker.example",
        "127.0.0.1.attacker.example",
        "0.0.0.0",
        "",
        None,
        "localhost:x",
    ):
        assert served.ask("GET", "/runs", Host=host)[:2] == (403, b"")
    for host in ("localhost:1234", "127.0.0.1", "LOCALHOST"):  # a tunnel may change the port
        assert served.ask("GET", "/runs", Host=host)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../recipe.json",
        "/samples/../../recipe.json",
        "/samples/..%2f..%2frecipe.json",
        "/samples/%2e%2e/recipe.json",
        "//etc/passwd",
        "/samples/0%00.jpg",
        "/samples/0/",
        "/samples/-1",
        "/samples/1e3",
        "/samples/\u0661".encode().decode("latin-1"),
        "/samples/99999999999999999999",
        "/page/page.js",
        "http://[",
        "http://127.0.0.1/runs",
    ],
)
def test_paths_outside_the_api_are_refused(served: Served, path: str) -> None:
    text = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n\r\n"
    status, body = raw(served, text.encode("latin-1"))
    assert (status, body) == (403, b"") if path == "http://[" else status == 404


def raw(served: Served, request: bytes) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=LIMIT) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def test_malformed_http_is_refused(served: Served) -> None:
    for request in (
        b"\0\xff\xfe\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
    ):
        # Before Python 3.15 the answer is HTTP/0.9's, which has no status line.
        assert raw(served, request) in ((0, b""), (403, b""))
    assert raw(served, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n") == (403, b"")
    many = b"".join(b"X-%d: 1\r\n" % n for n in range(200))
    assert raw(served, b"GET / HTTP/1.1\r\n" + many + b"\r\n") == (403, b"")


def png(width: int, height: int) -> bytes:
    """Return a small PNG that claims to hold that many pixels."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    chunks = ((b"IHDR", size + b"\x08\x02\0\0\0"), (b"IDAT", zlib.compress(bytes(9999))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


def test_files_that_are_not_images_are_refused_with_the_reason(served: Served) -> None:
    cases = {
        "not an image in a supported format": [b"", b"hello", b"%PDF-1.7", encoded("TIFF")],
        "not a readable image": [encoded("JPEG")[:900], encoded("PNG")[:3000]],
        "too many pixels": [png(10_000, 9_000), png(20_000, 20_000)],
    }
    assert encoded("EPS").startswith(b"%!PS")  # Pillow passes these to another program
    cases["not an image in a supported format"].append(encoded("EPS"))
    for why, pictures in cases.items():
        for picture in pictures:
            status, content = served.refusal("POST", "/images", picture)
            assert status == 422 and why in content, (picture[:20], content)
            assert "/" not in content and "0x" not in content, "a path, or an object's address"
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        upload(served, encoded(kind))


def test_oversized_requests_are_refused_before_reading(served: Served) -> None:
    too_large = served.refusal("POST", "/images", Content_Length=str(IMAGE_BYTES + 1))
    assert too_large[0] == 413 and "21.0 MB" in too_large[1]
    assert served.refusal("POST", "/images", Content_Length="9" * 15)[0] == 413
    assert served.refusal("POST", "/answers", Content_Length=str(JSON_BYTES + 1))[0] == 413
    assert served.refusal("POST", "/images")[0] == 411
    assert served.refusal("POST", "/images", Transfer_Encoding="chunked")[0] == 411
    for length in ("-1", "x", "1.5", "9" * 5000, "\xb2"):
        assert served.refusal("POST", "/images", Content_Length=length)[0] == 400
    # A client that sends it anyway can still read the answer.
    status, why = served.refusal("POST", "/images", bytes(IMAGE_BYTES + 5_000_000))
    assert status == 413 and "26.0 MB" in why


def test_a_request_that_is_cut_off_is_refused(served: Served) -> None:
    head = f"POST /images HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n"
    status, body = raw(served, f"{head}Content-Length: 100\r\n\r\nabc".encode())
    assert status == 400 and b"cut off" in body


@pytest.mark.slow  # waits for the server's time limit
def test_a_stalled_client_is_disconnected(served: Served) -> None:
    head = f"POST /images HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {served.token}\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=LIMIT) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        assert connection.recv(100).split()[1] == b"408"
    with socket.create_connection(("127.0.0.1", served.port), timeout=LIMIT) as connection:
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 10_000,
        b"null",
        b"[]",
        b"{}",
        b'{"image": 1, "question": "is it red?"}',
        b'{"image": "a", "question": ["is it red?"]}',
        b'{"image": "a", "question": null}',
    ],
)
def test_malformed_questions_are_refused(served: Served, body: bytes) -> None:
    status, why = served.refusal("POST", "/answers", body)
    assert status == 400 and why


def test_questions_that_cannot_be_answered_are_refused(served: Served, photo: bytes) -> None:
    name = upload(served, photo)

    def refusal(picture: str, question: str) -> Any:
        return served.refusal("POST", "/answers", served.question(picture, question))

    assert refusal(name, "  ")[0] == 422 and "empty" in refusal(name, "")[1]
    assert str(QUESTION_CHARACTERS) in refusal(name, "a" * (QUESTION_CHARACTERS + 1))[1]
    assert refusal("../../etc/passwd", "is it red?")[0] == 410
    for odd in ("\0", "\ud800", "\u202e?", "a" * QUESTION_CHARACTERS, "颜色"):
        assert served.ask("POST", "/answers", served.question(name, odd))[0] == 200


def test_only_the_latest_images_are_kept(served: Served, photo: bytes) -> None:
    first = upload(served, photo)
    for shade in range(8):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (shade, 0, 0)).save(buffer, "PNG")
        last = upload(served, buffer.getvalue())
    status, why = served.refusal("POST", "/answers", served.question(first, "is it red?"))
    assert status == 410 and "upload it again" in why
    assert served.ask("POST", "/answers", served.question(last, "is it red?"))[0] == 200
    assert upload(served, photo) == first
    assert served.ask("POST", "/answers", served.question(first, "is it red?"))[0] == 200
