"""python -m vqa_repro.serve: what it prints, answers over HTTP, and how it ends."""

import json
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from conftest import LIMIT, run_verb
from serving import Served, start, stop, upload

import vqa_repro
from vqa_repro.evaluation import examples


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
