"""Tiny wheels, their locks, and a package index on loopback that serves them."""

import base64
import contextlib
import hashlib
import http.server
import re
import threading
import time
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, bytes],
    needs: str = "",
    tag: str = "py3-none-any",
) -> Path:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        **files,
        f"{info}/METADATA": metadata.encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def lock_text(wheelhouse: Path, *requirements: str) -> str:
    """Return a lock of ``name==version ; marker`` with the hashes of the wheelhouse."""
    text = "# a lock\n"
    for requirement in requirements:
        name, version = requirement.split(" ")[0].split("==")
        hashes = [
            f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
            for wheel in sorted(wheelhouse.glob(f"{name}-{version}-*.whl"))
        ]
        assert hashes, requirement
        text += " \\\n    ".join([requirement, *hashes]) + "\n"
    return text


@contextlib.contextmanager
def served(
    root: Path, requested: list[str] | None = None, pause: Callable[[], float] = lambda: 0.0
) -> Iterator[str]:
    """Serve each folder of ``root`` as an index with hashes, at URL + "/FOLDER".

    ``requested`` receives the requested paths, with "PATH from FIRST BYTE" for a range. After each
    64 KiB of a wheel it waits for ``pause`` seconds.
    """

    class Index(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if requested is not None and self.command == "GET":
                requested.append(f"{path} from {first[1]}" if first else path)
            folder, _, name = path.strip("/").partition("/")
            file = root / folder / name
            if name.endswith(".whl") and file.is_file():
                kind = "application/octet-stream"
                return self.answer(file.read_bytes(), kind, first=int(first[1]) if first else 0)
            links = ""
            for wheel in sorted((root / folder).glob("*.whl")):
                if re.sub("[-_.]+", "-", wheel.name.split("-")[0]).lower() == name:
                    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                    href = f"/{folder}/{urllib.parse.quote(wheel.name)}#sha256={digest}"
                    links += f'<a href="{href}">{wheel.name}</a>\n'
            if not links:
                return self.answer(b"no such package", "text/plain", 404)
            self.answer(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")

        def answer(self, content: bytes, kind: str, status: int = 200, first: int = 0) -> None:
            size = len(content)
            content = content[first:]
            self.send_response(206 if first else status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            self.end_headers()
            if self.command == "GET":
                with contextlib.suppress(ConnectionError):  # the client was killed
                    for start in range(0, len(content), 1 << 16):
                        self.wfile.write(content[start : start + (1 << 16)])
                        time.sleep(pause())

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
