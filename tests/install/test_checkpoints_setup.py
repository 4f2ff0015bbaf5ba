"""checkpoints_setup.py under faults: a misbehaving loopback server, real kills, real full disks.

The command runs in its own process with a small table of checkpoints. After every fault, the target
has the right bytes or is absent.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import LIMIT
from fault_server import LAST_MODIFIED, FaultServer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import checkpoints_setup  # noqa: E402
from vqa_repro.install import checkpoints  # noqa: E402
from vqa_repro.install.errors import InstallError  # noqa: E402

posix_only = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and file modes")

SIZE = 300_000
HALF = SIZE // 2
NO_PROCESS = 2**30  # beyond every system's largest process id


def make_checkpoint(name: str, seed: int, size: int = SIZE) -> tuple[dict[str, object], bytes]:
    data = b"PK\x03\x04\x00" + random.Random(seed).randbytes(size - 5)
    filename = f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    return {"name": name, "filename": filename, "size": size}, data


TOY, DATA = make_checkpoint("toy", 0)
TWIN, TWIN_DATA = make_checkpoint("twin", 1)  # of the same size
ROUGH, ROUGH_DATA = make_checkpoint("rough", 2, SIZE + 3000)  # its size is known only roughly
NAME = str(TOY["filename"])
KNOWN = [TOY, TWIN, {**ROUGH, "size": SIZE + 3100, "tolerance": 1024}]
FILES = {NAME: DATA, str(TWIN["filename"]): TWIN_DATA, str(ROUGH["filename"]): ROUGH_DATA}

WRAPPER = """
import json, os, sys
from vqa_repro.install import checkpoints, checkpoints_command, download, http_client
from vqa_repro.utils.errors import main_guard
settings = json.loads(sys.argv.pop(1))
checkpoints.KNOWN = tuple(checkpoints.Checkpoint(**row) for row in settings.pop("KNOWN"))
if settings.pop("links") == "none":  # as on FAT and exFAT
    def symlink(*_): raise OSError(1, "Operation not permitted")
    os.symlink = symlink
file_limit = settings.pop("file_limit")
if file_limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
for name, value in settings.items():
    (module,) = [m for m in (download, http_client, checkpoints) if hasattr(m, name)]
    setattr(module, name, value)
main_guard(checkpoints_command.main)
"""


class Run:
    """The command in its own process, with `folder` as torch.hub's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / NAME
        self.part = folder / f"{NAME}.part"
        self.env: dict[str, str] = {}
        self.cwd = folder.parents[1]
        self.umask = 0o022
        self.code = -1
        self.out = self.err = ""

    def start(
        self, *args: object, stderr: int = subprocess.PIPE, **settings: object
    ) -> subprocess.Popen[str]:
        defaults = {
            "KNOWN": KNOWN,
            "OFFICIAL": "http://127.0.0.1:1/",  # nothing listens there
            "BACKOFF_S": 0.01,
            "PROGRESS_BYTES": 10_000,
            "links": "real",
            "file_limit": 0,
        }
        env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        env |= {"PYTHONPATH": str(ROOT), "TORCH_HOME": str(self.folder.parents[1]), **self.env}
        argv = [json.dumps(defaults | settings), *map(str, args)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRAPPER, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            errors="replace",
            cwd=self.cwd,
            env=env,
            **({} if os.name == "nt" else {"umask": self.umask}),
        )
        return self.process

    def __call__(self, *args: object, **settings: object) -> int:
        self.start(*args, **settings)
        return self.finish()

    def finish(self) -> int:
        self.out, err = self.process.communicate(timeout=LIMIT)
        self.err = err or ""
        self.code = self.process.returncode
        assert "Traceback" not in self.err, self.err
        return self.code

    def wait_for_part(self, size: int) -> None:
        deadline = time.monotonic() + LIMIT
        while not (self.part.exists() and self.part.stat().st_size >= size):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def others(self) -> set[str]:
        """Return the other files in the folder of the checkpoint."""
        names = {path.name for path in self.folder.iterdir()}
        return names - {NAME, f".{NAME}.verified.json"}

    def assert_right(self) -> None:
        assert (self.code, self.err.count("error:")) == (0, 0), self.err
        assert self.target.read_bytes() == DATA
        assert self.others() == set()

    def assert_nothing(self, code: int, *message: str) -> None:
        """Assert that the target is absent and the last line names the error and the fix."""
        assert self.code == code, self.err
        assert not os.path.lexists(self.target)
        for words in message:
            assert words in self.err
        assert self.err.splitlines()[-1].startswith("error: ")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "hub" / "checkpoints")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(dict(FILES)) as server:
        yield server


def begins(server: FaultServer) -> list[int]:
    """Return the first byte that each request asked for."""
    return [int(a.range[6:-1]) if a.range else 0 for a in server.log]


# ---------------------------------------------------------------- network faults

SHORT_STALL = {"args": ["--timeout", "0.5"], "ATTEMPTS": 2}
SHORT_DRIP = {"DRIP_WINDOW_S": 0.5, "DRIP_FLOOR": 20_000, "ATTEMPTS": 2}
BOUNDED_WAIT = {"RETRY_AFTER_MAX_S": 0.51}

