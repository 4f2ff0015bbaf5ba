"""A server of `python -m vqa_repro.serve`, and requests to it."""

import json
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from conftest import LIMIT, environ


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


def upload(served: Served, picture: bytes) -> str:
    status, content, _ = served.ask("POST", "/images", picture)
    assert status == 200, content
    name = json.loads(content)["image"]
    assert isinstance(name, str)
    return name
