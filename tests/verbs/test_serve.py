"""python -m vqa_repro.serve: over real HTTP, and in a real browser where there is one."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from accessibility import unreachable, violations
from conftest import LIMIT, environ, run_verb
from PIL import Image

import vqa_repro
from vqa_repro.evaluation import examples
from vqa_repro.web.server import IMAGE_BYTES, JSON_BYTES, QUESTION_CHARACTERS, texts


class Served(NamedTuple):
    process: "subprocess.Popen[str]"
    output: str
    port: int
    token: str

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> tuple[int, bytes, Any]:
        """Return (status, body, headers) of a request with token and valid Host unless changed."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        length = None if body is None else str(len(body))
        standard = {
            "Host": f"127.0.0.1:{self.port}",
            "Authorization": f"Bearer {self.token}",
            "Content-Length": length,
        }
        changed = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in (standard | changed).items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers

    def refusal(self, method: str, path: str, body: Any = None, **headers: str | None) -> Any:
        """Return (status, reason)."""
        status, content, _ = self.ask(method, path, body, **headers)
        return status, json.loads(content)["error"]

    def question(self, picture: str, question: Any) -> bytes:
        return json.dumps({"image": picture, "question": question}).encode()


def start(*arguments: object, cwd: Path, program: str = "") -> Served:
    program_arguments = ["-c", program] if program else ["-m", "vqa_repro.serve"]
    process = subprocess.Popen(
        [sys.executable, *program_arguments, *map(str, arguments)],
        cwd=cwd,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("Ctrl-C"):
            break
    url = re.search(r"open http://127\.0\.0\.1:(\d+)/\?token=(\S+)", output)
    assert url, output + process.communicate()[1]
    return Served(process, output, int(url[1]), url[2])


def stop(served: Served, number: signal.Signals = signal.SIGTERM) -> tuple[str, str]:
    served.process.send_signal(number)
    return served.process.communicate(timeout=LIMIT)


@pytest.fixture(scope="module")
def unfinished(finished_hiecoatt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unfinished") / "hiecoatt"
    shutil.copytree(finished_hiecoatt, run)
    (run / "metrics.json").unlink()
    return run


@pytest.fixture(scope="module")
def served(finished: Path, unfinished: Path) -> Iterator[Served]:
    runs = (finished, unfinished)
    started = start(*runs, "--device", "cpu", "--port", 0, cwd=finished)
    yield started
    _, errors = stop(started)
    assert errors == "", "requests are not logged, and none made the server fail"
    assert started.process.returncode == 0


@pytest.fixture(scope="module")
def photo(drawn_folder: Path) -> bytes:
    return (drawn_folder / "images" / "1.png").read_bytes()


def upload(served: Served, picture: bytes) -> str:
    status, content, _ = served.ask("POST", "/images", picture)
    assert status == 200, content
    name = json.loads(content)["image"]
    assert isinstance(name, str)
    return name


def test_it_prints_its_url_and_the_tunnel(served: Served) -> None:
    port = served.port
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in served.output
    assert "Ctrl-C stops it" in served.output and "CPU" in served.output
    assert served.output.count("not finished: epoch 12 of 12") == 1


def test_every_run_answers_as_it_does_in_python(
    served: Served, finished: Path, finished_hiecoatt: Path, photo: bytes
) -> None:
    name = upload(served, photo)
    for question in ("what color is it?", "is it a ZEBRA?"):
        status, content, _ = served.ask("POST", "/answers", served.question(name, question))
        assert status == 200
        output = json.loads(content)
        assert 0 < output["seconds"] < LIMIT
        for run, answer in zip((finished, finished_hiecoatt), output["runs"], strict=True):
            expected = vqa_repro.load(run, device="cpu").predict(photo, question).to_json()
            assert answer["words"] == expected["words"]
            assert answer["unknown_words"] == expected["unknown_words"]
            texts = [a["answer"] for a in answer["answers"]]
            assert texts == [a["answer"] for a in expected["answers"]]
            for got, wanted in zip(answer["answers"], expected["answers"], strict=True):
                assert got["probability"] == pytest.approx(wanted["probability"], abs=1e-5)
            assert answer["attention"].keys() == expected["attention"].keys()
            for at, weights in answer["attention"].items():
                assert weights == pytest.approx(expected["attention"][at], abs=1e-5)


def test_unread_words_of_a_long_question_are_reported(served: Served, photo: bytes) -> None:
    payload = served.question(upload(served, photo), "is " * 26 + "it red?")
    _, content, _ = served.ask("POST", "/answers", payload)
    for run in json.loads(content)["runs"]:
        assert len(run["words"]) == 26 and run["unread_words"] == ["it", "red", "?"]


def test_the_samples_are_those_of_the_gallery(served: Served, finished: Path) -> None:
    _, content, _ = served.ask("GET", "/runs")
    facts = json.loads(content)
    kept = examples.read(finished)
    assert kept and len(facts["runs"]) == 2
    listed = [kept.records[i] for i in kept.lists["sample"]]
    assert facts["samples"] == [{"question": r.question, "answer": r.label} for r in listed] != []
    assert all(run["answers"] == 5 and run["data"] == "drawn data0" for run in facts["runs"])
    status, jpeg, headers = served.ask("GET", "/samples/1")
    assert status == 200 and headers["Content-Type"] == "image/jpeg"
    assert listed[1].picture and jpeg == kept.images[listed[1].picture]
    assert served.refusal("GET", f"/samples/{len(listed)}")[0] == 404


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_starting_and_stopping(number: signal.Signals, finished: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_verb("serve", finished, "--port", port, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"--port {port}: " in done.stderr and "in use" in done.stderr
    first = start(finished, "--port", port, cwd=tmp_path)
    with socket.socket() as everywhere:  # another address of the machine
        everywhere.settimeout(5)
        with pytest.raises(OSError):
            everywhere.connect(("127.0.0.2", port))
    assert first.ask("GET", "/runs")[0] == 200
    out, errors = stop(first, number)
    assert (first.process.returncode, out, errors) == (0, "stopped\n", "")
    assert os.listdir(tmp_path) == [], "nothing is written"


def test_a_token_file_keeps_the_url(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    tokens = []
    for _ in range(2):
        started = start(finished, "--device", "cpu", "--port", 0, "--token", file, cwd=tmp_path)
        tokens.append(started.token)
        assert started.ask("GET", "/runs")[0] == 200
        stop(started)
    assert tokens[0] == tokens[1] == file.read_text().strip()
    assert file.stat().st_mode & 0o077 == 0
    file.write_text("short")
    done = run_verb("serve", finished, "--token", file, cwd=tmp_path)
    assert done.returncode == 2 and str(file) in done.stderr and done.stderr.count("\n") == 1


def test_it_stops_cleanly_during_a_computation(
    finished: Path, tmp_path: Path, photo: bytes
) -> None:
    busy = start("--run", finished, "--device", "cpu", "--port", 0, cwd=tmp_path)
    payload = busy.question(upload(busy, photo), "is it red? " * 20)
    answers = []

    def keep_asking() -> None:
        with suppress(OSError, HTTPException):  # until it has ended
            while True:
                answers.append(busy.ask("POST", "/answers", payload)[0])

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(answers) < 8:
        time.sleep(0.01)
    assert stop(busy) == ("stopped\n", "") and busy.process.returncode == 0
    for thread in threads:
        thread.join()
    assert set(answers) == {200}


STOPPED_AT_A_REQUEST = """
import os, signal, time
from vqa_repro import serve
from vqa_repro.utils.errors import main_guard
from vqa_repro.web.server import Server

process_request, leave = Server.process_request, os._exit

def stop_at_once(self, request, address):
    process_request(self, request, address)
    os.kill(os.getpid(), signal.SIGTERM)

def leave_late(code):
    time.sleep(2)
    leave(code)

Server.process_request, os._exit = stop_at_once, leave_late
main_guard(serve.main)
"""


def test_a_stop_leaves_a_request_its_connection(finished: Path, tmp_path: Path) -> None:
    arguments = (finished, "--device", "cpu", "--port", 0)
    stopping = start(*arguments, cwd=tmp_path, program=STOPPED_AT_A_REQUEST)
    assert stopping.ask("GET", "/runs")[0] == 200
    assert stopping.process.communicate(timeout=LIMIT) == ("stopped\n", "")
    assert stopping.process.returncode == 0


def test_runs_that_cannot_be_served_are_one_clear_line(finished: Path, tmp_path: Path) -> None:
    for arguments in ((tmp_path,), ("--run", finished, "--port", 99_999)):
        done = run_verb("serve", *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# ---------------------------------------------------------------- the page, in a browser


@pytest.fixture
def page(browser: Any, served: Served) -> Iterator[Any]:
    """Open the page with the printed URL; errors in the browser's console fail the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, locale="en-US")
    opened = context.new_page()
    opened.set_default_timeout(1000 * LIMIT)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda line: complaints.append(line.text) if "status of 4" not in line.text else None,
    )
    opened.goto(f"http://127.0.0.1:{served.port}/?token={served.token}")
    opened.wait_for_selector("#samples button")
    yield opened
    context.close()
    assert complaints == []


def answered(page: Any) -> str:
    """Return what a screen reader announces once the answers have arrived."""
    return shows(page, "[role=status]", " ms)")


def shows(page: Any, selector: str, text: str) -> str:
    """Wait until an element contains ``text``; return its whole text."""
    page.locator(selector).filter(has_text=text).wait_for()
    return str(page.inner_text(selector))


DROP = """([name, size]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(size)], name));
  document.body.dispatchEvent(
    new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.mark.slow
def test_choosing_an_image_typing_and_viewing_attention(
    page: Any, served: Served, drawn_folder: Path
) -> None:
    assert page.url == f"http://127.0.0.1:{served.port}/", "the token left the address bar"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", drawn_folder / "images" / "1.png")
    page.keyboard.press("Tab")
    page.keyboard.type("what color is the zebra?")
    page.keyboard.press("Enter")
    announced = answered(page)
    assert page.locator(".run").count() == 2
    first = page.locator(".run").first
    best = first.locator(".bars li").first.inner_text().split("\n")
    assert best[0] in announced and best[1].endswith("%")
    assert "zebra" in first.locator(".note").inner_text()
    notes = page.locator(".run").nth(1).locator(".note").all_inner_texts()
    assert "not finished (epoch 12 of 12)" in notes[0]

    # Hovering over a region; then the same by keyboard.
    first.locator("[role=gridcell]").nth(6).hover()
    hovered = first.locator(".readout").inner_text()
    assert re.fullmatch(r"row 2, column 3: [\d.]+% of the attention, [\d.]+ times uniform", hovered)
    first.locator("[role=gridcell][tabindex='0']").focus()
    for key in ("Control+Home", "ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert first.locator(".readout").inner_text() == hovered
    weight = re.findall(r"[\d.]+%", hovered)[0]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith(f"{weight}, ") and label.endswith("row 2, column 3")

    # The next hop, by keyboard.
    before = cell_weights(first)
    first.get_by_label("Hop 1").focus()
    page.keyboard.press("ArrowRight")
    assert first.get_by_label("Hop 2").is_checked() and cell_weights(first) != before
    page.get_by_label("as regions").focus()
    page.keyboard.press("Space")
    assert first.locator(".stage canvas").evaluate("c => [c.width, c.height]") == [4, 4]

    # HieCoAtt: levels, and words with their weights.
    second = page.locator(".run").nth(1)
    words = second.locator(".words li").all_inner_texts()
    assert [word.split()[0] for word in words] == ["what", "color", "is", "the", "zebra", "?"]
    second.locator(".words li").nth(1).hover()
    assert "“color”" in second.locator(".readout").inner_text()
    second.get_by_label("Question level").focus()
    page.keyboard.press("Space")
    assert second.locator(".words li").all_inner_texts() != words

    # A share that rounds to all is not shown as all.
    shown = page.evaluate("[0.452, 0.9998, 1].map(percent)")
    assert shown == ["45.2%", "99.98%", "100.0%"]

    # The page again without the token in the URL, and without any token.
    page.reload()
    page.wait_for_selector("#samples button")
    page.evaluate("sessionStorage.clear()")
    page.reload()
    shows(page, "[role=alert]", "Open the URL that the server printed")


def cell_weights(run: Any) -> list[str]:
    cells = run.locator("[role=gridcell]")
    return [str(text) for text in cells.evaluate_all("all => all.map((one) => one.ariaLabel)")]


@pytest.mark.slow
def test_samples_fill_in_their_question_and_errors_are_shown(page: Any, served: Served) -> None:
    page.locator("#samples button").nth(2).click()
    answered(page)
    assert page.input_value("#question") != ""
    assert page.locator("#samples button[aria-pressed=true]").count() == 1
    assert page.inner_text("#true-answer").startswith("True answer: ")
    with page.expect_download() as download:
        page.locator("button.save").first.click()
    with Image.open(download.value.path()) as figure:
        assert figure.format == "PNG" and figure.width == 640
    page.fill("#question", " ")
    page.keyboard.press("Enter")
    assert "empty" in page.inner_text("[role=alert]")
    page.evaluate(DROP, ["huge.png", IMAGE_BYTES + 1])
    assert "huge.png is too large: 21.0 MB" in page.inner_text("[role=alert]")
    page.evaluate(DROP, ["broken.png", 1000])
    shows(page, "[role=alert]", "Refused: not an image")
    page.fill("#question", "is it red?")
    page.keyboard.press("Enter")
    assert "no image yet" in page.inner_text("[role=alert]")
    # The server has dropped the image: the page uploads it again.
    page.locator("#samples button").nth(0).click()
    answered(page)
    for shade in range(8):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 9), (0, shade, 0)).save(buffer, "PNG")
        upload(served, buffer.getvalue())
    page.fill("#question", "is it blue at all?")
    page.keyboard.press("Enter")
    shows(page, "#title-answers", "at all")
    assert page.inner_text("[role=alert]") == ""


@pytest.mark.slow
def test_every_control_has_a_name_and_nothing_is_wider_than_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.locator("#samples button").first.click()
    answered(page)
    tree = page.locator("body").aria_snapshot()
    controls = re.findall(r"- '?(textbox|button|radio|img|group|grid|article|list)\b(.*)", tree)
    assert len(controls) > 10
    unnamed = [(kind, rest) for kind, rest in controls if kind != "list" and '"' not in rest]
    assert unnamed == []
    kinds = [kind for kind, _ in controls]
    assert kinds.count("grid") == 2 and tree.count("- gridcell ") == 2 * 16
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("locale", "title"), [("en", "Ask about"), ("zh-CN", "向图片提问")])
def test_axe_and_the_keyboard_find_nothing_wrong(
    browser: Any, served: Served, drawn_folder: Path, scheme: str, locale: str, title: str
) -> None:
    context = browser.new_context(locale=locale, color_scheme=scheme)
    page = context.new_page()
    address = f"http://127.0.0.1:{served.port}/"
    page.goto(address)
    assert violations(page) == [], "the page without a token"
    page.goto(f"{address}?token={served.token}")
    page.locator("#samples button").first.wait_for()
    assert title in page.inner_text("h1")
    assert violations(page) == [], "before the first question"
    page.fill("#question", "what color is the zebra?")
    page.set_input_files("#file", drawn_folder / "images" / "1.png")
    page.locator("#form button").click()
    page.locator(".run").nth(1).wait_for()
    assert violations(page) == [], "with answers"
    page.evaluate(DROP, ["huge.png", IMAGE_BYTES + 1])
    page.set_viewport_size({"width": 360, "height": 700})
    assert violations(page) == [], "on a phone, with an error"
    assert unreachable(page) == []
    context.close()