RECOVERED = [  # fault, first bytes of the requests, part of the message, settings
    ("honest", [0], "", {}),
    ("chunked", [0], "", {}),
    ("labelled_text", [0], "", {}),
    ("redirected", [0, 0], "", {}),
    ("drop_half_once", [0, HALF], "ended at 150,000 of 300,000 bytes", {}),
    ("drop_half_chunked_once", [0, HALF], "IncompleteRead", {}),
    ("drop_half_unannounced_once", [0, HALF], "ended at 150,000", {}),
    ("drop_often", [n * (SIZE // 7) for n in range(8)], "ended at", {}),
    ("reset_once", [0, 0], "trying again", {}),
    ("empty_reply_once", [0, 0], "trying again", {}),
    ("garbage_status_once", [0, 0], "trying again", {}),
    ("ignores_range", [0, HALF], "", {}),
    ("range_from_elsewhere", [0, HALF, 0], "did not send the requested part", {}),
    ("range_with_wrong_total", [0, HALF, 0], "did not send the requested part", {}),
    ("range_unsaid", [0, HALF, 0], "did not send the requested part", {}),
    ("range_garbled", [0, HALF, 0], "did not send the requested part", {}),
    ("range_of_unknown_total", [0, HALF], "", {}),
    ("range_refused", [0, HALF, 0], "did not send the requested part", {}),
    ("etag_changes", [0, HALF], "", {}),
    ("etag_is_weak", [0, HALF], "", {}),
    ("no_validators", [0, HALF], "", {}),
    ("stall_once", [0, HALF], "nothing came for 0.5 s", SHORT_STALL),
    ("stall_before_answering_once", [0, 0], "nothing came for 0.5 s", SHORT_STALL),
    ("drip_once", None, "bytes came in", SHORT_DRIP),
    ("busy_once", [0, 0], "busy or broken (503); trying again in 1 s", {}),
    ("busy_until_date_once", [0, 0], "(503); trying again in 1 s", BOUNDED_WAIT),
    ("busy_with_garbled_date_once", [0, 0], "(503); trying again in 0 s", {}),
    ("busy_for_a_year_once", [0, 0], "(503); trying again in 1 s", BOUNDED_WAIT),
    ("too_many_requests_once", [0, 0], "(429); trying again in 1 s", BOUNDED_WAIT),
    ("broken_once", [0, 0], "busy or broken (500)", {}),
    ("flipped_once", [0, 0], "wrong bytes", {}),
]


@pytest.mark.parametrize(
    ("fault", "expected", "message", "settings"), RECOVERED, ids=[row[0] for row in RECOVERED]
)
def test_recovers(
    run: Run,
    server: FaultServer,
    fault: str,
    expected: list[int] | None,
    message: str,
    settings: dict[str, object],
) -> None:
    settings = dict(settings)
    args = settings.pop("args", [])
    assert isinstance(args, list)
    run("toy", "--from", server.url(fault), *args, **settings)
    run.assert_right()
    assert message in run.err
    assert {a.method for a in server.log} == {"GET"}  # HEAD is often refused
    assert expected is None or begins(server) == expected


GIVEN_UP = [  # fault, exit code, part of the message, settings
    ("drop_always_at_half", 3, "given up after 5 tries", {}),
    ("stall_always", 3, "nothing came for 0.5 s", SHORT_STALL),
    ("drip", 3, "bytes came in", SHORT_DRIP),
    ("busy_always", 3, "busy or broken (503); given up", {}),
    ("forbidden", 3, "(403)", {}),
    ("missing", 3, "(404)", {}),
    ("needs_password", 3, "(401)", {}),
    ("proxy_password", 3, "(407)", {}),
    ("teapot", 3, "status 418", {}),
    ("unasked_piece", 3, "status 206", {}),
    ("empty_body", 3, "its answer is empty; given up", {}),
    ("redirected_in_circle", 3, "in a circle", {}),
    ("redirected_to_file", 3, "to no web address", {}),
    ("redirected_to_ftp", 3, "away from http, to ftp://", {}),
    ("redirected_to_nonsense", 3, "garbled", {}),
    ("redirected_to_login", 3, "login page?", {}),
    ("login_page", 3, "login page?", {}),
    ("login_page_unlabelled", 3, "login page?", {}),
    ("json_error_unannounced", 3, "login page?", {}),
    ("gzipped", 3, "compressed", {}),
    ("flipped", 4, "wrong bytes from every source", {}),
    ("other_length", 4, "another file, of 299,999 bytes", {}),
    ("longer_unannounced", 4, "more than the 300,000 bytes", {}),
    ("endless_chunks", 4, "more than the 300,000 bytes", {}),
    ("announces_less", 4, "another file, of 150,000 bytes", {}),
    ("announces_more", 4, "another file, of 600,000 bytes", {}),
]


@pytest.mark.parametrize(
    ("fault", "code", "message", "settings"), GIVEN_UP, ids=[row[0] for row in GIVEN_UP]
)
def test_gives_up_with_a_clear_error(
    run: Run, server: FaultServer, fault: str, code: int, message: str, settings: dict[str, object]
) -> None:
    settings = dict(settings)
    args = settings.pop("args", [])
    assert isinstance(args, list)
    run("toy", "--from", server.url(fault), *args, **settings)
    run.assert_nothing(code, message, "python checkpoints_setup.py toy --from")
    assert "secret" not in run.err and "\x1b" not in run.err


def test_a_login_page_keeps_the_partial_download(run: Run, server: FaultServer) -> None:
    run("toy", "--from", server.url("login_page_on_resume"), ATTEMPTS=2)
    run.assert_nothing(3, "login page?")
    assert run.part.read_bytes() == DATA[:HALF]
    run("toy", "--from", server.url())
    run.assert_right()
    assert begins(server) == [0, HALF, HALF]


@pytest.mark.parametrize(
    ("fault", "validator"),
    [
        ("ignores_range", '"v1"'),
        ("etag_is_weak", LAST_MODIFIED),  # RFC 9110 allows If-Range only strong ETags
        ("no_validators", None),
    ],
)
def test_resuming_names_the_version_it_continues(
    run: Run, server: FaultServer, fault: str, validator: str | None
) -> None:
    run("toy", "--from", server.url(fault))
    run.assert_right()
    assert [a.if_range for a in server.log] == [None, validator]


def test_a_checkpoint_of_roughly_known_size(run: Run, server: FaultServer) -> None:
    for fault in ("drop_half_once", "drop_half_unannounced_once"):
        run("rough", "--from", server.url(fault))
        assert run.code == 0
        assert (run.folder / str(ROUGH["filename"])).read_bytes() == ROUGH_DATA
        shutil.rmtree(run.folder)
    run.folder.mkdir()
    part = run.folder / f"{ROUGH['filename']}.part"
    part.write_bytes(ROUGH_DATA)  # complete but not known to be: the server answers 416
    run("rough", "--from", server.url())
    assert run.code == 0 and begins(server)[-1] == len(ROUGH_DATA)


@pytest.mark.parametrize("junk", [b"", b"junk" * 1000, DATA[:-1] + b"x", DATA + b"x"])
def test_a_junk_part_is_replaced(run: Run, server: FaultServer, junk: bytes) -> None:
    run.folder.mkdir(parents=True)
    run.part.write_bytes(junk)
    run("toy", "--from", server.url())
    run.assert_right()


@pytest.mark.parametrize(
    "notes",
    ["", "[]", "[" * 100_000, '{"url": "URL", "validator": "a\\r\\nX-Bad: 1"}', '{"length": []}'],
)
def test_junk_notes_are_ignored(run: Run, server: FaultServer, notes: str) -> None:
    run.folder.mkdir(parents=True)
    run.part.write_bytes(DATA[:HALF])
    run.part.with_name(f"{NAME}.part.json").write_text(notes.replace("URL", server.url() + NAME))
    run("toy", "--from", server.url())
    run.assert_right()
    assert begins(server) == [HALF]


# ---------------------------------------------------------------- sources


def test_sources_are_tried_in_turn(run: Run, server: FaultServer) -> None:
    run.env["VQA_CHECKPOINT_MIRRORS"] = f"{server.url('forbidden')} {server.url('flipped')}"
    run("toy", "--mirror", server.url("missing"), OFFICIAL=server.url("honest"))
    run.assert_right()
    tried = [a.target.split("/")[1] for a in server.log]
    assert tried == ["missing", "forbidden", "flipped", "flipped", "honest"]


def test_a_wrong_and_a_missing_source_end_as_unavailable(run: Run, server: FaultServer) -> None:
    run("toy", "--mirror", server.url("flipped"), OFFICIAL=server.url("missing"))
    run.assert_nothing(3, "(404)", "wrong")


def test_a_checkpoint_published_elsewhere_is_fetched_there(run: Run, server: FaultServer) -> None:
    known = [{**TOY, "base": server.url("honest")}]
    run("toy", "--mirror", server.url("missing"), KNOWN=known)
    run.assert_right()
    assert [a.target.split("/")[1] for a in server.log] == ["missing", "honest"]
    run("toy", "--verify", KNOWN=known)
    run.assert_right()
    run.target.unlink()
    run("toy", "--offline", KNOWN=known)
    run.assert_nothing(3, f"download {server.url('honest')}{NAME} (")


def test_another_mirror_continues_the_part(run: Run, server: FaultServer) -> None:
    run(
        "toy",
        *("--mirror", server.url("drop_always_at_half"), "--mirror", server.url()),
        ATTEMPTS=1,
    )
    run.assert_right()
    assert begins(server) == [0, HALF]
    assert server.log[1].if_range is None  # the ETag belongs to another server


def test_a_part_of_wrong_bytes_from_one_mirror_is_replaced_by_another(
    run: Run, server: FaultServer
) -> None:
    server.files[NAME] = b"PK\x03\x04" + bytes(SIZE - 4)
    run("toy", "--from", server.url("drop_always_at_half"), ATTEMPTS=1)
    server.files[NAME] = DATA
    run("toy", "--mirror", server.url())
    run.assert_right()
    assert begins(server)[-2:] == [HALF, 0]


def test_from_a_url_of_any_name(run: Run, server: FaultServer) -> None:
    server.files["some%20file%20%C3%BC"] = DATA
    run("toy", "--from", f"{server.url()}some file ü")
    run.assert_right()


def test_name_not_resolved(run: Run) -> None:
    run("toy", "--from", "http://no-such-host.invalid/x.pth")
    run.assert_nothing(3, "host name cannot be resolved")


def test_connection_refused(run: Run) -> None:
    run("toy")
    run.assert_nothing(3, "refused", "given up after 5 tries")


def test_offline_sends_no_request(run: Run, server: FaultServer) -> None:
    run.env["VQA_CHECKPOINT_MIRRORS"] = server.url()
    run("toy", "--offline", OFFICIAL=server.url())
    run.assert_nothing(3, f"scp {NAME}", f"python checkpoints_setup.py toy --from {NAME}")
    assert server.log == []


# ---------------------------------------------------------------- proxies, TLS, passwords


def test_proxy_is_used_and_no_proxy_honoured(run: Run, server: FaultServer) -> None:
    run.env["http_proxy"] = f"http://{server.address}"
    run("toy", "--from", f"http://files.invalid/honest/{NAME}")
    run.assert_right()
    assert [a.target for a in server.log] == [f"http://files.invalid/honest/{NAME}"]
    shutil.rmtree(run.folder)
    run.env |= {"http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"}
    run("toy", "--from", server.url())
    run.assert_right()


def test_proxy_that_refuses(run: Run) -> None:
    run.env["http_proxy"] = "http://user:p%40ss@127.0.0.1:1"
    run("toy", "--from", "http://files.invalid/x.pth")
    run.assert_nothing(3, "refused")
    assert "p%40ss" not in run.err


@pytest.mark.parametrize(
    ("proxy", "fact"),
    [
        ("socks5h://127.0.0.1:1", "SOCKS"),
        ("http:127.0.0.1:1", "http://HOST:3128"),
        ("http://127.0.0.1:99999", "http://HOST:3128"),
        ("http://user:a/b@127.0.0.1:1", "%2F"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(run: Run, proxy: str, fact: str) -> None:
    run.env["http_proxy"] = proxy
    run("toy", "--from", "http://files.invalid/x.pth")
    run.assert_nothing(3, fact)
    assert "http_proxy" in run.err and "trying again" not in run.err


def test_all_proxy_serves_unless_it_is_socks(run: Run, server: FaultServer) -> None:
    run.env["ALL_PROXY"] = "socks5://127.0.0.1:1"
    run("toy", "--from", "http://files.invalid/x.pth")
    run.assert_nothing(3, "all_proxy is a SOCKS proxy")
    run.env["ALL_PROXY"] = f"http://{server.address}"
    run("toy", "--from", f"http://files.invalid/honest/{NAME}")
    run.assert_right()


def test_a_user_without_a_home_is_asked_for_a_folder(tmp_path: Path) -> None:
    other = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if shutil.which("unshare") is None or subprocess.run([*other, "true"]).returncode:
        pytest.skip("no user namespaces here")
    script = Path(__file__).parents[2] / "checkpoints_setup.py"
    command = [*other, sys.executable, str(script), "--offline"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True)
    assert done.returncode == 2 and "TORCH_HOME" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_wants_a_password(run: Run, server: FaultServer, scheme: str) -> None:
    run.env[f"{scheme}_proxy"] = f"http://{server.address}"
    run("toy", "--from", f"{scheme}://files.invalid/proxy_password/{NAME}")
    run.assert_nothing(3, "proxy asks for a password (407)")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a key and a self-signed certificate for 127.0.0.1 in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext "
        "subjectAltName=IP:127.0.0.1 -out cert.pem -keyout key.pem && cat cert.pem key.pem >"
        + file.name,
        shell=True,
        check=True,
        cwd=file.parent,
        stderr=subprocess.DEVNULL,
    )
    return file


def test_private_ca(run: Run, certificate: Path) -> None:
    with FaultServer(dict(FILES), certificate) as server:
        run("toy", "--from", server.url())
        run.assert_nothing(3, "certificate is not trusted", "SSL_CERT_FILE")
        run.env["SSL_CERT_FILE"] = str(certificate)
        run("toy", "--from", server.url("drop_half_once"))
        run.assert_right()
        assert begins(server) == [0, HALF]


def test_https_is_never_left_for_http(run: Run, certificate: Path) -> None:
    run.env["SSL_CERT_FILE"] = str(certificate)
    with FaultServer(dict(FILES), certificate) as server:
        run("toy", "--from", server.url("redirected_to_http"))
    run.assert_nothing(3, "away from https, to http://")


def test_tls_expected_from_a_plain_server(run: Run, server: FaultServer) -> None:
    run("toy", "--from", server.url().replace("http:", "https:"), ATTEMPTS=1)
    run.assert_nothing(3, "the connection failed")


def test_passwords_and_tokens_are_sent_but_never_shown_nor_stored(
    run: Run, server: FaultServer
) -> None:
    def secret(fault: str) -> str:
        return server.url(fault).replace("//", "//user:p%40ss@") + f"{NAME}?token=t0k3n"

    process = run.start("toy", "--json", "--from", secret("slow"))
    run.wait_for_part(SIZE // 10)
    stored = "".join(
        os.readlink(path) if path.is_symlink() else path.read_text("latin-1")
        for path in run.folder.iterdir()
    )
    process.send_signal(signal.SIGINT)
    run.finish()
    written = run.out + run.err
    for fault in ("forbidden", "needs_password"):
        run("toy", "--json", "--from", secret(fault))
        written += run.out + run.err
    run.assert_right()
    assert server.log[0].authorization == "Basic dXNlcjpwQHNz"
    assert "127.0.0.1" in written and "127.0.0.1" in stored
    for hidden in ("p%40ss", "p@ss", "dXNlcjpwQHNz", "t0k3n"):
        assert hidden not in written and hidden not in stored


def test_a_password_is_not_carried_to_another_host(run: Run, server: FaultServer) -> None:
    url = server.url("redirected_to_other_host").replace("//", "//user:p%40ss@")
    run("toy", "--from", url)
    run.assert_right()
    assert [a.authorization is not None for a in server.log] == [True, False]


# ---------------------------------------------------------------- kills and locks


@posix_only
def test_resumes_over_kills(run: Run, server: FaultServer) -> None:
    """Kill at five moments: each run requests only the bytes that are missing."""
    for tenths in (1, 3, 4, 6, 8):
        process = run.start("toy", "--from", server.url("slow"))
        run.wait_for_part(SIZE * tenths // 10)
        process.kill()
        run.finish()
        assert not run.target.exists()
        assert run.part.read_bytes() == DATA[: run.part.stat().st_size]
    run("toy", "--from", server.url("slow"))
    run.assert_right()
    starts = begins(server)
    assert starts[0] == 0 and starts == sorted(set(starts)) and starts[-1] >= SIZE * 8 // 10
    assert {a.if_range for a in server.log[1:]} == {'"v1"'}


def test_notes_that_a_kill_left_half_written_are_removed(run: Run, server: FaultServer) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / f".{NAME}.part.json.2e1vd3ma").write_text('{"url": ')
    run("toy", "--from", server.url())
    run.assert_right()


@posix_only
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_stopped_by_a_signal(
    run: Run, server: FaultServer, sent: signal.Signals, code: int
) -> None:
    process = run.start("toy", "--from", server.url("slow"))
    run.wait_for_part(HALF)
    process.send_signal(sent)
    assert run.finish() == code
    assert re.fullmatch(r"stopped; .* kept in .*\.part; .+\n", run.err)
    run("toy", "--from", server.url())
    run.assert_right()
    assert begins(server)[1] >= HALF


@posix_only
@pytest.mark.parametrize("links", ["real", "none"])
def test_two_at_once_download_once(run: Run, server: FaultServer, links: str) -> None:
    first = run.start("toy", "--from", server.url("paused"), links=links)
    run.wait_for_part(HALF)
    other = Run(run.folder)
    process = other.start("toy", "--from", server.url("paused"), links=links)
    assert process.stderr
    waiting = process.stderr.readline()
    server.resume.set()
    other.finish()
    run.finish()
    run.assert_right()
    other.assert_right()
    assert f" {first.pid} on {socket.gethostname()}, since 20" in waiting
    assert begins(server) == [0]


@posix_only
@pytest.mark.parametrize("links", ["real", "none"])
def test_the_lock_of_a_killed_run_is_taken_over(run: Run, server: FaultServer, links: str) -> None:
    process = run.start("toy", "--from", server.url("slow"), links=links)
    run.wait_for_part(HALF)
    process.kill()
    run.finish()
    run("toy", "--from", server.url(), "--lock-wait", "5", links=links)
    run.assert_right()


@posix_only
@pytest.mark.parametrize("links", ["real", "none"])
def test_waiting_ends(run: Run, server: FaultServer, links: str) -> None:
    first = run.start("toy", "--from", server.url("paused"), links=links)
    run.wait_for_part(HALF)
    other = Run(run.folder)
    assert other("toy", "--lock-wait", "0.3", links=links) == 5
    assert f"{first.pid} on {socket.gethostname()}" in other.err.splitlines()[-1]
    first.kill()
    run.finish()


# ---------------------------------------------------------------- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 400 KiB at the folder of `run`."""
    disk = tmp_path / "hub" / "checkpoints"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_too_little_disk_space_is_detected_first(
    run: Run, server: FaultServer, small_disk: Path
) -> None:
    (small_disk / "filler").write_bytes(bytes(200_000))
    run("toy", "--from", server.url())
    run.assert_nothing(6, "free", "needs 0.3 MiB")
    assert server.log == []


def test_disk_fills_up_half_way(run: Run, server: FaultServer, small_disk: Path) -> None:
    run.start("toy", "--from", server.url("slow"))
    run.wait_for_part(SIZE // 5)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run.finish()
    run.assert_nothing(6, "No space left on device")
    filler.unlink()
    run("toy", "--from", server.url())
    run.assert_right()
    assert begins(server)[1] >= SIZE // 5


@posix_only
@pytest.mark.parametrize("remote", [True, False])
def test_quota(run: Run, server: FaultServer, tmp_path: Path, remote: bool) -> None:
    """Set a file size limit, which free disk space does not show."""
    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "w.pth").write_bytes(DATA)
    source = server.url() if remote else tmp_path / "usb"
    run("toy", "--from", source, file_limit=100_000)
    run.assert_nothing(6, "File too large", "--dir or TORCH_HOME")
    run("toy", "--from", source)
    run.assert_right()
    assert not remote or begins(server) == [0, 100_000]


def test_read_only_disk(run: Run, server: FaultServer, small_disk: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True)
    run("toy", "--from", server.url())
    run.assert_nothing(6, "Read-only file system")
    subprocess.run([*remount[:2], "remount,rw", remount[3]], check=True)
    run.target.write_bytes(DATA)
    subprocess.run(remount, check=True)
    assert run("toy") == 0 and run("toy", "--verify") == 0
    subprocess.run([*remount[:2], "remount,rw", remount[3]], check=True)
    run.target.write_bytes(DATA[:-1])
    subprocess.run(remount, check=True)
    assert run("toy") == 6
    assert run("toy", "--verify") == 4 and "cannot be moved away" in run.err


@pytest.mark.parametrize("where", ["hub", "hub/checkpoints"])
def test_a_file_in_the_place_of_the_folder(run: Run, server: FaultServer, where: str) -> None:
    blocker = run.folder.parents[1] / where
    blocker.parent.mkdir(parents=True, exist_ok=True)
    blocker.write_text("")
    run("toy", "--from", server.url())
    run.assert_nothing(6, str(blocker))


@posix_only
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o644)])
def test_mode(run: Run, server: FaultServer, umask: int, mode: int) -> None:
    run.umask = umask
    run("toy", "--from", server.url())
    run.assert_right()
    assert run.target.stat().st_mode & 0o777 == mode


@posix_only
@pytest.mark.parametrize(
    "name", ["with space", "quo'te\"s", "ünïcödé-答", "-dash", "new\nline", "long" * 50, "\udce9"]
)
def test_odd_paths(run: Run, tmp_path: Path, name: str) -> None:
    run.env |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    source = tmp_path / f"{name}.pth"
    source.write_bytes(DATA)
    run.target = tmp_path / name / NAME
    run.cwd = tmp_path
    run("toy", f"--dir={name}", f"--from={name}.pth")
    assert (run.code, run.target.read_bytes()) == (0, DATA)


def test_symlinked_folder(run: Run, server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    run.folder.parent.mkdir()
    run.folder.symlink_to(tmp_path / "big disk")
    run("toy", "--from", server.url())
    run.assert_right()


# ---------------------------------------------------------------- what is already there


def damaged(kind: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    if kind == "directory":
        target.mkdir()
        (target / "x").write_text("")
    elif kind == "fifo":
        os.mkfifo(target)
    elif kind == "link to wrong bytes":
        (target.parent / "elsewhere").write_bytes(bytes(SIZE))
        target.symlink_to("elsewhere")
    else:
        target.write_bytes(
            {
                "flipped": DATA[:-1] + bytes([DATA[-1] ^ 1]),
                "empty": b"",
                "truncated": DATA[:HALF],
                "longer": DATA + b"\n",
                "another checkpoint": TWIN_DATA,
                "web page": b"<html>please log in</html>",
                "gzipped": gzip.compress(DATA, 1),
            }[kind]
        )


DAMAGES = ["flipped", "empty", "truncated", "longer", "another checkpoint", "web page", "gzipped"]
DAMAGES += ["directory", "fifo", "link to wrong bytes"] if os.name == "posix" else ["directory"]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_file_is_set_aside_and_replaced(run: Run, server: FaultServer, kind: str) -> None:
    damaged(kind, run.target)
    run("toy", "--offline")
    run.assert_nothing(3, f"is not toy: moved to {NAME}.bad")
    assert os.path.lexists(f"{run.target}.bad")
    run("toy", "--from", server.url())
    assert (run.code, run.target.read_bytes()) == (0, DATA)


@pytest.mark.parametrize("kind", ["flipped", "empty", "directory"])
def test_verify_sets_a_bad_file_aside(run: Run, kind: str) -> None:
    damaged(kind, run.target)
    run("toy", "--verify")
    run.assert_nothing(4, f"moved to {NAME}.bad", "python checkpoints_setup.py toy")


@pytest.mark.parametrize("points_to", ["nowhere", NAME])
def test_a_dangling_or_circular_link_is_replaced(
    run: Run, server: FaultServer, points_to: str
) -> None:
    run.folder.mkdir(parents=True)
    run.target.symlink_to(points_to)
    run("toy", "--from", server.url())
    run.assert_right()


def test_several_bad_files_in_turn(run: Run, server: FaultServer) -> None:
    for _ in range(3):
        shutil.rmtree(run.target, ignore_errors=True)
        run.target.unlink(missing_ok=True) if run.target.is_file() else None
        run.target.mkdir(parents=True)
        assert run("toy", "--offline") == 3
    run.target.write_bytes(b"")
    run("toy", "--from", server.url())
    assert run.code == 0
    assert {path.name[len(NAME) :] for path in run.folder.glob("toy*")} == {
        *("", ".bad", ".bad2", ".bad3", ".bad4")
    }


def test_an_unchanged_file_is_not_hashed_again_except_by_verify(run: Run) -> None:
    run.folder.mkdir(parents=True)
    run.target.write_bytes(DATA)
    assert run("toy", "--offline") == 0
    before = run.target.stat()
    with run.target.open("r+b") as file:  # damage that leaves size, time and inode as they were
        file.write(b"XX")
    os.utime(run.target, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run("toy", "--offline") == 0
    run("toy", "--verify")
    run.assert_nothing(4)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_changed_file_is_hashed_again(run: Run, replaced: bool) -> None:
    """A change in place shows in the time, a replacement of the same time in the inode."""
    run.folder.mkdir(parents=True)
    run.target.write_bytes(DATA)
    assert run("toy", "--offline") == 0
    before = run.target.stat()
    if replaced:
        other = run.folder / "other"
        other.write_bytes(TWIN_DATA)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, run.target)
    else:
        run.target.write_bytes(TWIN_DATA)
    run("toy", "--offline")
    run.assert_nothing(3, "moved to")


@pytest.mark.parametrize("verdict", ["", "[]", "{", "[" * 100_000, '{"sha256": 1}', "\udcff"])
def test_a_damaged_verdict_is_ignored(run: Run, verdict: str) -> None:
    run.folder.mkdir(parents=True)
    run.target.write_bytes(DATA)
    assert run("toy", "--offline") == 0
    kept = run.folder / f".{NAME}.verified.json"
    assert json.loads(kept.read_text())["sha256"] == hashlib.sha256(DATA).hexdigest()
    kept.write_text(verdict, errors="surrogateescape")
    assert run("toy", "--offline") == 0
    run.target.write_bytes(DATA[::-1])
    kept.write_text(verdict, errors="surrogateescape")
    assert run("toy", "--offline") == 3


def test_orphans_of_torch_hub_are_removed_when_old(run: Run, server: FaultServer) -> None:
    run.folder.mkdir(parents=True)
    old = [f"{NAME}.{'0a' * 16}.partial", f"other.pth.{'0a' * 16}.partial", f"{NAME}.partial"]
    for name in [*old, f"{NAME}.{'1b' * 16}.partial"]:
        (run.folder / name).write_bytes(b"x")
    for name in old:
        os.utime(run.folder / name, (0, 0))
    run("toy", "--from", server.url())
    assert f"removed {old[0]}" in run.err
    assert run.others() == {*old[1:], f"{NAME}.{'1b' * 16}.partial"}


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize(
    "name",
    [
        f"{Path(NAME).stem} (1).pth",
        f"{NAME}.crdownload",
        "weights",
        "a/b/weights.bin",
        f"zz/{NAME}",
    ],
)
@pytest.mark.parametrize("scan", [True, False])
def test_copies_a_file_of_any_name(run: Run, tmp_path: Path, name: str, scan: bool) -> None:
    usb = tmp_path / "usb"
    (usb / name).parent.mkdir(parents=True)
    (usb / name).write_bytes(DATA)
    (usb / "decoy of the same size.pth").write_bytes(TWIN_DATA)
    (usb / "short.pth").write_bytes(DATA[:HALF])
    if os.name == "posix":
        os.mkfifo(usb / "fifo.pth")
        (usb / "loop").symlink_to(usb)
        (usb / "dangling.pth").symlink_to("nowhere")
        (usb / "round.pth").symlink_to("round.pth")
    run("toy", "--offline", "--from", usb if scan else usb / name)
    run.assert_right()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it has 0 bytes"),
        (DATA[:HALF], "it has 150,000 bytes"),
        (gzip.compress(TWIN_DATA[:HALF], 1, mtime=0), " bytes"),
        (b"<html>please log in</html>", "26 bytes"),
        (ROUGH_DATA, f"it could be {ROUGH['filename']}"),
        (TWIN_DATA, f"{str(TWIN['filename'])[5:13]}..., not {NAME[4:12]}"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(
    run: Run, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    run("toy", "--from", tmp_path / "w.pth")
    run.assert_nothing(4, message)
    assert run.others() == set()


def test_a_folder_without_it(run: Run, tmp_path: Path) -> None:
    deep = tmp_path / "usb" / "1" / "2" / "3"
    deep.mkdir(parents=True)
    (deep / NAME).write_bytes(DATA)
    run("toy", "--from", tmp_path / "usb")
    run.assert_nothing(3, "no file of 300,000 bytes in 3 levels of folders")


def test_a_pipe_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    run("toy", "--from", tmp_path / "pipe")
    run.assert_nothing(2, "not a regular file")


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["vgg18"], "unknown checkpoint 'vgg18'; known are toy, twin, rough"),
        (["toy", "--from", "no such file"], "--from no such file: no such file or folder"),
        (["toy", "--from", "ftp://host/x"], "not a usable http(s) URL: ftp://host/x"),
        (["toy", "--from", "https://user:p4ss@host:port/x"], "not a usable http(s) URL"),
        (["toy", "--from", "https://user:p4/ss@host/x"], "not a usable http(s) URL"),
        (["toy", "--from", "https://[host/x"], "not a usable http(s) URL"),
        (["toy", "--mirror", "host"], "not a usable http(s) URL: host"),
        (["toy", "--mirror", "http://a\r\nb/"], "not a usable http(s) URL: http://a??b/"),
        (["toy", "--offline", "--mirror", "http://host/"], "--offline does not go with a URL"),
        (["toy", "--offline", "--from", "http://host/"], "--offline does not go with a URL"),
        (["toy", "--verify", "--list"], "not together"),
        (["toy", "--verify", "--from", "."], "go with no source"),
        (["toy", "--timeout", "0"], "--timeout: invalid"),
        (["toy", "--timeout", "nan"], "--timeout: invalid"),
        (["toy", "--timeout", "1e12"], "--timeout: invalid"),
        (["toy", "--from", "~nosuch/x"], "--from ~nosuch/x: cannot expand ~"),
        (["toy", "--dir", "~nosuch/x"], "--dir ~nosuch/x: cannot expand ~"),
        (["--list", "--dir", "~nosuch/x"], "--dir ~nosuch/x: cannot expand ~"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_arguments(run: Run, args: list[str], message: str) -> None:
    assert run(*args) == 2
    assert message in run.err and "p4" not in run.err
    assert not run.folder.exists()


def test_vgg19_is_the_default(run: Run) -> None:
    table = [{"name": c.name, "filename": c.filename, "size": c.size} for c in known_by_torch()]
    assert run("--offline", KNOWN=table) == 3
    assert "vgg19-dcbb9e9d.pth (548.1 MiB)" in run.err


def test_several_at_once_as_json(run: Run, server: FaultServer) -> None:
    del server.files[str(TWIN["filename"])]
    assert run("toy", "twin", NAME, "rough", "--json", "--from", server.url()) == 3
    report = json.loads(run.out)
    assert report["exit_code"] == 3
    assert [c["name"] for c in report["checkpoints"]] == ["toy", "twin", "rough"]
    assert [c["state"] for c in report["checkpoints"]] == ["verified", "failed", "verified"]
    toy, twin, _ = report["checkpoints"]
    assert toy["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert toy["path"] == str(run.target)
    assert "could not be downloaded" in twin["error"]


def test_json_also_when_the_arguments_are_wrong(run: Run) -> None:
    assert run("vgg18", "--json") == 2
    assert json.loads(run.out) == {"exit_code": 2, "checkpoints": [], "error": run.err[7:-1]}


def test_list(run: Run, server: FaultServer) -> None:
    run("toy", "--from", server.url())
    (run.folder / f"{TWIN['filename']}.part").write_bytes(bytes(HALF))
    (run.folder / str(ROUGH["filename"])).write_bytes(b"")
    assert run("--list") == 0
    assert [line.split(maxsplit=2)[2] for line in run.out.splitlines()] == [
        "verified",
        "incomplete, 0.1 MiB so far",
        "present, not verified yet",
    ]


@posix_only
@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [(">/dev/full", 2, "standard output cannot be written: No space left"), ("| true", 141, "")],
)
def test_a_standard_output_that_takes_nothing(redirection: str, code: int, message: str) -> None:
    command = f"{sys.executable} {checkpoints_setup.__file__} --list"
    script = f"set -o pipefail; {{ sleep 1; {command}; }} {redirection}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code and message in done.stderr
    assert done.stderr.count("\n") == (1 if message else 0)


@posix_only
@pytest.mark.parametrize(("option", "code"), [("--from", 2), ("--list --dir", 6)])
def test_a_folder_without_permission_is_one_line(tmp_path: Path, option: str, code: int) -> None:
    (tmp_path / "theirs").mkdir(mode=0)
    # Root may read everything, but for this.
    rights = ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search"]
    command = [*(rights if os.geteuid() == 0 else []), sys.executable]
    command += [checkpoints_setup.__file__, *option.split(), str(tmp_path / "theirs" / "x")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(r"error: .*theirs/x.*: Permission denied.*\n", done.stderr)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8", "3.9"])
def test_an_old_python_is_refused_with_the_required_version(version: str) -> None:
    if version != "2.7":
        major, minor = version.split(".")
        source = Path(checkpoints_setup.__file__).read_text()
        ast.parse(source, feature_version=(int(major), max(int(minor), 7)))
    versions = Path.home() / ".pyenv/versions"
    pythons = [f"python{version}", *map(str, versions.glob(f"{version}.*/bin/python"))]
    probe = ["-c", "import sys; sys.exit(7)"]
    answers = (
        python
        for python in pythons
        if shutil.which(python)
        and subprocess.run([python, *probe], capture_output=True).returncode == 7
    )
    old = next(answers, None)
    if old is None:
        pytest.skip(f"no Python {version} here")
    done = subprocess.run([old, checkpoints_setup.__file__], capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*3\.10.*{re.escape(version)}.*\n", done.stderr)


def test_help_documents_every_exit_code(run: Run) -> None:
    assert run("--help") == 0
    for code in (0, 2, 3, 4, 5, 6, 130):
        assert re.search(rf"^  {code}  ", run.out, re.MULTILINE)


@posix_only
def test_progress_on_a_terminal(run: Run, server: FaultServer) -> None:
    reader, writer = os.openpty()
    run.start("toy", "--from", server.url("slow"), stderr=writer)
    os.close(writer)
    run.finish()
    shown = b""
    with os.fdopen(reader, "rb", buffering=0) as terminal:
        try:
            while block := terminal.read(4096):
                shown += block
        except OSError:  # how Linux says that the other end is closed
            pass
    assert re.search(rb"\r\S+: 0.\d MiB of 0.3 MiB, \S+ MiB/s, 0:0\d left", shown)


# ---------------------------------------------------------------- the public Python face


def known_by_torch() -> tuple[checkpoints.Checkpoint, ...]:
    return checkpoints.KNOWN


def test_the_table_matches_torchvision() -> None:
    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    models = Path(spec.origin).parent / "models"
    published = {}
    for module in ("vgg.py", "resnet.py"):
        pairs = r'url="([^"]+)".*?"_file_size": ([0-9.]+)'
        published |= dict(re.findall(pairs, (models / module).read_text(), re.DOTALL))
    for checkpoint in known_by_torch():
        assert re.fullmatch("[0-9a-f]{8}", checkpoint.prefix)
        if checkpoint.base:
            continue
        published_mib = float(published[checkpoints.OFFICIAL + checkpoint.filename])
        assert abs(checkpoint.size / 2**20 - published_mib) <= 0.0005


def test_the_caffe_weights(tmp_path: Path) -> None:
    def run(*args: str) -> str:
        command = [sys.executable, checkpoints_setup.__file__, "--dir", str(tmp_path), *args]
        done = subprocess.run(command, capture_output=True, text=True)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    vgg19, caffe = map(checkpoints.lookup, ("vgg19", "vgg19-caffe"))
    assert caffe == checkpoints.lookup("vgg19-d01eb7cb.pth")
    assert caffe.origin.startswith("https://") and caffe.origin != vgg19.origin
    assert caffe.file.fits(vgg19.size)  # the same tensors
    assert not caffe.file.fits(checkpoints.lookup("vgg16").size)
    assert re.search(r"vgg19-caffe +vgg19-d01eb7cb\.pth +missing", run("--list"))
    assert run("vgg19-caffe", "--verify").startswith("3 ")
    (tmp_path / "half.pth").write_bytes(b"half")
    message = run("vgg19-caffe", "--from", str(tmp_path / "half.pth"))
    assert message.startswith("4 ")
    assert "it has 4 bytes; vgg19-d01eb7cb.pth has about 574,668,960 bytes" in message
    assert f"download {caffe.origin}vgg19-d01eb7cb.pth (548.0 MiB)" in message


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"TORCH_HOME": "/somewhere/torch"},
        {"TORCH_HOME": "~/t"},
        {"XDG_CACHE_HOME": "/cache"},
        {"XDG_CACHE_HOME": "~/c", "TORCH_HOME": "relative"},
    ],
)
def test_checkpoint_dir_is_where_torch_hub_looks(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("torch.hub")
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert str(checkpoints.checkpoint_dir()) == os.path.join(hub.get_dir(), "checkpoints")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_hub_loads_the_download(
    run: Run, server: FaultServer, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    """Both formats of real checkpoints are accepted, and torch.hub finds them offline."""
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    state = {"weight": torch.arange(1000.0)}
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    filename = f"real-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.files[filename] = data
    row = {"name": "real", "filename": filename, "size": len(data)}
    assert run("real", "--mirror", server.url("drop_half_once"), KNOWN=[row]) == 0
    monkeypatch.setenv("TORCH_HOME", str(run.folder.parents[1]))
    url = f"http://127.0.0.1:1/{filename}"
    loaded = torch.hub.load_state_dict_from_url(url, check_hash=True, weights_only=True)
    assert torch.equal(loaded["weight"], state["weight"])


def test_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = checkpoints.Checkpoint("toy", NAME, SIZE)
    monkeypatch.setattr(checkpoints, "KNOWN", (toy,))
    assert checkpoints.lookup("toy") == checkpoints.lookup(NAME) == toy
    assert not checkpoints.is_verified("toy", tmp_path)
    (tmp_path / NAME).write_bytes(DATA)
    assert checkpoints.is_verified("toy", tmp_path)
    (tmp_path / NAME).write_bytes(DATA[:-1])
    assert not checkpoints.is_verified("toy", tmp_path)
    with pytest.raises(InstallError, match="known are toy"):
        checkpoints.is_verified("vgg19", tmp_path)


# ---------------------------------------------------------------- what people have


@pytest.mark.parametrize("kind", ["zip", "zip in a folder", "gzip", "gzip in a folder"])
def test_it_is_extracted_from_an_archive(run: Run, tmp_path: Path, kind: str) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    path = usb / f"weights.{kind[:3]}"
    if kind.startswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("readme.txt", "hello")
            archive.writestr("twin.pth", TWIN_DATA)
            archive.writestr("folder/any name.pth", DATA)
    else:
        path.write_bytes(gzip.compress(DATA, 1))
    run("toy", "--offline", "--from", usb if "folder" in kind else path)
    run.assert_right()
    assert path.exists()


def damaged_archive(kind: str) -> bytes:
    """Return an archive of the checkpoint with some other bytes in the middle."""
    if kind == "gzip":
        content = gzip.compress(DATA, 1)
    else:
        with zipfile.ZipFile(packed := io.BytesIO(), "w", getattr(zipfile, kind)) as archive:
            archive.writestr(NAME, DATA)
        content = packed.getvalue()
    return content[:HALF] + b"\xff" * 1000 + content[HALF + 1000 :]


@pytest.mark.parametrize("kind", ["gzip", "ZIP_STORED", "ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_a_damaged_copy_does_not_hide_a_good_one(run: Run, tmp_path: Path, kind: str) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    (usb / "a").write_bytes(damaged_archive(kind))
    run("toy", "--offline", "--from", usb)
    run.assert_nothing(3, f"reading {usb / 'a'} failed: ", "damaged")
    (usb / "b").write_bytes(DATA)
    run("toy", "--offline", "--from", usb)
    run.assert_right()
    assert f"reading {usb / 'a'} failed: " in run.err


def test_a_damaged_member_of_a_zip_does_not_hide_a_good_one(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "w.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bad.pth", DATA)
        archive.writestr("good.pth", DATA)
    content = bytearray(path.read_bytes())
    content[HALF] ^= 1
    path.write_bytes(content)
    run("toy", "--offline", "--from", path)
    run.assert_right()
    assert "bad.pth" in run.err


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 300000\n", "LFS"),
        (b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        (gzip.compress(b"something else", mtime=0), "gzip"),
    ],
)
def test_files_that_are_not_checkpoints_are_named(
    run: Run, tmp_path: Path, content: bytes, fact: str
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    run("toy", "--from", tmp_path / "w.pth")
    run.assert_nothing(4, fact)


def test_an_archive_with_a_false_size(run: Run, tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(bytes(SIZE * 50), 1))
    packed[-4:] = SIZE.to_bytes(4, "little")
    (tmp_path / "w.gz").write_bytes(packed)
    run("toy", "--from", tmp_path / "w.gz")
    run.assert_nothing(4, "w.gz")
    assert run.others() == set()


def test_a_browsers_second_copy_in_the_folder_is_found(run: Run) -> None:
    run.folder.mkdir(parents=True)
    (run.folder / f"{Path(NAME).stem} (1).pth").write_bytes(DATA)
    (run.folder / f"{Path(NAME).stem} (2).pth").write_bytes(TWIN_DATA)
    run("toy", "--offline")
    assert (run.code, run.target.read_bytes()) == (0, DATA)
    assert run.others() == {f"{Path(NAME).stem} (2).pth"}


def test_a_damaged_target_named_as_its_own_source_stays(run: Run) -> None:
    run.folder.mkdir(parents=True)
    run.target.write_bytes(DATA[:HALF])
    assert run("toy", "--from", run.target) == 4
    assert run.err.count("error: ") == 1 and str(run.target) in run.err
    assert run.target.read_bytes() == DATA[:HALF]


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME"])
def test_a_relative_or_empty_cache_folder(run: Run, tmp_path: Path, name: str) -> None:
    run.env = {"TORCH_HOME": "", "HOME": str(tmp_path / "home")}
    run.env[name] = "relative"
    assert run("toy", "--offline") == 2
    assert f"set {name}={run.cwd / 'relative'}, or use --dir DIR" in run.err
    run.env[name] = ""
    assert run("toy", "--offline") == 3
    assert (tmp_path / "home/.cache/torch/hub/checkpoints").is_dir()
