"""The choice of the torch build by GPUs, driver, processor and Python."""

import sys

import pytest

from vqa_repro.install.torch_builds import BUILDS, advise, choose, python_problem

V100, P100, T4, A100, H100, B200, RTX5090 = 7.0, 6.0, 7.5, 8.0, 9.0, 10.0, 12.0
GTX750TI, GTX1080, TITAN_X, K80, RTX3090, RTX4090, GB300 = 5.0, 6.1, 5.2, 3.7, 8.6, 8.9, 10.3

# GPUs, driver, processor, Python -> build, or part of the reason for none
MACHINES = [
    ([H100], "580.65.06", "x86_64", 13, "cu130"),
    ([H100], "590.44", "x86_64", 14, "cu130"),
    ([H100], "580.65.06", "x86_64", 15, "cu130"),
    ([H100], "550.54.15", "x86_64", 12, "cu128"),
    ([H100], "550.54.15", "x86_64", 15, "no wheels for Python 3.15"),
    ([A100], "535.183.01", "x86_64", 10, "cu128"),
    ([A100], "525.60.13", "x86_64", 11, "cu128"),
    ([A100], "525.60.11", "x86_64", 11, "525.60.13 or newer"),
    ([A100], "470.42.01", "x86_64", 11, "525.60.13 or newer"),
    ([T4], "580.65.06", "x86_64", 12, "cu130"),
    ([T4], "535.183.01", "x86_64", 12, "cu128"),
    ([V100], "580.65.06", "x86_64", 12, "cu128"),
    ([V100], "525.85.12", "x86_64", 14, "cu128"),
    ([V100], "470.42.01", "x86_64", 12, "up to the branch 580"),
    ([P100], "580.65.06", "x86_64", 12, "cu126"),
    ([P100], "535.183.01", "x86_64", 13, "cu126"),
    ([P100], "535.183.01", "x86_64", 14, "no wheels for Python 3.14"),
    ([P100], "470.42.01", "x86_64", 12, "up to the branch 580"),
    ([GTX750TI], "535.183.01", "x86_64", 11, "cu126"),
    ([TITAN_X], "580.65.06", "x86_64", 11, "cu126"),
    ([GTX1080], "550.54.15", "x86_64", 11, "cu126"),
    ([K80], "470.42.01", "x86_64", 11, "capability 3.7"),
    ([K80, H100], "580.65.06", "x86_64", 11, "capability 3.7"),
    ([RTX3090, RTX4090], "580.65.06", "x86_64", 12, "cu130"),
    ([RTX3090], "555.42", "x86_64", 12, "cu128"),
    ([RTX5090], "580.65.06", "x86_64", 12, "cu130"),
    ([RTX5090], "570.86.10", "x86_64", 12, "cu128"),
    ([RTX5090], "565.57.01", "x86_64", 12, "570 or newer"),
    ([B200], "570.86.10", "x86_64", 12, "cu128"),
    ([GB300], "590.1", "aarch64", 12, "cu130"),
    ([V100, H100], "580.65.06", "x86_64", 12, "cu128"),
    ([P100, H100], "580.65.06", "x86_64", 12, "cu126"),
    ([P100, RTX5090], "580.65.06", "x86_64", 12, "6.0 and 12.0 together"),
    ([V100, RTX5090], "580.65.06", "x86_64", 12, "cu128"),
    ([H100], "550.54.15", "aarch64", 12, "580 or newer"),
    ([V100], "580.65.06", "aarch64", 12, "capability 7.0"),
    ([], "580.65.06", "x86_64", 12, "cu130"),
    ([], None, "x86_64", 12, "525.60.13 or newer"),
]


@pytest.mark.parametrize(("capabilities", "driver", "machine", "python", "expected"), MACHINES)
def test_the_build_of_a_machine(
    capabilities: list[float], driver: str | None, machine: str, python: int, expected: str
) -> None:
    name, reason = choose(driver, capabilities, machine)
    assert bool(name) != bool(reason)
    problem = reason or python_problem(name, (3, python))
    if expected in BUILDS:
        assert (name, problem) == (expected, "")
    else:
        assert expected in problem and "\n" not in problem


def test_old_cards_are_never_sent_to_drivers_that_dropped_them() -> None:
    for capability in (GTX750TI, P100, GTX1080, V100):
        _, reason = choose("470.42.01", [capability], "x86_64")
        assert "580 or newer" not in reason and "525.60.13 or newer" in reason


def facts(*capabilities: float, driver: str = "580.65.06", **changes: object) -> dict[str, object]:
    gpus = [
        {
            "name": "Some Card",
            "memory_total_mib": 16160.0,
            "memory_free_mib": 16000.0,
            "compute_capability": capability,
            "mig": False,
        }
        for capability in capabilities
    ]
    base = {
        "nvidia_smi": "answers",
        "version": driver,
        "gpus": gpus,
        "remarks": [],
        "kernel_driver": True,
        "device_files": True,
        "cuda_visible_devices": None,
    }
    return base | changes


def test_the_requested_build_wins_and_what_it_cannot_run_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    advice = advise(facts(7.0), "cu130")
    assert (advice.build, advice.problem) == ("cu130", "")
    assert any(state == "note" and "--torch cu128" in text for state, text in advice.rows)
    no_wheels = python_problem("cu128", sys.version_info[:2])
    _, *decision = advise(facts(9.0), "cu128")
    assert decision == (["", no_wheels] if no_wheels else ["cu128", ""])
    assert advise(facts(9.0), "cpu")[1:] == ("cpu", "")
    assert advise(facts(9.0), "auto")[1:] == ("cu130", "")
    assert advise(facts(3.7), "auto").problem and not advise(facts(3.7), "auto").build


def test_the_bundles_build_is_preferred_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    v100, rtx5090 = facts(7.0, driver="535.183.01"), facts(12.0)
    assert advise(v100, "auto", "cu126")[1:] == ("cu126", "")
    assert advise(v100, "auto", "cu130")[1:] == ("cu128", "")  # it does not run it
    assert advise(rtx5090, "auto", "cu126")[1:] == ("cu130", "")
    assert advise(facts(9.0), "auto", "cu126")[1:] == ("cu126", "")
    assert advise(v100, "cu128", "cu126")[1:] == ("cu128", "")  # requested
    assert advise(v100, "auto", "cpu")[1:] == ("cu128", "")  # the CPU only if requested
    assert (
        advise(facts(3.7), "auto", "cu126").problem
        and not advise(facts(3.7), "auto", "cu126").build
    )


def test_cards_hidden_by_the_user_do_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    rows, build, problem = advise(facts(3.7), "auto")
    assert (build, problem) == ("", "") and any("CUDA_VISIBLE_DEVICES" in text for _, text in rows)


def test_a_lost_card_is_a_note_and_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    advice = advise(facts(9.0, remarks=["590.44, [GPU is lost]"]), "auto")
    assert [state for state, _ in advice.rows] == ["ok", "note"] and advice.build
    rows, build, problem = advise(facts(remarks=["590.44, [GPU is lost]"]), "auto")
    assert (build, problem) == ("", "") and {state for state, _ in rows} == {"note"}
