"""The report of ``doctor --gpu``: a rehearsal, and checks that crash or run late."""

import os
from pathlib import Path

import pytest

from vqa_repro import doctor
from vqa_repro.diagnostics import gpu_report
from vqa_repro.utils.errors import UserError
from vqa_repro.utils.subprocesses import ProcessResult

FACTS = '{"facts": {"torch": "2.15.0", "cuda": "13", "cudnn": 1, "triton": null}}'
RIGHT = '{"check": "c", "what": "plain", "ok": true, "detail": "off by 1e-6"}'
WRONG = '{"check": "c", "what": "graph", "ok": false, "detail": "a | b"}'
TIME = (
    '{"check": "c", "what": "", "time": "graph", "form": "bfloat16, grouped, batch 100", '
    '"milliseconds": 0.5, "epoch_seconds": 3.3, "reserved_gb": 1.5}'
)


def answers(monkeypatch: pytest.MonkeyPatch, *results: ProcessResult) -> None:
    """Let the checks of the GPU answer with these results."""
    waiting = iter(results)
    monkeypatch.setattr(gpu_report, "run_limited", lambda *_: next(waiting))
    monkeypatch.setattr(gpu_report, "CHECKS", gpu_report.CHECKS[: len(results)])


def test_all_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers(monkeypatch, ProcessResult("\n".join([FACTS, RIGHT, TIME]), ""))
    report = tmp_path / "report.md"
    assert doctor.main(["--gpu", "--report", str(report)]) == 0
    text = report.read_text()
    assert "**1 passed, 0 failed, 0 skipped**" in text
    assert "| 0.50 | 3.3 |" in text and "2.15.0" in text


def test_a_crash_a_wrong_value_and_a_late_check_are_in_the_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = os.path.expanduser("~")
    crash = ProcessResult("\n".join([FACTS, RIGHT]), f"killed by signal 11 in {home}/x")
    answers(monkeypatch, crash, ProcessResult("\n".join([FACTS, WRONG]), ""))
    report = tmp_path / "report.md"
    assert not gpu_report.check_gpu("cuda", report, print)
    text = report.read_text()
    assert "2 failed" in text and "signal 11" in text and home not in text
    assert "a \\| b" in text

    monkeypatch.setattr(gpu_report, "BUDGET", 0.0)
    assert gpu_report.check_gpu("cuda", report, print)
    assert "2 skipped" in report.read_text() and "out of time" in report.read_text()


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused = "vqa_repro.utils.errors.UserError: --device cuda: torch 2.15.0 sees 0 GPUs"
    answers(monkeypatch, ProcessResult("", refused))
    with pytest.raises(UserError, match=r"0 GPUs.*--device cpu") as error:
        gpu_report.check_gpu("cuda", tmp_path / "report.md", print)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_refused_before_the_checks(tmp_path: Path) -> None:
    for report in (tmp_path, tmp_path / "missing" / "report.md"):
        with pytest.raises(UserError, match="--report"):
            gpu_report.check_gpu("cuda", report, print)


@pytest.mark.slow
def test_the_rehearsal_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_report, "CHECKS", ("placements", "bag-of-words-daquar"))
    for limit in ("BUDGET", "CHECK_SECONDS"):  # the machine may be busy
        monkeypatch.setattr(gpu_report, limit, 3600.0)
    report = tmp_path / "report.md"
    assert gpu_report.check_gpu("cpu", report, print)
    assert "rehearsal" in report.read_text() and " 0 failed" in report.read_text()
