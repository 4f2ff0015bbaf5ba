"""The doctor in healthy and broken environments: it names each problem and its fix."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import LIMIT

from vqa_repro import doctor
from vqa_repro.diagnostics import checks, gpu, kernel_check
from vqa_repro.diagnostics import facts as facts_module
from vqa_repro.install import driver, lockfile
from vqa_repro.utils.subprocesses import ProcessResult, run_limited

ROOT = Path(__file__).resolve().parents[2]


def run_doctor(
    *arguments: str, home: Path, **environ: str | Path
) -> subprocess.CompletedProcess[str]:
    """Run the doctor as a user does, with checkpoints in ``home``."""
    return subprocess.run(
        [sys.executable, "-m", "vqa_repro.doctor", *arguments],
        cwd=ROOT,
        env={**os.environ, "TORCH_HOME": str(home), **{k: str(v) for k, v in environ.items()}},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def write_program(folder: Path, name: str, script: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("problems", "gpus", "threads", "ends"),
    [
        (0, 0, 1, "training will use 1 core."),
        (0, 0, 2, "training will use 2 cores."),
        (0, 1, 2, "healthy: 1 GPU (card)."),
        (0, 2, 2, "healthy: 2 GPUs (card)."),
        (1, 0, 1, "broken: 1 problem."),
        (2, 0, 1, "broken: 2 problems."),
    ],
)
def test_the_verdict_counts(problems: int, gpus: int, threads: int, ends: str) -> None:
    found = checks.verdict(problems, {"gpus": gpus, "threads": threads}, [{"name": "card"}])
    assert found.endswith(ends)


# --- whole runs ------------------------------------------------------------------------------


def test_this_machine_is_healthy_in_json_and_in_words(tmp_path: Path) -> None:
    done = run_doctor("--json", home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert list(report) == [
        "python", "packages", "driver", "torch", "devices", "checkpoint", "cpu", "disk",
        "problems", "notes", "verdict", "healthy",
    ]  # fmt: skip
    assert report["healthy"] and report["problems"] == []
    assert report["verdict"].startswith("healthy: ")
    assert all(package["imports"] for package in report["packages"].values())
    assert report["devices"]
    for device in report["devices"]:
        assert {kernel["kernel"] for kernel in device["kernels"]} == set(kernel_check.kernels())
        assert all(kernel["error"] <= kernel["tolerance"] for kernel in device["kernels"])
        assert device["matmul_tflops"] > 0
    assert report["checkpoint"]["state"] == "absent"
    assert "python checkpoints_setup.py vgg19" in [note["fix"] for note in report["notes"]]
    text = doctor.as_text(report).splitlines()
    assert text[-1] == report["verdict"]
    assert any("matmul" in line and " ok " in line for line in text)


@pytest.mark.slow
def test_unusable_gpus_and_a_corrupt_checkpoint(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine")
    row = "535.183.01, Tesla V100, 16384, 16000, 7.0, [N/A]"
    write_program(tmp_path, "nvidia-smi", f"echo '{row}'; echo '{row}'")
    weights = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"<html>log in</html>")
    done = run_doctor(home=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", HOME=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    text = done.stdout
    assert "\nbroken: 2 problems.\n1. torch cannot use the GPU (Tesla V100, Tesla V100): " in text
    assert "--torch cu128" in text
    assert "2. the checkpoint ~/hub/checkpoints/vgg19-dcbb9e9d.pth is bad" in text
    assert text.endswith("   fix: python checkpoints_setup.py vgg19\n")
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('libcudart.so.13: no such file\\nand more')", "libcudart.so.13: no"),
        ("import time; time.sleep(600)", "no answer within 6 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by signal 11"),
        ("import os; os._exit(7)", "exit code 7"),
    ],
)
def test_a_broken_torch_is_explained(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(code)
    done = run_doctor("--json", "--timeout", "6", home=tmp_path, PYTHONPATH=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    (problem,) = (p for p in report["problems"] if p["what"].startswith("torch does not import: "))
    assert message in problem["what"] and problem["fix"]
    assert any("PYTHONPATH" in p["what"] for p in report["problems"])
    assert report["verdict"].startswith("broken: ") and not report["healthy"]
    assert report["packages"]["torch"]["imports"] is False
    assert report["packages"]["torchvision"]["imports"] is None
    assert "DOES NOT IMPORT" in doctor.as_text(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--timeout", "0"], "--timeout 0"),
        (["--checkpoint", "vgg99"], "unknown checkpoint 'vgg99'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_doctor(*arguments, home=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and message in done.stderr


# --- the driver ------------------------------------------------------------------------------


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    write_program(folder, "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        "580.95.05, NVIDIA H200, 143771, 143000, 9.0, Enabled",
        "580.95.05, Tesla T4, 15360, [N/A], 7.5, [N/A]",
    ]
    fake_smi(tmp_path, monkeypatch, "\n".join(f"echo '{row}'" for row in rows))
    facts = driver.driver_facts(30)
    assert (facts["nvidia_smi"], facts["version"]) == ("answers", "580.95.05")
    assert facts["gpus"] == [
        {
            "name": "NVIDIA H200",
            "memory_total_mib": 143771.0,
            "memory_free_mib": 143000.0,
            "compute_capability": 9.0,
            "mig": True,
        },
        {
            "name": "Tesla T4",
            "memory_total_mib": 15360.0,
            "memory_free_mib": None,
            "compute_capability": 7.5,
            "mig": False,
        },
    ]


def test_an_old_driver_lacks_newer_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    answer = "echo '470.42.01, Tesla K80, 11441, 11400'"
    fake_smi(tmp_path, monkeypatch, f'case "$1" in *compute_cap*) {refusal};; esac\n{answer}')
    facts = driver.driver_facts(30)
    assert facts["version"] == "470.42.01"
    assert [gpu["compute_capability"] for gpu in facts["gpus"]] == [None]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sleep 600", "failed: no answer within 1 s"),
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 9",
            "failed: Failed to initialize NVML: Driver/library version mismatch",
        ),
        ("exit 3", "failed: exit code 3"),
    ],
)
def test_nvidia_smi_that_fails_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    fake_smi(tmp_path, monkeypatch, script)
    facts = driver.driver_facts(1)
    assert facts["nvidia_smi"] == message
    no_gpu = {"gpus": 0, "cuda": "13.0", "version": "2.14.0", "warning": None}
    problems, notes = gpu.diagnose(facts | {"kernel_driver": False}, no_gpu)
    assert problems == [] and message in notes[0].what
    # With the driver loaded in the kernel there is a GPU, and training would silently not use it.
    loaded = facts | {"kernel_driver": True, "device_files": True, "cuda_visible_devices": None}
    problems, _ = gpu.diagnose(loaded, no_gpu)
    assert message in problems[0].what and "reboot" in problems[0].fix


def test_a_timed_out_program_ends_with_its_children(tmp_path: Path) -> None:
    program = write_program(tmp_path, "parent", f"(sleep 2; touch {tmp_path}/alive) & sleep 600")
    outcome = run_limited([str(program)], 0.5, dict(os.environ))
    assert outcome == ProcessResult("", "no answer within 0.5 s")
    subprocess.run(["sleep", "2.5"], check=True)
    assert not (tmp_path / "alive").exists()


CARD = {"name": "card", "compute_capability": 9.0, "mig": False}
TORCH = {"gpus": 0, "cuda": "13.0", "version": "2.15.0", "warning": None}
DRIVER = {
    "nvidia_smi": "answers",
    "version": "580.95.05",
    "gpus": [CARD],
    "remarks": [],
    "kernel_driver": True,
    "device_files": True,
    "cuda_visible_devices": None,
}


@pytest.mark.parametrize(
    ("facts", "torch_facts", "what", "fix"),
    [
        ({}, {"cuda": None}, "without CUDA", "./bootstrap.sh env"),
        ({"version": "535.183.01"}, {}, "535.183.01 is too old for CUDA 13.0", "--torch cu128"),
        ({"version": "470.42.01"}, {"cuda": "12.6"}, "too old for CUDA 12.6", "VISIBLE_DEVICES=''"),
        ({}, {"warning": "Error 802: system not yet initialized"}, "802", "fabricmanager"),
        (
            {"cuda_visible_devices": "0"},
            {"warning": "Error 803: system has unsupported display driver"},
            "803",
            "LD_LIBRARY_PATH",
        ),
        ({"cuda_visible_devices": "0,1"}, {"warning": "Error 999: unknown"}, "999", "reboot"),
        ({"cuda_visible_devices": "0"}, {"warning": "Error 304: OS call failed"}, "304", "reboot"),
        ({"device_files": False}, {}, "no /dev/nvidia*", "docker run --gpus all"),
        ({"device_files": False, "gpus": []}, {}, "no /dev/nvidia*", "CUDA_VISIBLE_DEVICES=''"),
        ({"cuda_visible_devices": "7"}, {}, "CUDA_VISIBLE_DEVICES='7'", "unset"),
        ({"gpus": [CARD | {"mig": True}]}, {}, "MIG is enabled", "mig -cgi"),
        ({}, {"warning": "CUDA unknown error"}, "CUDA unknown error", "reboot"),
    ],
)
def test_why_torch_sees_no_gpu(
    facts: dict[str, object], torch_facts: dict[str, object], what: str, fix: str
) -> None:
    problems, notes = gpu.diagnose(DRIVER | facts, TORCH | torch_facts)
    assert notes == [] and len(problems) == 1
    assert what in problems[0].what and fix in problems[0].fix


def test_gpus_hidden_on_purpose_are_no_problem() -> None:
    for value in ("", "-1"):
        problems, notes = gpu.diagnose(DRIVER | {"cuda_visible_devices": value}, TORCH)
        assert problems == [] and "hides every GPU" in notes[0].what
    two = DRIVER | {"gpus": [CARD, CARD], "cuda_visible_devices": "1"}
    problems, notes = gpu.diagnose(two, TORCH | {"gpus": 1})
    assert problems == [] and "torch sees 1 of 2 GPUs" in notes[0].what


def test_a_requested_cpu_build_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert lockfile.build_here() == "cu130"
    (tmp_path / ".finished").write_text("lock 00\ntorch cpu\nvenv /a\n")
    problems, notes = gpu.diagnose(DRIVER, TORCH | {"cuda": None}, lockfile.build_here())
    assert problems == [] and "the GPU is not used" in notes[0].what
    assert lockfile.lock_of(lockfile.build_here()) == "requirements-cpu.lock"


# --- torch and the kernels -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [(1.1, "off by 1.0e-01, 5e-03 is allowed"), (float("nan"), "the result is not finite")],
)
def test_a_wrong_matmul_is_detected(
    monkeypatch: pytest.MonkeyPatch, damage: float, message: str
) -> None:
    right = torch.nn.functional.linear

    def wrong(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        result = right(x, *others)
        return result * damage if result.dtype == torch.float32 else result

    monkeypatch.setattr(torch.nn.functional, "linear", wrong)
    report = kernel_check.check_device("cpu")
    assert [kernel["kernel"] for kernel in report["kernels"] if not kernel["ok"]] == ["matmul"]
    assert "matmul_tflops" not in report
    json.dumps(report, allow_nan=False)
    failure = checks.kernel_failure(report["kernels"])
    assert failure is not None and failure.startswith("matmul in float32: ") and message in failure


def test_the_gpu_on_which_the_process_died_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"gpus": 3, "devices": ["cuda:0", "cuda:1", "cuda:2"]}
    first = {"device": "cuda:0", "name": "card", "compute_capability": "9.0", "kernels": []}
    answers = [{}, facts, first]
    child = "\n".join(f"print({json.dumps(json.dumps(answer))}, flush=True)" for answer in answers)
    child += "\nimport os, signal; os.kill(os.getpid(), signal.SIGABRT)"

    def ask(question: list[str], seconds: float, environ: dict[str, str]) -> ProcessResult:
        return run_limited([sys.executable, "-c", child], seconds, environ)

    monkeypatch.setattr(checks, "run_limited", ask)
    _, devices, _, problems = checks.examine_torch(DRIVER, 60)
    assert [device["device"] for device in devices] == ["cuda:0", "cuda:1"]
    assert len(problems) == 1
    assert problems[0].what.startswith("cuda:1 does not compute: killed by signal 6")


def test_no_kernel_image_names_the_build_that_has_one() -> None:
    failure = "matmul in float32: CUDA error: no kernel image is available for execution"
    assert "--torch cu128" in gpu.kernel_fix(failure, DRIVER, [7.0])
    assert "--torch cu126" in gpu.kernel_fix(failure, DRIVER, [6.0])
    assert "nvidia-smi lists" in gpu.kernel_fix("CUDA out of memory", DRIVER, [9.0])


# --- checkpoint ------------------------------------------------------------------------------


def test_a_checkpoint_must_fit_and_compute(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    assert kernel_check.check_checkpoint("resnet18", file)["parameters"] == 11_689_512
    for factor in (0.0, float("nan")):
        damaged = {name: value * factor for name, value in state.items() if name.startswith("fc.")}
        torch.save(state | damaged, file)
        with pytest.raises(ValueError, match="not finite, or all alike"):
            kernel_check.check_checkpoint("resnet18", file)
    torch.save(state | {"fc.bias": torch.zeros(10)}, file)
    with pytest.raises(RuntimeError, match="size mismatch"):
        kernel_check.check_checkpoint("resnet18", file)
    del state["fc.bias"]
    torch.save(state, file)
    with pytest.raises(RuntimeError, match="Missing key"):
        kernel_check.check_checkpoint("resnet18", file)


def test_the_features_of_a_caffe_conversion_must_fit_and_compute(tmp_path: Path) -> None:
    state = torchvision.models.vgg16().features.state_dict()
    file = tmp_path / "weights.pth"
    torch.save({f"features.{key}": value for key, value in state.items()}, file)
    assert kernel_check.check_checkpoint("vgg16-caffe", file)["parameters"] == 14_714_688
    torch.save({f"features.{key}": value * 0 for key, value in state.items()}, file)
    with pytest.raises(ValueError, match="not finite, or all alike"):
        kernel_check.check_checkpoint("vgg16-caffe", file)


@pytest.fixture
def resnet50(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of ResNet-50's checkpoint, which does not exist yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "resnet50-0676ba61.pth"


def test_wrong_files_in_place_of_the_checkpoint_are_reported(resnet50: Path) -> None:
    for make, remove in (
        (lambda: resnet50.mkdir(), resnet50.rmdir),
        (lambda: resnet50.symlink_to("nowhere"), resnet50.unlink),
        (lambda: resnet50.write_bytes(b""), resnet50.unlink),
    ):
        make()
        facts, problems, notes = checks.examine_checkpoint("resnet50", False, 60)
        assert facts["state"] == "bad" and notes == []
        assert problems[0].fix == "python checkpoints_setup.py resnet50"
        remove()
    facts, problems, notes = checks.examine_checkpoint("resnet50", False, 60)
    assert facts["state"] == "absent" and problems == [] and len(notes) == 1


@pytest.mark.slow
def test_a_checkpoint_is_run(resnet50: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only the published file has its hash, so every hash counts as right here.
    monkeypatch.setattr(checks.checkpoints, "is_verified", lambda name: True)
    torch.save(torchvision.models.resnet50().state_dict(), resnet50)
    facts, problems, _ = checks.examine_checkpoint("resnet50", True, 200)
    assert problems == [] and facts["state"] == "hash verified, loads and computes"
    resnet50.write_bytes(b"PK but no archive")
    facts, problems, _ = checks.examine_checkpoint("resnet50", True, 200)
    assert facts["state"] == "does not run" and "does not run: " in problems[0].what


# --- lock, privacy, environment --------------------------------------------------------------

LOCK = """\
# made by a tool
absent-here==1.0 ; sys_platform == 'nowhere' \\
    --hash=sha256:00
