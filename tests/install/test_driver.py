"""Facts from nvidia-smi, healthy or not, with a stand-in program."""

from pathlib import Path

import pytest

from vqa_repro.install.driver import driver_facts

HEALTHY = "590.44, NVIDIA H100 80GB HBM3, 81559, 80000, 9.0, Disabled"


def nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("lines", "cards", "remarks"),
    [
        ([HEALTHY, HEALTHY], 2, 0),
        ([HEALTHY, "590.44, [GPU is lost], [GPU is lost], [GPU is lost], [N/A], [N/A]"], 1, 1),
        (["590.44, [Unknown Error], [Unknown Error], [Unknown Error], [N/A], [N/A]"], 0, 1),
        (["WARNING: infoROM is corrupted at gpu 0000:3B:00.0", HEALTHY], 1, 1),
        (["Unable to determine the device handle for GPU0: Unknown Error"], 0, 1),
        ([], 0, 0),
    ],
)
def test_only_complete_rows_are_gpus(
    lines: list[str], cards: int, remarks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "\n".join(f"echo '{line}'" for line in lines), monkeypatch)
    facts = driver_facts(60)
    assert (len(facts["gpus"]), len(facts["remarks"])) == (cards, remarks)
    assert facts["nvidia_smi"] == "answers"
    if cards:
        assert facts["version"] == "590.44" and facts["gpus"][0]["compute_capability"] == 9.0


def test_a_driver_that_rejects_newer_fields_is_queried_for_fewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        'case "$1" in *compute_cap*) echo "Field compute_cap is not a valid field"; exit 2;; esac; '
        "echo '450.80.02, Tesla V100, 16160, 16000'"
    )
    nvidia_smi(tmp_path, script, monkeypatch)
    facts = driver_facts(60)
    assert facts["gpus"][0]["compute_capability"] is None and facts["version"] == "450.80.02"


def test_a_failing_or_hanging_nvidia_smi_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, "echo 'Failed to initialize NVML'; exit 18", monkeypatch)
    assert "NVML" in driver_facts(60)["nvidia_smi"]
    nvidia_smi(tmp_path, "trap '' TERM; sleep 100; sleep 100", monkeypatch)
    assert "no answer" in driver_facts(1)["nvidia_smi"]