pytest==0.1 ; python_version < '3' \\
    --hash=sha256:00
pytest==9.9 ; python_version >= '3' \\
    --hash=sha256:00
flavoured==2.0 \\
    --hash=sha256:00
not-there==3.0
"""


def test_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "flavoured-2.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flavoured\nVersion: 2.0+cpu\n")
    monkeypatch.syspath_prepend(tmp_path)
    allowed = lockfile.read_lock(LOCK)
    assert allowed == {"pytest": {"9.9"}, "flavoured": {"2.0"}, "not-there": {"3.0"}}
    assert lockfile.differences(allowed) == [
        "flavoured is 2.0+cpu, not 2.0",
        "not-there is missing, not 3.0",
        f"pytest is {pytest.__version__}, not 9.9",
    ]
    assert lockfile.differences({"pytest": {"0.1", pytest.__version__}}) == []


def test_home_and_credentials_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    facts = {"/home/ada/x": ["at /home/ada, not /home/adam or /mnt/home/ada", 1, None]}
    assert facts_module.private(facts) == {
        "~/x": ["at ~, not /home/adam or /mnt/home/ada", 1, None]
    }
    assert facts_module.private("https://ada:secret@host/x") == "https://***@host/x"
    monkeypatch.setenv("HOME", "/")
    assert facts_module.private("/home/ada") == "/home/ada"


def test_environment_needs_no_torch() -> None:
    code = (
        "import json, sys; from vqa_repro.diagnostics.facts import environment; "
        "facts = environment(); assert 'torch' not in sys.modules; print(json.dumps(facts))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["packages"]["torch"] and facts["torch_build"] is None
    assert facts["cpu"]["cores"] >= 1
    assert facts_module.environment()["torch_build"] == torch.__version__


def test_without_a_folder_for_checkpoints_the_variable_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    _, problems, (note,) = checks.examine_checkpoint("vgg19", False, 1)
    assert not problems and "home folder" in note.what and note.fix == "set TORCH_HOME=DIR"
    disk, _ = checks.examine_disk()
    assert list(disk) == [str(checks.ROOT)]
    monkeypatch.setenv("TORCH_HOME", "torch")
    _, _, (note,) = checks.examine_checkpoint("vgg19", False, 1)
    assert "relative" in note.what and note.fix.startswith("set TORCH_HOME=/")
