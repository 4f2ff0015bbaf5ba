"""bootstrap.sh in real processes, in a copy in an oddly named folder, without a network.

The locks of the copy name a few tiny packages, so that an environment is built in a second;
.ci/run uses the real locks.
"""

import hashlib
import http.server
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from conftest import LIMIT
from installer_copy import ROOT, UV, UV_VERSION, Copy, make_copy, program
from wheel_index import lock_text, make_wheel, served

from vqa_repro.install import locks
from vqa_repro.install.checkpoints import helper_of
from vqa_repro.install.errors import ExitCode
from vqa_repro.install.options import FLAGS, VALUES
from vqa_repro.install.torch_builds import python_problem

STAGES = ("check", "env", "checkpoint", "doctor", "train")
Files = dict[str, tuple[int, int, int]]
KILLS = int(os.environ.get("VQA_KILLS", "6"))


def files_below(*folders: Path) -> Files:
    """Return size, modification time and inode of every file and folder."""
    found: Files = {}
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            stat = path.lstat()
            found[str(path)] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    return found


def wait_for(what: Callable[[], bool], seconds: float = LIMIT) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def read_to(stream: IO[str] | None, text: str) -> None:
    """Read up to a line with this text, or all."""
    while stream and (line := stream.readline()) and text not in line:
        pass


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# --- help --------------------------------------------------------------------


def test_help_names_every_option_and_exit_code(copy: Copy) -> None:
    before = files_below(copy.root, copy.home)
    text = copy.run("--help").stdout
    explained = text.partition("Exit codes")[2].replace("3-6", "3 4 5 6")
    assert all(re.search(rf"\b{code.value}\b", explained) for code in ExitCode)
    for option in (*VALUES, *FLAGS):
        assert option in text and (VALUES | FLAGS)[option] in text
    assert all(f"\n  {stage} " in text for stage in (*STAGES, "test", "jupyter"))
    assert files_below(copy.root, copy.home) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--fast"], "--fast"),
        (["chekc"], "chekc"),
        (["env", "doctor"], "one stage"),
        (["--skip"], "--skip needs a value"),
        (["--skip", "nothing"], "nothing"),
        (["--installer", "conda"], "conda"),
        (["--lock-wait=soon"], "soon"),
        (["--python", "/no/such/python"], "--python"),
        (["check", "--", "--epochs", "3"], "takes no arguments"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(
    copy: Copy, arguments: list[str], expected: str
) -> None:
    before = files_below(copy.root, copy.home)
    result = copy.run(*arguments, exits=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert expected in result.stderr
    assert files_below(copy.root, copy.home) == before


def test_dry_run_names_all_stages_and_touches_nothing(copy: Copy) -> None:
    before = files_below(copy.root, copy.home)
    out = copy.run("--dry-run", "--", "--model", "san").stdout
    assert [line.split(":")[0] for line in out.splitlines() if line[0] != " "] == list(STAGES)
    assert "--model san" in out
    assert files_below(copy.root, copy.home) == before


# --- the machine -------------------------------------------------------------------------------


def shims(copy: Copy, **scripts: str) -> None:
    """Put these programs first in PATH."""
    folder = copy.home / "shims"
    for name, script in scripts.items():
        program(folder / name, script)
    copy.environ["PATH"] = f"{folder}:{copy.environ['PATH']}"


def rare_version() -> str:
    """Return a supported Python version that no system folder has."""
    for version in ("3.10", "3.12", "3.13", "3.11"):
        folders = [Path("/usr/local/bin"), Path("/usr/bin"), *Path("/opt").glob("*/bin")]
        if not any((folder / f"python{version}").exists() for folder in folders):
            return version
    pytest.skip("this machine has every supported Python for all users")


def pretending(version: str) -> str:
    """Return an sh command for this Python pretending to be of another version."""
    patch = f"import sys; sys.version_info = {version}; exec(open(sys.argv.pop(1)).read())"
    return f'exec {sys.executable!r} -c "{patch}" "$2" "$3"'


def test_unsuitable_pythons_are_listed_with_the_reason(copy: Copy) -> None:
    version = rare_version()
    shims(copy, **{f"python{version}": "echo 'pyenv: not found' >&2; exit 127"})
    old, hung = (copy.home / f".pyenv/versions/{name}/bin/python{version}" for name in "ab")
    program(old, pretending("(3, 9, 18, 'final', 0)"))
    program(hung, "sleep 100")
    out = copy.run("check", "--python", version, exits=11).stdout
    assert re.search(rf"shims/python{version}: exit code 127: pyenv: not found", out)
    assert f"{old}: 3.9.18, and 3.10 to 3.15 is needed" in out
    assert f"{hung}: no answer within 15 s" in out


def test_a_working_python_is_found_behind_a_broken_shim(copy: Copy) -> None:
    version = rare_version()
    shims(copy, **{f"python{version}": "exit 127"})
    good = program(
        copy.home / f".pyenv/versions/{version}.9/bin/python{version}",
        pretending(f"({version.replace('.', ', ')}, 9, 'final', 0)"),
    )
    out = copy.run("check", "--python", version).stdout
    assert re.search(rf"python +ok +{version}\.9, ", out)
    assert "127" not in out
    good.unlink()
    assert "exit code 127" in copy.run("check", "--python", version, exits=11).stdout


def test_all_problems_are_reported_at_once(copy: Copy) -> None:
    old = program(copy.home / "old", pretending("(3, 8, 18, 'final', 0)"))
    shims(
        copy,
        getconf="echo glibc 2.17",
        df="echo header; echo /dev/sda 9999999 9000000 900000 90% /",
    )
    before = files_below(copy.root, copy.home)
    result = copy.run("env", "--python", str(old), exits=10)
    problems = re.findall(r"^  (\w+) +problem", result.stdout, re.MULTILINE)
    assert problems == ["system", "python", "disk"]
    assert "CentOS 7" in result.stdout
    assert "3.8.18" in result.stdout
    assert files_below(copy.root, copy.home) == before


@pytest.mark.parametrize("system", ["Linux riscv64", "MINGW64_NT-10.0 x86_64", "Darwin x86_64"])
def test_systems_without_wheels_are_refused(copy: Copy, system: str) -> None:
    name, machine = system.split()
    shims(copy, uname=f"case $1 in -s) echo {name};; -m) echo {machine};; esac")
    out = copy.run("check", exits=10).stdout
    assert re.search(r"system +problem", out)
    assert ("WSL" in out) == name.startswith("MINGW")


def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mount a real file system of this size."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "small", "2m")


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "other", "300m")


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_too_little_disk_space_is_detected_first(copy: Copy, small_disk: Path) -> None:
    out = copy.run("env", "--venv", str(small_disk / "venv"), exits=12).stdout
    assert f"0 GB free on {small_disk}" in out
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_is_named(copy: Copy, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(2_080_000))
    venv = str(small_disk / "venv")
    result = copy.run("env", "--venv", venv, "--skip", "check", exits=12)
    assert "no space" in result.stderr
    (small_disk / "ballast").unlink()
    copy.run("env", "--venv", venv, "--skip", "check")


def test_a_disk_with_too_few_inodes_is_named(copy: Copy, small_disk: Path) -> None:
    remount(small_disk, "size=20g,nr_inodes=1000")  # of virtual memory, of which none is used
    result = copy.run("env", "--venv", str(small_disk / "venv"), exits=12)
    assert re.search("disk +problem .* files .*df -i", result.stdout)
    shutil.rmtree(copy.root / ".bootstrap")
    (copy.root / ".bootstrap").symlink_to(small_disk)
    remount(small_disk, "nr_inodes=1")
    assert "df -i" in copy.run("env", "--skip", "check", exits=12).stderr


def cards(copy: Copy, driver: str, *capabilities: str) -> None:
    """Put an nvidia-smi in PATH that answers the requested fields for these GPUs."""
    script = "for field in $(echo ${1#--query-gpu=} | tr , ' '); do case $field in\n"
    fields = {"driver_version": driver, "name": "Some Card", "memory.total": "16160"}
    script += "".join(f'  {name}) row="$row, {value}";;\n' for name, value in fields.items())
    script += '  compute_cap) row="$row, $capability";;\n  *) row="$row, [N/A]";; esac; done\n'
    lines = f"for capability in {' '.join(capabilities)}; do row=\n{script}echo ${{row#, }}; done"
    shims(copy, **{"nvidia-smi": lines})


@pytest.mark.parametrize(
    ("driver", "capabilities", "build"),
    [
        ("580.65.06", ["7.5"], "cu130"),
        ("580.65.06", ["7.5", "12.0"], "cu130"),
        ("590.1", ["10.3"], "cu130"),
        ("580.65.06", ["[N/A]"], "cu130"),
        ("580.65.06", ["7.0"], "cu128"),
        ("580.65.06", ["5.0", "9.0"], "cu126"),
        ("579.99", ["9.0"], "cu128"),
        ("525.60.13", ["6.1"], "cu126"),
        ("525.60.11", ["8.0"], "525.60.13 or newer"),
        ("470.42.01", ["7.0"], "up to the branch 580"),
        ("565.57.01", ["10.0"], "570 or newer"),
        ("570.86.10", ["10.0"], "cu128"),
        ("580.65.06", ["7.0", "12.0"], "cu128"),
        ("580.65.06", ["6.0", "12.0"], "6.0 and 12.0 together"),
        ("580.65.06", ["3.7", "9.0"], "compute capability 3.7"),
    ],
)
def test_driver_and_cards_decide_on_the_build(
    copy: Copy, driver: str, capabilities: list[str], build: str
) -> None:
    cards(copy, driver, *capabilities)
    for name in ("cu128", "cu126"):
        shutil.copy(copy.root / "requirements.lock", copy.root / f"requirements-{name}.lock")
    no_wheels = python_problem(build, sys.version_info[:2])
    known = build.startswith("cu1") and not no_wheels
    out = copy.run("check", exits=0 if known else 20).stdout
    assert re.findall(r"gpu +ok +(.*)", out) == [
        f"Some Card, 16160 MiB, compute capability {capability}, driver {driver}"
        for capability in (each.replace("[N/A]", "unknown") for each in capabilities)
    ]
    ((state, answer),) = re.findall(r"torch +(ok|problem) +(.*)", out)
    assert state == ("ok" if known else "problem")
    assert answer.startswith(f"the build {build}, ") if known else (no_wheels or build) in answer
    if not known:  # nothing is installed before the user decides
        out = copy.run("env", exits=20).stdout
        assert no_wheels or "CUDA_VISIBLE_DEVICES" in out
        assert not copy.venv.exists()
        out = copy.run("check", CUDA_VISIBLE_DEVICES="").stdout
        assert "hides every card" in out and "the build cu130" in out


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("trap '' TERM; sleep 100; sleep 100", "the driver hangs; reboot"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "mismatch"),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "NVIDIA-SMI has failed"),
        ("exit 0", "no usable card"),
    ],
)
def test_a_driver_in_trouble_is_a_note(copy: Copy, script: str, expected: str) -> None:
    shims(copy, **{"nvidia-smi": script})
    out = copy.run("check").stdout
    (line,) = re.findall(r"gpu +note +(.*)", out)
    assert expected in line and "the build cu130" in out


def test_a_missing_lock_is_explained(copy: Copy) -> None:
    names = {"cu126": "6.1", "cu128": "7.0"}
    name = next((n for n in names if not python_problem(n, sys.version_info[:2])), "")
    if not name:
        pytest.skip("this Python has wheels of the default build alone")
    cards(copy, "580.65.06", names[name])
    before = files_below(copy.root, copy.home)
    out = copy.run("env", exits=20).stdout
    assert f"the build {name} is needed, but requirements-{name}.lock is missing" in out
    assert f"git checkout requirements-{name}.lock" in out
    assert files_below(copy.root, copy.home) == before


def test_the_requested_build_is_used_and_kept(copy: Copy, wheelhouse: Path) -> None:
    cards(copy, "580.65.06", "9.0")
    lock = lock_text(wheelhouse, "alpha==2.0", f"uv=={UV_VERSION} ; python_version < '3'")
    (copy.root / "requirements-cpu.lock").write_text(lock)
    out = copy.run("env", "--torch", "cpu").stdout
    assert "build cpu was requested" in out
    assert copy.python("import alpha; print(alpha.version)") == "2.0"
    assert copy.run("env").stdout.startswith("env: up to date")
    assert copy.run("env", VQA_TORCH="cpu").stdout.startswith("env: up to date")
    copy.run("env", "--torch", "cu130")
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    cards(copy, "580.65.06", "7.0")
    out = copy.run("check", "--torch=cu130").stdout
    assert "does not run all cards; --torch cu128 does" in out
    cards(copy, "580.65.06", "8.0")
    (copy.root / "requirements-cu126.lock").write_text(lock)
    no_wheels = python_problem("cu126", sys.version_info[:2])
    out = copy.run("check", "--torch=cu126", exits=20 if no_wheels else 0).stdout
    assert "requested build" not in out and no_wheels in out  # this driver runs it, too


def test_auto_chooses_the_build_again(copy: Copy, wheelhouse: Path) -> None:
    """The doctor advises it to leave the build cpu; not naming a build keeps the present one."""
    if no_wheels := python_problem("cu128", sys.version_info[:2]):
        pytest.skip(no_wheels)
    marker = f"uv=={UV_VERSION} ; python_version < '3'"
    for name, packages in (("cpu", ["alpha==2.0"]), ("cu128", ["alpha==2.0", "beta==1.0"])):
        lock = lock_text(wheelhouse, *packages, marker)
        (copy.root / f"requirements-{name}.lock").write_text(lock)

    def build() -> str:
        return re.findall("(?m)^torch (.*)", (copy.venv / ".finished").read_text())[0]

    cards(copy, "580.65.06", "9.0")
    copy.run("env", "--torch", "cpu")
    assert copy.run("env").stdout.startswith("env: up to date") and build() == "cpu"
    copy.run("env", "--torch", "auto")
    assert copy.python("import alpha; print(alpha.version)") == "1.0" and build() == "cu130"
    assert copy.run("env", "--torch", "auto").stdout.startswith("env: up to date")
    cards(copy, "579.99", "9.0")
    assert copy.run("env").stdout.startswith("env: up to date")
    copy.run("env", VQA_TORCH="auto")
    assert copy.python("import alpha, beta; print(alpha.version)") == "2.0" and build() == "cu128"
    hidden = {"VQA_TORCH": "auto", "CUDA_VISIBLE_DEVICES": ""}
    assert copy.run("env", **hidden).stdout.startswith("env: up to date")
    copy.run("env", "--torch", "cpu")
    copy.run("env", **hidden)
    assert build() == "cu130"


@pytest.mark.parametrize("skip", [(), ("--skip", "check")])
def test_auto_refuses_cards_that_no_build_runs(copy: Copy, skip: tuple[str, ...]) -> None:
    """Also where there is an environment, which stays, and is used where no build is chosen."""
    copy.run("env")
    before = files_below(copy.venv)
    cards(copy, "580.65.06", "3.7")
    out = copy.run("env", "--torch", "auto", *skip, exits=20).stdout
    assert re.search("torch +problem +no build of torch supports compute capability 3.7", out)
    assert copy.run("env").stdout.startswith("env: up to date")
    hidden = copy.run("env", "--torch", "auto", CUDA_VISIBLE_DEVICES="")
    assert hidden.stdout.startswith("env: up to date")
    assert files_below(copy.venv) == before


@pytest.mark.parametrize("installer", ["uv", pytest.param("pip", marks=pytest.mark.slow)])
def test_another_build_comes_from_its_own_index(copy: Copy, tmp_path: Path, installer: str) -> None:
    usual, special = tmp_path / "index/usual", tmp_path / "index/special"
    usual.mkdir(parents=True)
    special.mkdir()
    make_wheel(usual, "torch", "2.0", {"torch.py": b"build = 'cu130'"})
    make_wheel(special, "torch", "2.0+cpu", {"torch.py": b"build = 'cpu'"})
    make_wheel(special, "torchvision", "2.0+cpu", {"torchvision.py": b""})
    make_wheel(special, "alpha", "1.0", {"alpha.py": b"not = 'the usual one'"})
    for name in ("alpha-1.0", "words-1.0"):
        shutil.copy(copy.wheelhouse / f"{name}-py3-none-any.whl", usual)
    lock = lock_text(usual, "alpha==1.0") + lock_text(
        special, "torch==2.0+cpu", "torchvision==2.0+cpu"
    )
    lock += lock_text(copy.wheelhouse, f"uv=={UV_VERSION} ; python_full_version < '3'")
    (copy.root / "requirements-cpu.lock").write_text(lock)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    with served(tmp_path / "index") as url:
        environ = {"VQA_OFFLINE": "0", "PIP_INDEX_URL": f"{url}/usual"}
        options = ("--torch", "cpu", "--torch-index", f"{url}/special", "--installer", installer)
        copy.run("env", *options, **environ)
        copy.run("bundle", str(tmp_path / "out"), *options[:4], "--skip", "checkpoint", **environ)
    wheels = {path.name.partition("-py3")[0] for path in (tmp_path / "out/wheels").iterdir()}
    assert wheels == {"alpha-1.0", "torch-2.0+cpu", "torchvision-2.0+cpu", "words-1.0"}
    assert copy.python("import alpha, torch; print(torch.build, alpha.version)") == "cpu 1.0"


# --- the environment ---------------------------------------------------------------------------


def test_env_is_made_once_and_then_left_alone(copy: Copy) -> None:
    first = copy.run("env")
    assert f"uv {UV_VERSION}, as requirements.lock names it, kept" in first.stdout
    assert copy.python("import alpha, beta; print(alpha.version)") == "1.0"
    assert copy.python("import vqa_repro; print(vqa_repro.__file__)").startswith(str(copy.root))
    before = files_below(copy.root, copy.home)
    assert copy.run("env").stdout.startswith("env: up to date")
    assert files_below(copy.root, copy.home) == before


@pytest.mark.parametrize("suffix", ["rc1", "+"])
def test_a_python_that_is_no_release_is_fit(copy: Copy, suffix: str) -> None:
    """The locks' markers are about its numbers, whatever else it calls itself."""
    copy.run("env")
    stamp = copy.venv / ".finished"
    good = stamp.read_text()
    stamp.write_text(re.sub("(?m)^python .*", rf"\g<0>{suffix}", good))  # by an older installer
    assert copy.run("env").stdout.startswith("env: up to date")
    (packages,) = copy.venv.glob("lib/python3*/site-packages")
    rename = f"import sys; sys.version = sys.version.replace(' ', '{suffix} ', 1)\n"
    (packages / "name.pth").write_text(rename)
    copy.lock("alpha==2.0")
    copy.run("env")
    assert re.findall("(?m)^python .*", stamp.read_text()) == re.findall("(?m)^python .*", good)
    assert copy.run("env").stdout.startswith("env: up to date")


def test_a_changed_lock_updates(copy: Copy) -> None:
    copy.run("env")
    copy.lock("alpha==2.0")
    copy.run("env")
    assert copy.python("import alpha; print(alpha.version)") == "2.0"
    assert copy.python("import importlib.util as u; print(u.find_spec('beta'))") == "None"


@pytest.mark.parametrize("installer", ["uv", pytest.param("pip", marks=pytest.mark.slow)])
def test_the_data_package_comes_without_its_dependencies(copy: Copy, installer: str) -> None:
    names = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
    version = "import importlib.metadata as m; print(m.version('words'))"
    copy.run("env", "--installer", installer)
    assert copy.python(version) == "1.0"
    assert copy.run("env", "--installer", installer).stdout.startswith("env: up to date")
    copy.lock_words("2.0")  # the stamp knows this lock, too
    copy.run("env", "--installer", installer)
    assert copy.python(version) == "2.0"
    assert set(copy.python(names).split()) - {"pip"} == {"alpha", "beta", "words"}


def test_another_version_of_a_package_is_replaced(copy: Copy) -> None:
    copy.run("env")
    command = [UV, "pip", "install", "--quiet", "--python", copy.venv / "bin/python", "--no-index"]
    subprocess.run([*command, "--find-links", copy.wheelhouse, "alpha==2.0"], check=True)
    assert copy.run("doctor").stdout.startswith("env: up to date")  # which uses it as it is
    out = copy.run("env").stdout
    assert "alpha is 2.0, not 1.0" in out and "done in" in out
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    assert copy.run("env").stdout.startswith("env: up to date")


def test_the_command_vqa_runs_from_anywhere(copy: Copy) -> None:
    (copy.root / "vqa_repro/__main__.py").write_text("import sys; print(sys.argv[1:])")
    copy.run("env")
    link = copy.home / "link to vqa"
    link.symlink_to(copy.venv / "bin/vqa")
    assert subprocess.check_output([link, "a b"], cwd=copy.home, text=True) == "['a b']\n"


def test_a_relative_torch_home_is_found_by_the_check(copy: Copy) -> None:
    out = copy.run("check", TORCH_HOME="x", exits=2).stdout
    assert re.search("checkpoint +problem +TORCH_HOME=x .*; set TORCH_HOME=/", out)
    assert "--dir" not in out  # an option of another command


def test_a_damaged_installer_is_named_in_one_line(copy: Copy) -> None:
    module = copy.root / "vqa_repro/install/console.py"
    module.write_bytes(module.read_bytes()[:900])
    error = copy.run("env", exits=2).stderr
    assert error.startswith("error: ") and error.count("\n") == 1 and "console" in error


def test_a_removed_current_folder_is_named(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    copy.before = ["sh", "-c", f"cd '{tmp_path}/here'; rmdir ../here; exec \"$@\"", "-"]
    assert "the current folder was removed" in copy.run("check", exits=2).stderr


def test_half_a_copy_is_refused(copy: Copy) -> None:
    (copy.root / "wordnet.lock").unlink()
    assert "wordnet.lock: this is not a whole copy" in copy.run("env", exits=2).stderr


def test_interfering_variables_are_set_aside(copy: Copy) -> None:
    poison = copy.home / "poison"
    program(poison / "zipfile.py", "raise SystemExit('poisoned')")
    program(poison / "sitecustomize.py", "raise SystemExit('poisoned')")
    out = copy.run(
        "env",
        PYTHONPATH=str(poison),
        PYTHONHOME=str(poison),
        PIP_USER="1",
        PIP_TARGET=str(poison),
        PIP_REQUIRE_VIRTUALENV="1",
        UV_PYTHON="3.8",
        UV_NO_BINARY="1",
        VIRTUAL_ENV=str(poison),
        CONDA_PREFIX=str(poison),
    ).stdout
    (line,) = re.findall(r"settings +note +set aside: (.*)", out)
    assert {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "UV_NO_BINARY"} <= set(
        line.split()
    )
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    assert {path.name for path in poison.iterdir()} == {"zipfile.py", "sitecustomize.py"}


@pytest.mark.parametrize(
    "name", [f"{'very ' * 30}long", "a, b; c & $(d) `e` %s \\n", "-q", "数据 é", "#x=y"]
)
def test_odd_paths(tmp_path: Path, wheelhouse: Path, name: str) -> None:
    copy = make_copy(tmp_path / name, tmp_path / "home", wheelhouse)
    copy.run("env")
    assert copy.python("import vqa_repro; print(vqa_repro.__file__)").startswith(str(copy.root))
    assert copy.run("env").stdout.startswith("env: up to date")


def test_a_home_that_cannot_be_written(copy: Copy, other_disk: Path) -> None:
    copy.environ["HOME"] = str(other_disk)
    remount(other_disk, "ro")
    out = copy.run("env", UV_CACHE_DIR=str(other_disk / "cache")).stdout
    assert "problem" not in out
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    assert any((copy.root / ".bootstrap/cache").iterdir())


def test_a_project_that_cannot_be_written(
    tmp_path: Path, wheelhouse: Path, other_disk: Path
) -> None:
    copy = make_copy(other_disk / "copy", tmp_path / "home", wheelhouse)
    remount(other_disk, "ro")
    out = copy.run("env", exits=12).stdout  # which is full, too
    assert re.search("write +problem +not allowed in .*; try --venv DIR, or another copy", out)
    assert "Read-only file system" in copy.run("env", "--skip", "check", exits=13).stderr


def test_a_disk_that_runs_no_programs(
    copy: Copy, tmp_path: Path, wheelhouse: Path, other_disk: Path
) -> None:
    """Mount it noexec, as some clusters do with scratch disks."""
    remount(other_disk, "noexec")
    pattern = "exec +problem +{} is on a disk mounted noexec.*--venv DIR"
    venv = other_disk / "venv"
    out = copy.run("env", "--venv", str(venv), exits=12).stdout  # which is full, too
    assert re.search(pattern.format(re.escape(str(venv))), out)
    assert not list(other_disk.iterdir())
    project = make_copy(other_disk / "copy", tmp_path / "another home", wheelhouse)
    project.before = ["bash"]  # a shell's code: bootstrap.sh itself may not be executed there
    out = project.run("env", exits=12).stdout
    assert len(re.findall(pattern.format(".*"), out)) == 2  # of the environment, of .bootstrap


def test_a_python_without_pip_and_ensurepip(copy: Copy) -> None:
    hide = "import sys, importlib.util as u; find = u.find_spec; "
    hide += (
        "u.find_spec = lambda name: None if 'pip' in name else find(name); "
        "exec(open(sys.argv.pop(1)).read())"
    )
    bare = str(program(copy.home / "bare", f'exec {sys.executable!r} -c "{hide}" "$2" "$3"'))
    copy.run("env", "--python", bare)  # uv needs neither
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    out = copy.run("check", "--python", bare, "--installer", "pip", exits=11).stdout
    assert "with neither pip nor ensurepip (Debian: apt install python3-venv)" in out


def test_no_curl_no_wget_no_git(copy: Copy) -> None:
    folder = copy.home / "few programs"
    folder.mkdir()
    for path in (*Path("/bin").iterdir(), *Path("/usr/bin").iterdir()):
        if not re.match("curl|wget|git|python|pip|uv", path.name):
            (folder / path.name).exists() or (folder / path.name).symlink_to(path)
    copy.run("env", PATH=str(folder))
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_on_a_terminal(copy: Copy) -> None:
    copy.slow_uv("sleep 2")
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [str(copy.root / "bootstrap.sh"), "env"],
        env=copy.environ | {"TERM": "xterm"},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    seen = b""
    while True:
        try:
            seen += (more := os.read(ours, 1 << 16))
        except OSError:  # how Linux tells that the other end is closed
            break
        if not more:
            break
    os.close(ours)
    assert process.wait(30) == 0, seen.decode()
    assert b"\r\x1b[K  installing the packages: 1 s" in seen
    assert b"\x1b[32mok" in seen


def test_uv_gets_the_settings_of_pip_conf(copy: Copy) -> None:
    conf = copy.home / ".config/pip/pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        f"[global]\nuser = true\nno-index = true\nfind-links =\n    {copy.wheelhouse}\n"
    )
    for name in ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    out = copy.run("env").stdout
    assert "PIP_FIND_LINKS" in re.findall(r"used:.*pip.conf: (.*)", out)[0].split()
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_a_broken_pip_conf_is_refused_in_one_line(copy: Copy) -> None:
    conf = copy.home / "pip.conf"
    conf.write_text("index-url = http://user:secret@index/simple\n")
    done = copy.run("env", exits=2, PIP_CONFIG_FILE=str(conf))
    assert f"{conf}, line 1" in done.stderr and "secret" not in done.stdout + done.stderr
    assert not copy.venv.exists()


def test_the_pinned_uv_is_fetched(copy: Copy) -> None:
    copy.lock("alpha==1.0", uv_marker="")
    shutil.rmtree(copy.root / ".bootstrap")
    out = copy.run("env").stdout
    assert f"uv {UV_VERSION}, as requirements.lock names it, fetched just now" in out
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    assert (copy.root / f".bootstrap/uv-{UV_VERSION}/uv").read_bytes() == UV.read_bytes()


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_damaged_uv_is_fetched_again(copy: Copy, size: int) -> None:
    copy.lock("alpha==1.0", uv_marker="")
    own = copy.root / f".bootstrap/uv-{UV_VERSION}/uv"
    own.unlink()
    own.write_bytes(UV.read_bytes()[:size])
    own.chmod(0o755)
    assert "fetched just now" in copy.run("env").stdout
    assert own.read_bytes() == UV.read_bytes()


def test_a_uv_with_another_hash_is_not_used(copy: Copy) -> None:
    copy.lock("alpha==1.0", uv_marker="")
    shutil.rmtree(copy.root / ".bootstrap")
    lock = copy.root / "requirements.lock"
    text = lock.read_text()
    lock.write_text(text[:-5] + ("0000\n" if text[-5:-1] != "0000" else "1111\n"))
    result = copy.run("env", "--installer", "uv", exits=14)
    assert "could not be fetched: " in result.stderr
    assert "DO NOT MATCH THE HASHES" in result.stderr
    assert not copy.venv.exists()


@pytest.mark.slow
def test_pip_makes_the_same_environment(copy: Copy) -> None:
    assert "pip, as requested" in copy.run("env", "--installer", "pip").stdout
    assert copy.python("import alpha, beta; print(alpha.version)") == "1.0"
    copy.lock("alpha==2.0")
    copy.run("env", "--installer", "pip")
    names = "import importlib.metadata as m; print(*sorted({d.name for d in m.distributions()}))"
    assert copy.python(names) == "alpha pip words"
    assert copy.run("env").stdout.startswith("env: up to date")  # auto keeps the present build
    lock = copy.root / "requirements.lock"
    lock.write_text(
        re.sub("alpha==2.0(.*\n.*sha256:)....", r"alpha==1.0\g<1>0000", lock.read_text())
    )
    copy.run("env", "--installer", "pip", exits=15)


def test_another_hash_than_the_locks_is_refused(copy: Copy) -> None:
    lock = copy.root / "requirements.lock"
    good = lock.read_text()
    lock.write_text(re.sub("sha256:....", "sha256:0000", good, count=1))
    result = copy.run("env", exits=15)
    (log,) = re.findall(r"log: +(.*)", result.stderr)
    assert "alpha" in Path(log).read_text()
    assert not (copy.venv / ".finished").exists()
    assert "bootstrap.sh env" not in result.stderr  # a retry would fail in the same way
    lock.write_text(good)
    copy.run("env")


def test_a_failure_shows_reason_and_fix_without_passwords(copy: Copy) -> None:
    class Empty(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    index = f"http://someone:hush-hush@127.0.0.1:{server.server_port}/simple"
    result = copy.run("env", exits=14, PIP_INDEX_URL=index, VQA_OFFLINE="0")
    server.shutdown()
    server.server_close()
    (log,) = re.findall(r"log: +(.*)", result.stderr)
    assert "alpha" in result.stderr
    assert re.search(r"why: .*\n(.*\n)*  log: .*\n  next: .*bootstrap.sh", result.stderr)
    assert "127.0.0.1 answers" in result.stdout
    assert "hush-hush" not in result.stdout + result.stderr + Path(log).read_text()


@pytest.mark.parametrize("damaged", [".finished", "lib/python3*/site-packages"])
def test_a_damaged_environment_is_named_and_made_again(copy: Copy, damaged: str) -> None:
    copy.run("env")
    (path,) = copy.venv.glob(damaged)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(b"")
    assert "damaged" in copy.run("doctor", exits=2).stderr
    copy.run("env")
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_a_vanished_python_is_replaced(copy: Copy) -> None:
    copy.run("env")
    (copy.venv / "bin/python").unlink()
    (copy.venv / "bin/python").symlink_to("/gone/python")
    copy.run("env")
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


@pytest.mark.parametrize("stage", ["doctor", "train", "test", "jupyter"])
def test_using_an_environment_whose_python_is_not_here_deletes_nothing(
    copy: Copy, stage: str
) -> None:
    """Remove the interpreter, as on a cluster node with another module loaded."""
    copy.run("env")
    python, stamp = copy.venv / "bin/python", copy.venv / ".finished"
    python.unlink()
    python.symlink_to("/opt/module/python3")
    stamp.write_text(re.sub("(?m)^base .*", "base /opt/module/python3", stamp.read_text()))
    before = files_below(copy.venv)
    del copy.environ["VQA_PYTHON"]
    err = copy.run("--python", sys.executable, stage, exits=2).stderr
    assert "/opt/module/python3" in err and f"env --python={sys.executable}" in err
    assert "/opt/module/python3" in copy.run(stage, exits=2).stderr
    assert files_below(copy.venv) == before


def test_an_environment_is_kept_until_the_new_one_is_complete(copy: Copy) -> None:
    """The new one's scripts name its folder, also where that has an apostrophe in its path."""
    copy.run("env")
    python = copy.venv / "bin/python"
    python.unlink()
    python.symlink_to("/gone/python")
    before = files_below(copy.venv)
    lock = copy.root / "requirements.lock"
    good = lock.read_text()
    lock.write_text(re.sub("sha256:....", "sha256:0000", good, count=1))
    copy.run("env", exits=15)
    assert files_below(copy.venv) == before
    lock.write_text(good)
    copy.run("env")
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    assert {path.name for path in copy.root.glob(".venv*")} == {".venv"}
    assert "'" in str(copy.venv)
    activate = f". {shlex.quote(str(copy.venv / 'bin/activate'))}; command -v python"
    found = subprocess.check_output(["bash", "-c", activate], text=True)
    assert found == f"{copy.venv}/bin/python\n"


@pytest.mark.parametrize("how", ["without the new packages", "interrupted"])
def test_an_update_that_fails_deletes_nothing(copy: Copy, how: str) -> None:
    """Nor does the next call: trainings may run from the environment, where a file was edited."""
    copy.run("env")
    (edited,) = copy.venv.glob("lib/python3*/site-packages/beta.py")
    edited.unlink()  # which may be a link into uv's cache
    edited.write_text("version = 'my own'")
    before = files_below(copy.venv / "bin", copy.venv / "lib")
    copy.lock("alpha==2.0", "beta==1.0")
    if how == "interrupted":
        copy.slow_uv("echo $$ >installer; sleep 1000")
        process = copy.start("train")
        wait_for(lambda: (copy.home / "installer").exists())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
        copy.slow_uv("exit 1")
    nothing = {"PIP_FIND_LINKS": "", "UV_CACHE_DIR": str(copy.home / "empty cache")}
    for _ in range(2):
        copy.run("train", exits=14, **nothing)
        assert files_below(copy.venv / "bin", copy.venv / "lib") == before
    assert copy.python("import alpha; print(alpha.version)") == "1.0"
    copy.quick_uv()
    assert "an update was interrupted" in copy.run("env").stdout
    assert copy.python("import alpha, beta; print(alpha.version)") == "2.0"
    assert copy.run("env").stdout.startswith("env: up to date")


@pytest.mark.parametrize("half", ["gamma.py", "gamma-1.0.dist-info/RECORD"])
@pytest.mark.parametrize("installer", ["uv", pytest.param("pip", marks=pytest.mark.slow)])
def test_an_interrupted_update_is_completed(copy: Copy, installer: str, half: str) -> None:
    """Interrupt it while the package gamma is replaced, by a version that lacks one of its files.

    What is left would count as installed, or stay without a package that it belongs to.
    """
    copy.wheelhouse = Path(shutil.copytree(copy.wheelhouse, copy.home / "wheels"))
    copy.environ["PIP_FIND_LINKS"] = str(copy.wheelhouse)
    for version, names in (("1.0", ["gamma.py", "gamma_old.py"]), ("2.0", ["gamma.py"])):
        files = {name: f"version = {version!r}\n".encode() for name in names}
        make_wheel(copy.wheelhouse, "gamma", version, files)
    copy.lock("beta==1.0", "gamma==1.0")
    copy.run("env", "--installer", installer)
    assert copy.python("import gamma_old; print(gamma_old.version)") == "1.0"
    copy.lock("beta==1.0", "gamma==2.0")
    (site,) = copy.venv.glob("lib/python3*/site-packages")
    (site / half).unlink()
    (copy.venv / ".incomplete").touch()
    copy.run("env", "--installer", installer)
    assert copy.python("import beta, gamma; print(beta.version, gamma.version)") == "1.0 2.0"
    found = {path.name for path in site.glob("gamma*")}
    assert found == {"gamma.py", "gamma-2.0.dist-info"}
    assert {path.name for path in copy.root.glob(".venv*")} == {".venv"}
    assert ".venv.new" not in (copy.venv / "bin/activate").read_text()
    assert copy.run("env", "--installer", installer).stdout.startswith("env: up to date")


@pytest.mark.parametrize("moment", ["between the renamings", "after them"])
@pytest.mark.parametrize("linked", [False, True])
def test_killed_while_an_environment_is_replaced_it_recovers(
    tmp_path: Path, wheelhouse: Path, linked: bool, moment: str
) -> None:
    copy = make_copy(tmp_path / "copy", tmp_path / "home", wheelhouse)
    place = copy.home / "scratch" / ".venv" if linked else copy.venv
    if linked:
        place.mkdir(parents=True)
        copy.venv.symlink_to(place)
    copy.run("env")
    (copy.venv / "bin/python").unlink()
    (copy.venv / "bin/python").symlink_to("/gone/python")
    module = copy.root / "vqa_repro/install/swap.py"
    good = module.read_text()
    renaming, kill = "    os.rename(new, real)\n", "    os.kill(os.getpid(), 9)\n"
    assert good.count(renaming) == 1
    pair = kill + renaming if moment.startswith("between") else renaming + kill
    module.write_text(good.replace(renaming, pair))
    copy.run("env", exits=-signal.SIGKILL)
    module.write_text(good)
    assert copy.venv.exists() == (moment == "after them")
    copy.run("check", exits=13 if linked and not copy.venv.exists() else 0)
    assert (place.parent / ".venv.old").exists()  # the check only looks
    out = copy.run("doctor").stdout
    assert "env: up to date" in out and "healthy" in out
    assert {path.name for path in place.parent.glob(".venv*")} == {".venv"}
    activate = (copy.venv / "bin/activate").read_text()
    assert f"VIRTUAL_ENV='{copy.venv}'" in activate and ".venv.new" not in activate
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_a_copy_of_the_environment_is_left_alone(copy: Copy) -> None:
    copy.run("env")
    shutil.copytree(copy.venv, copy.root / ".venv.old", symlinks=True)
    assert copy.run("doctor").stdout.startswith("env: up to date")
    assert (copy.root / ".venv.old/.finished").exists()


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_backup_of_the_environment_is_kept_when_a_new_one_is_made(copy: Copy, how: str) -> None:
    copy.run("env")
    backup = copy.root / ".venv.old"
    if how == "moved":
        copy.venv.rename(backup)
    else:
        shutil.copytree(copy.venv, backup, symlinks=True)
        (copy.venv / "bin/python").unlink()
        (copy.venv / "bin/python").symlink_to("/gone/python")
    before = files_below(backup)
    copy.run("env")
    assert files_below(backup) == before
    assert {path.name for path in copy.root.glob(".venv*")} == {".venv", ".venv.old"}
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_a_replacement_that_another_user_left_unfinished_stops_nobody(copy: Copy) -> None:
    """Meet its mark in a shared folder, where only its owner may remove it (the sticky bit)."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("files cannot be another user's here")
    venv = copy.home / "shared/env"
    copy.run("env", "--venv", str(venv))
    mark = venv.with_name("env.swap")
    mark.touch()
    venv.parent.chmod(0o1777)
    for path in (venv.parent, mark):
        os.chown(path, 1, 1)
    # Root may remove everything, but for this.
    copy.before = ["setpriv", "--inh-caps=-all", "--bounding-set=-fowner"]
    assert "healthy" in copy.run("doctor", "--venv", str(venv)).stdout
    assert mark.exists()


def test_a_dangling_link_is_named(copy: Copy) -> None:
    copy.venv.symlink_to("/scratch/that/was/purged")
    fix = "mkdir -p /scratch/that/was/purged, or rm "
    assert fix in copy.run("env", "--skip", "check", exits=13).stderr
    assert fix in copy.run("env", exits=13).stdout


@pytest.mark.parametrize("removed", ["log", "all"])
def test_losing_the_log_does_not_stop_the_installation(copy: Copy, removed: str) -> None:
    state = copy.root / ".bootstrap"
    if removed == "log":
        (state / "log").write_text("a file in its place")
        assert "no log is written" in copy.run("env").stdout
    else:
        copy.slow_uv(f"rm -rf {shlex.quote(str(state))}; exit 1")
        process = copy.start("env")
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 14 and err.count("failed") == 1 and ".bootstrap" in err
        copy.quick_uv()
        copy.run("env")


def test_a_leftover_that_cannot_be_removed_does_not_undo_an_installation(copy: Copy) -> None:
    if os.geteuid() != 0 or shutil.which("chattr") is None:
        pytest.skip("no file can be made that root cannot remove")
    leftover = copy.root / ".bootstrap/tmp/of root"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    if subprocess.run(["chattr", "+i", leftover], capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        assert "cannot be removed" in copy.run("env").stdout
        assert copy.run("env").stdout.startswith("env: up to date")
    finally:
        subprocess.run(["chattr", "-i", leftover], check=True)


def test_what_killed_runs_left_is_removed_and_not_what_others_use(copy: Copy) -> None:
    state = copy.root / ".bootstrap"
    for name in ("tmp", "tmp-12345", "tmp-python-12345"):
        (state / name).mkdir()
        (state / name / "file").touch()
    copy.run("env")
    assert {path.name for path in state.glob("tmp*")} == {"tmp-python-12345"}
    assert (state / "tmp-python-12345/file").exists()


def test_follow_up_commands_repeat_the_options(copy: Copy) -> None:
    out = copy.run("env", "--venv", "my env", "--installer=uv").stdout
    assert out.splitlines()[-1].endswith("train '--venv=my env' --installer=uv")
    (copy.home / "here").symlink_to("/scratch/that/was/purged")
    typed = ("train", "--venv=here", "--torch=cu130", "--", "--epochs", "1")
    failed = copy.run(*typed, exits=13).stderr
    assert "bootstrap.sh train --torch=cu130 --venv=here -- --epochs 1 " in failed.replace("'", "")


def test_an_installer_that_is_killed_is_named(copy: Copy) -> None:
    copy.slow_uv("kill -9 $$")
    assert "killed by signal 9" in copy.run("env", exits=14).stderr.partition("      |")[0]


# --- shells and terminals ----------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["sh", "bash", "bash --posix"])
def test_any_shell_runs_it(copy: Copy, shell: str) -> None:
    copy.before = shell.split()
    assert "python    ok" in copy.run("check").stdout


@pytest.mark.parametrize(
    "command",
    ["bash -c '. ./bootstrap.sh check'", "sh -c '. ./bootstrap.sh'", "bash <bootstrap.sh"],
)
def test_sourced_it_refuses_in_one_line(copy: Copy, command: str) -> None:
    done = subprocess.run(
        command, shell=True, cwd=copy.root, env=copy.environ, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "sourced" in done.stderr


def test_windows_line_endings_are_named_in_one_line(copy: Copy) -> None:
    script = copy.root / "bootstrap.sh"
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    for shell in ("sh", "bash"):
        copy.before = [shell]
        err = copy.run("check", exits=2).stderr
        assert err.count("\n") == 1 and "Windows line endings" in err


def test_it_is_found_through_a_link(copy: Copy) -> None:
    link = copy.home / "setup-vqa"
    link.symlink_to(copy.root / "bootstrap.sh")
    done = subprocess.run([link, "env"], env=copy.environ, cwd=copy.home, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert copy.venv.is_dir()


@pytest.mark.parametrize("redirection", ["| head -n 1", ">&-", ">/dev/full", ">/dev/full 2>&1"])
def test_a_closed_pipe_does_not_stop_the_installation(copy: Copy, redirection: str) -> None:
    command = f"set -o pipefail; ./bootstrap.sh env {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=copy.root, env=copy.environ, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert (copy.venv / ".finished").exists()


def test_a_terminal_with_tostop_does_not_stop_it(copy: Copy) -> None:
    copy.run("env")
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(copy.root)
        command = "stty tostop; ./bootstrap.sh doctor; echo ended with $?"
        os.execve("/bin/bash", ["bash", "-c", command], copy.environ)
    seen = b""
    while b"ended with" not in seen:
        seen += os.read(terminal, 4096)
    os.close(terminal)
    os.waitpid(shell, 0)
    assert b"healthy" in seen and b"ended with 0" in seen


def test_variables_that_break_python_are_set_aside(copy: Copy) -> None:
    copy.run("env")
    out = copy.run("doctor", PYTHONINSPECT="1", PYTHONPATH="/elsewhere").stdout
    assert "healthy" in out and "unset PYTHONPATH" in out


@pytest.mark.parametrize("stage", ["check", "env"])
def test_an_odd_index_is_named_without_its_password(copy: Copy, stage: str) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    index = "http://someone:pa/ss@3cr:3t@127.0.0.1:1/simple"
    done = copy.run(stage, PIP_INDEX_URL=index, VQA_OFFLINE="0", exits=2)
    assert re.search("network +problem .*%2F.*127.0.0.1", done.stdout)
    assert "3cr" not in done.stdout and "pa'" not in done.stdout


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_EXTRA_INDEX_URL"])
def test_an_address_that_pip_cannot_parse_is_refused_before(copy: Copy, name: str) -> None:
    for name_of_copy in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name_of_copy]
    index = "http://someone:s3cret/word@127.0.0.1:1/simple"
    err = copy.run("env", "--skip", "check", exits=2, VQA_OFFLINE="0", **{name: index}).stderr
    assert name in err and "%2F" in err and "s3cret" not in err and "Traceback" not in err
    assert not copy.venv.exists()


@pytest.mark.parametrize("index", ["https://", "ftp://x/simple", "packages", "file:///none/simple"])
def test_what_cannot_be_an_index_is_named(copy: Copy, index: str) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    done = copy.run("check", PIP_INDEX_URL=index, VQA_OFFLINE="0", exits=2)
    assert re.search(f"network +problem .*{index}", done.stdout)


def test_a_refusal_of_the_file_system_is_not_taken_for_a_missing_package(copy: Copy) -> None:
    copy.slow_uv("echo 'failed to rename file: Stale file handle (os error 116)'; exit 2")
    error = copy.run("env", exits=14).stderr
    assert "Stale file handle" in error and "offline" not in error


def test_limits_are_named(copy: Copy) -> None:
    copy.before = ["bash", "-c", 'ulimit -n 40; exec "$@"', "-"]
    assert re.search("limits +note .*ulimit -n", copy.run("check").stdout)


def test_a_umask_that_denies_the_user_is_named(copy: Copy) -> None:
    copy.before = ["bash", "-c", 'umask 277; exec "$@"', "-"]
    assert "umask 0277" in copy.run("env", exits=2).stderr
    assert not copy.venv.exists()


def test_a_folder_with_other_files_is_left_alone(copy: Copy) -> None:
    copy.venv.mkdir()
    (copy.venv / "thesis.tex").write_text("years of work")
    assert "left alone" in copy.run("env", exits=2).stderr
    assert (copy.venv / "thesis.tex").read_text() == "years of work"


def test_a_moved_project_keeps_its_environment(copy: Copy) -> None:
    copy.run("env")
    (copy.venv / "bin/tool").write_text(f"#!{copy.venv}/bin/python\n")
    copy.root = copy.root.rename(copy.root.with_name("elsewhere"))
    before = files_below(copy.venv / "lib")
    assert "healthy" in copy.run("doctor").stdout
    assert files_below(copy.venv / "lib").keys() >= before.keys()
    assert copy.python("import vqa_repro; print(vqa_repro.__file__)").startswith(str(copy.root))
    copy.run("env")
    assert (copy.venv / "bin/tool").read_text() == f"#!{copy.venv}/bin/python\n"


def test_an_environment_that_moves_twice_keeps_its_scripts(copy: Copy) -> None:
    """Also to a path that ends with the former one, as under another mount point."""
    copy.run("env")
    (copy.venv / "bin/tool").write_text(f"#!{copy.venv}/bin/python\n")
    for folder in (copy.home / "mnt" / copy.root.relative_to("/"), copy.home / "elsewhere"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        copy.root = copy.root.rename(folder)
        for _ in range(2):
            assert copy.run("env").stdout.startswith("env: up to date")
            assert (copy.venv / "bin/tool").read_text() == f"#!{copy.venv}/bin/python\n"


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("looking", [("check",), ("env", "--dry-run"), ("--dry-run",)])
def test_looking_at_a_moved_project_does_not_touch_its_environment(
    copy: Copy, looking: tuple[str, ...], inside: bool
) -> None:
    venv = () if inside else (f"--venv={copy.home / 'env'}",)
    copy.run("env", *venv)
    if inside:  # a script that names the old place
        (copy.venv / "bin/tool").write_text(f"#!{copy.venv}/bin/python\n")
    copy.root = copy.root.rename(copy.root.with_name("elsewhere"))
    before = files_below(copy.root, copy.home)
    out = copy.run(*looking, *venv).stdout
    assert files_below(copy.root, copy.home) == before
    assert looking == ("check",) or "env: up to date" in out
    assert copy.run("env", *venv).stdout.startswith("env: up to date")
    assert files_below(copy.root, copy.home) != before  # now it is repaired


# --- interruptions and company -----------------------------------------------------------------


@pytest.mark.slow
def test_killed_at_any_moment_it_recovers(
    copy: Copy, record_property: Callable[[str, int], None]
) -> None:
    """Kill at random moments; every other time without a uv. VQA_KILLS=100 tries 100 moments."""
    copy.run("env")
    began = time.monotonic()
    shutil.rmtree(copy.venv)
    copy.run("env")
    whole = time.monotonic() - began
    moments = random.Random(0)
    for number in range(KILLS):
        shutil.rmtree(copy.venv)
        if number % 2:
            shutil.rmtree(copy.root / ".bootstrap")
            copy.quick_uv()
        process = copy.start("env")
        time.sleep(moments.uniform(0, whole))
        process.kill()
        process.communicate()
        copy.run("env")
        assert copy.python("import alpha, beta; print(alpha.version)") == "1.0"
        assert not (copy.venv / ".incomplete").exists()
    record_property("recovered", KILLS)


def test_a_big_wheel_resumes_after_a_kill(copy: Copy, tmp_path: Path) -> None:
    usual = tmp_path / "index/usual"
    usual.mkdir(parents=True)
    wheel = make_wheel(usual, "torch", "1.0", {"torch.py": b"", "big": os.urandom(3_000_000)})
    for path in copy.wheelhouse.glob("[abw]*.whl"):
        shutil.copy(path, usual)
    text = lock_text(usual, "alpha==1.0", "torch==1.0")
    text += lock_text(copy.wheelhouse, f"uv=={UV_VERSION} ; python_full_version < '3'")
    (copy.root / "requirements.lock").write_text(text)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del copy.environ[name]
    requested: list[str] = []
    pause = 0.1
    part = copy.root / f".bootstrap/big/arriving/{wheel.name}.part"
    with served(tmp_path / "index", requested, lambda: pause) as url:
        copy.environ |= {"VQA_OFFLINE": "0", "PIP_INDEX_URL": f"{url}/usual"}
        for arrived in (
            lambda: any(path.endswith(wheel.name) for path in requested),  # uv's first attempt
            lambda: part.exists() and part.stat().st_size > 500_000,
            lambda: part.stat().st_size > 1_500_000,
        ):
            process = copy.start("env")
            wait_for(arrived)
            process.kill()
            process.communicate()
            installer = int((copy.root / ".bootstrap/child").read_text().split()[0])
            os.killpg(installer, signal.SIGKILL)  # as in a crash of the machine
            wait_for(lambda: not is_alive(installer))  # noqa: B023
        have = part.stat().st_size
        pause = 0.0
        requested.clear()
        copy.run("env")
    (resumed,) = (path for path in requested if wheel.name in path)
    assert int(resumed.partition(" from ")[2]) == have
    assert copy.python("import torch, alpha; print(alpha.version)") == "1.0"
    assert not (copy.root / ".bootstrap/big").exists()


def test_the_installer_of_a_killed_run_is_ended(copy: Copy) -> None:
    copy.slow_uv("echo $$ >orphan; sleep 1000")
    process = copy.start("env")
    orphan = copy.home / "orphan"
    wait_for(lambda: orphan.exists() and orphan.read_text() != "")
    process.kill()
    process.communicate()
    assert is_alive(int(orphan.read_text()))
    copy.quick_uv()
    assert f"process {process.pid} on" in copy.run("env").stdout  # whose lock is taken over
    assert not is_alive(int(orphan.read_text()))
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_and_its_children(copy: Copy, number: int, code: int) -> None:
    copy.slow_uv("echo $$ >installer; sleep 1000")
    process = copy.start("env")
    installer = copy.home / "installer"
    wait_for(lambda: installer.exists() and installer.read_text() != "")
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == code
    assert err == "interrupted; the same command continues\n"
    assert not is_alive(int(installer.read_text()))
    assert not (copy.root / ".bootstrap/lock").is_symlink()
    copy.quick_uv()
    copy.run("env")
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_without_proc_the_lock_of_a_running_process_is_respected(copy: Copy) -> None:
    copy.before = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "-"]
    if subprocess.run([*copy.before, "true"], capture_output=True).returncode:
        pytest.skip("/proc cannot be unmounted here")
    copy.slow_uv("sleep 1")
    both = [copy.start("env") for _ in range(2)]
    out = "".join(process.communicate(timeout=LIMIT)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], out
    assert "waiting for process" in out and "the other process has made it" in out


def test_two_at_once_make_one_environment(copy: Copy) -> None:
    copy.slow_uv("sleep 2")
    processes = [copy.start("env"), copy.start("env")]
    outs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    assert sorted("done in" in out for out in outs) == [False, True]
    (other,) = (out for out in outs if "done in" not in out)
    assert f"waiting for process {processes[outs.index(other) - 1].pid} on" in other
    assert copy.python("import alpha; print(alpha.version)") == "1.0"


def test_a_lock_of_another_machine_is_waited_for_and_respected(copy: Copy) -> None:
    lock = copy.root / ".bootstrap/lock"
    lock.symlink_to("4711 1 far-away 2026-01-01 12:00:00")
    result = copy.run("env", "--lock-wait", "1", exits=16)
    assert "waiting for process 4711 on far-away" in result.stdout
    assert "process 4711 on far-away, since 2026-01-01 12:00:00" in result.stderr
    assert lock.is_symlink()
    assert not copy.venv.exists()


def test_a_lock_with_a_reused_process_number_is_stale(copy: Copy) -> None:
    host = subprocess.check_output(["bash", "-c", "echo $HOSTNAME"], text=True).strip()
    lock = copy.root / ".bootstrap/lock"
    lock.symlink_to(f"{os.getpid()} 1 {host} 2026-01-01 12:00:00")  # this process began later
    copy.run("env")
    assert not lock.is_symlink()


# --- the other stages --------------------------------------------------------------------------


def test_all_stages_continue_without_the_checkpoint_to_train(copy: Copy) -> None:
    process = copy.start("--", "--epochs", "3", "--out", "a b")
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 7, err  # the exit code of train
    assert "continuing without it" in out
    assert "healthy" in out
    last = out.splitlines()[-1]
    assert f"train in {copy.home} with ['--resume', '--epochs', '3', '--out', 'a b']" in last
    assert "checkpoint: " in last
    assert "internet: not used (--offline)" in last


def test_the_checkpoint_alone_fails_with_its_own_code(copy: Copy) -> None:
    assert "--from" in copy.run("checkpoint", exits=3).stderr
    assert not copy.venv.exists()  # it needs no environment


def test_a_broken_environment_stops_before_training(copy: Copy) -> None:
    (copy.root / "vqa_repro/doctor.py").write_text("raise SystemExit(1)\n")
    result = copy.run("--skip", "checkpoint", exits=17)
    assert "train in" not in result.stdout


def test_tests_run_in_the_environment(copy: Copy) -> None:
    make_wheel(
        copy.home, "pytest", "9", {"pytest.py": b"import os, sys\nprint(os.getcwd(), sys.argv)"}
    )
    copy.environ["PIP_FIND_LINKS"] = f"{copy.home} {copy.wheelhouse}"
    text = lock_text(copy.home, "pytest==9")
    (copy.root / "requirements.lock").write_text(
        text + f"uv=={UV_VERSION} ; python_version < '3' \\\n    --hash=sha256:{'0' * 64}\n"
    )
    out = copy.run("test", "-m", "smoke", "--offline").stdout
    assert f"{copy.root} [" in out.splitlines()[-1]
    assert out.splitlines()[-1].endswith("'-m', 'smoke', '--offline']")


def test_skipped_stages_are_skipped(copy: Copy) -> None:
    out = copy.run("--skip", "check", "--skip", "train", VQA_SKIP="checkpoint doctor").stdout
    assert [line.split(":")[0] for line in out.splitlines() if line[0] != " "] == ["env", "next"]
    assert "no environment" in copy.run("doctor", "--skip", "env", "--venv", "x", exits=2).stderr


# --- bundles -----------------------------------------------------------------------------------

CHECKPOINT = bytes(range(256)) * 20


@pytest.fixture
def connected(copy: Copy, tmp_path: Path) -> Iterator[Copy]:
    """Provide a copy with access to an index and with a checkpoint."""
    (tmp_path / "index").mkdir()
    (tmp_path / "index/usual").symlink_to(copy.wheelhouse)
    copy.lock("alpha==1.0", "beta==1.0", uv_marker="")
    name = f"vgg19-{hashlib.sha256(CHECKPOINT).hexdigest()[:8]}.pth"
    known = (ROOT / "vqa_repro/install/checkpoints.py").read_text(encoding="utf-8")
    known, count = re.subn(r'"vgg19-dcbb9e9d.pth", [\d_]+', f'"{name}", {len(CHECKPOINT)}', known)
    assert count == 1
    (copy.root / "vqa_repro/install/checkpoints.py").write_text(known, encoding="utf-8")
    (copy.home / "hub/checkpoints").mkdir(parents=True)
    (copy.home / "hub/checkpoints" / name).write_bytes(CHECKPOINT)
    with served(tmp_path / "index") as url:
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            del copy.environ[name]
        copy.environ |= {"VQA_OFFLINE": "0", "PIP_INDEX_URL": f"{url}/usual"}
        yield copy


def without_network(copy: Copy) -> None:
    """Make all further calls in an empty network namespace."""
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("no network namespaces here")
    copy.before = alone


def server(copy: Copy, bundle: Path, tmp_path: Path, name: str = "a server's [dir]") -> Copy:
    """Return another machine that has nothing but the bundle."""
    folder, home = tmp_path / name, tmp_path / f"home of {name}"
    folder.mkdir()
    home.mkdir()
    subprocess.run(["tar", "-xzf", bundle / "code.tar.gz"], cwd=folder, check=True)
    kept = ("PATH", "LC_ALL", "PIP_CONFIG_FILE", "VQA_PYTHON")
    environ = {name: copy.environ[name] for name in kept} | {"HOME": str(home)}
    environ["TORCH_HOME"] = str(home)
    return Copy(folder / "vqa_repro", home, copy.wheelhouse, environ)


@pytest.mark.parametrize("options", [[], ["--split", "10M"]])
def test_a_bundle_installs_without_a_network(
    connected: Copy, tmp_path: Path, options: list[str]
) -> None:
    out = tmp_path / "a stick, with a 'bundle' [ü]"
    assert "for Python" in connected.run("bundle", str(out), *options).stdout
    there = server(connected, out, tmp_path)
    without_network(there)
    process = there.start("--bundle", str(out), "--", "--epochs", "3")
    output, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 7, output + err  # the exit code of train
    assert "verifying" in output and "no network is needed" in output
    assert f"uv {UV_VERSION}, as requirements.lock names it, fetched just now" in output
    assert there.python("import alpha, beta; print(alpha.version)") == "1.0"
    (checkpoint,) = (there.home / "hub/checkpoints").glob("*.pth")
    assert checkpoint.read_bytes() == CHECKPOINT
    assert "checkpoint:" not in output.splitlines()[-1]  # train had it
    assert not (there.root / ".bootstrap/bundle").exists()
    again = there.run("--bundle", str(out), "--skip", "train").stdout
    assert "verifying" not in again  # nothing in it is needed
    shutil.rmtree(out)
    assert there.run("env").stdout.startswith("env: up to date")
    assert there.python("import alpha; print(alpha.version)") == "1.0"


def test_the_child_of_a_killed_bundle_build_is_ended(connected: Copy, tmp_path: Path) -> None:
    """Otherwise two processes would write to the same files."""
    out, part = tmp_path / "out", tmp_path / "out.part/arriving"
    pause = 0.02
    with served(tmp_path / "index", pause=lambda: pause) as url:
        connected.environ["PIP_INDEX_URL"] = f"{url}/usual"
        process = connected.start("bundle", str(out))
        wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in part.glob("uv*.part")))
        process.kill()
        process.wait()
        maker = int((connected.root / ".bootstrap/child").read_text().split()[0])
        assert is_alive(maker)
        pause = 0.5
        second = connected.start("bundle", str(out))
        wait_for(lambda: not is_alive(maker))
        pause = 0.0
        output, err = second.communicate(timeout=LIMIT)
        process.communicate()
    assert (
        second.returncode == 0
        and "is incomplete and will be continued" in output
        and "continuing at" in err
    )
    assert "nothing to do" in connected.run("bundle", str(out)).stdout


@pytest.mark.slow
def test_a_bundle_serves_pip_too(connected: Copy, tmp_path: Path) -> None:
    out = tmp_path / "out, here"
    connected.run("bundle", str(out))
    there = server(connected, out, tmp_path)
    without_network(there)
    there.run("env", "--bundle", str(out), "--installer", "pip")
    assert there.python("import alpha; print(alpha.version)") == "1.0"


def test_a_damaged_bundle_is_refused_before_anything_is_made(
    connected: Copy, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    connected.run("bundle", str(out))
    there = server(connected, out, tmp_path)
    wheel = next((out / "wheels").glob("beta-*"))
    content = bytearray(wheel.read_bytes())
    content[50] ^= 1
    wheel.write_bytes(content)
    result = there.run("env", "--bundle", str(out), exits=19)
    assert f"wheels/{wheel.name} has other bytes than it should" in result.stderr
    assert "copy or make it again" in result.stderr
    assert not there.venv.exists()
    connected.run("bundle", str(out))  # repairs it
    there.run("env", "--bundle", str(out))


def test_a_bundle_for_something_else_is_refused_with_the_reason(
    connected: Copy, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    this = "{}.{}".format(*sys.version_info)
    other = "3.12" if this == "3.11" else "3.11"
    connected.run("bundle", str(out), "--python", other)
    there = server(connected, out, tmp_path)
    options = ("env", "--bundle", str(out))
    result = there.run(*options, exits=19)
    assert f"is for python '{other}', but this machine has '{this}'" in result.stderr
    assert f"./bootstrap.sh bundle OUT --python {this}" in result.stderr
    cards(there, "535.104.05", "7.0")
    shutil.copy(there.root / "requirements.lock", there.root / "requirements-cu128.lock")
    shutil.rmtree(out)
    connected.run("bundle", str(out), "--python", this)
    result = there.run(*options, exits=19)
    assert "is for torch 'cu130', but this machine has 'cu128'" in result.stderr
    assert "./bootstrap.sh bundle OUT --torch cu128" in result.stderr
    assert not there.venv.exists()
    about = out / "bundle.json"
    about.write_text(about.read_text().replace(f'"{this}"', f'"{rare_version()}"'))
    del there.environ["VQA_PYTHON"]  # so that it searches for the bundle's Python
    result = there.run(*options, exits=19)
    assert re.search(rf"for Python {rare_version()}, but this machine has 3\.\d+\.", result.stdout)
    assert re.search(r"bundle OUT --python 3\.\d+\n.*--with-python", result.stdout)


def test_a_bundle_made_for_an_older_driver_installs_there(connected: Copy, tmp_path: Path) -> None:
    """The documented --torch cu126 fits a V100 with driver 535, which alone would get cu128."""
    out = tmp_path / "out"
    if no_wheels := python_problem("cu126", sys.version_info[:2]):
        pytest.skip(no_wheels)
    for name in ("cu128", "cu126"):
        shutil.copy(
            connected.root / "requirements.lock", connected.root / f"requirements-{name}.lock"
        )
    connected.run("bundle", str(out), "--torch", "cu126")
    there = server(connected, out, tmp_path)
    cards(there, "535.183.01", "7.0")
    there.run("checkpoint", "--bundle", str(out))  # whatever the build is
    result = there.run("env", "--bundle", str(out))
    assert "the build cu126, as requirements-cu126.lock names it" in result.stdout
    assert there.python("import alpha; print(alpha.version)") == "1.0"
    result = there.run("check", "--bundle", str(out), "--torch", "cu128")
    assert "the build cu128, as requirements-cu128.lock names it" in result.stdout


def test_a_bundles_other_checkpoints_arrive_too(connected: Copy, tmp_path: Path) -> None:
    """Also where the environment and VGG-19 are there already."""
    out, caffe = tmp_path / "out", CHECKPOINT * 300
    name = f"vgg19-{hashlib.sha256(caffe).hexdigest()[:8]}.pth"
    checkpoints = connected.root / "vqa_repro/install/checkpoints.py"
    known, count = re.subn(
        r'"vgg19-d01eb7cb.pth",\s+4 \* 143_667_240',
        f'"{name}", {len(caffe)}',
        checkpoints.read_text(encoding="utf-8"),
    )
    assert count == 1
    checkpoints.write_text(known, encoding="utf-8")
    connected.run("bundle", str(out))
    there = server(connected, out, tmp_path)
    options = ("--bundle", str(out), "--skip", "train")
    there.run(*options)
    assert not (there.home / "hub/checkpoints" / name).exists()
    (connected.home / "hub/checkpoints" / name).write_bytes(caffe)
    connected.run("bundle", str(out))
    output = there.run(*options).stdout
    assert "env: up to date" in output and "verifying" in output
    assert (there.home / "hub/checkpoints" / name).read_bytes() == caffe
    assert "verifying" not in there.run(*options).stdout  # nothing in it is needed
    (out / "bundle.json").write_text("{}")
    result = there.run(*options, exits=19)
    assert "bundle.json is not what MANIFEST.sha256 says" in result.stderr


def test_another_run_leaves_a_bundle_open_while_its_checkpoints_are_copied(
    connected: Copy, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    connected.run("bundle", str(out))
    (checkpoint,) = (out / "checkpoints").glob("vgg19-*.pth")
    there = server(connected, out, tmp_path)
    target = there.home / "hub/checkpoints" / checkpoint.name
    target.parent.mkdir(parents=True)
    state = there.root / ".bootstrap"
    state.mkdir()
    alone = locks.acquire(state / "lock", 0, print)
    runs = [there.start("checkpoint", "--bundle", str(out))]
    read_to(runs[0].stdout, "waiting for process")  # it has found that the checkpoint is missing
    with locks.hold(helper_of(target, "in-use"), 0, print):
        locks.release(state / "lock", alone)
        read_to(runs[0].stderr, "waiting for process")
        runs.append(there.start("env", "--bundle", str(out)))
        read_to(runs[1].stdout, "waiting for process")  # or to its end, where it did not wait
    outputs = [process.communicate(timeout=LIMIT) for process in runs]
    assert [process.returncode for process in runs] == [0, 0], outputs
    assert target.read_bytes() == CHECKPOINT
    assert not (there.root / ".bootstrap/bundle").exists()


def test_the_check_counts_the_room_for_joining_parts(connected: Copy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    connected.run("bundle", str(out), "--split", "10M")
    assert "about 8 GB" in connected.run("check", "--bundle", str(out)).stdout
    assert "about 7 GB" in connected.run("check").stdout


def test_killed_while_installing_from_a_bundle_it_recovers(connected: Copy, tmp_path: Path) -> None:
    out = tmp_path / "out"
    connected.run("bundle", str(out), "--split", "10M")
    there = server(connected, out, tmp_path)
    killed = []
    for delay in (0.3, 0.6, 0.9):
        killed.append(there.start("env", "--bundle", str(out)))
        time.sleep(delay)
        killed[-1].kill()
        killed[-1].wait()  # its children may continue
    there.run("env", "--bundle", str(out))
    for process in killed:
        process.communicate()
    assert there.python("import alpha; print(alpha.version)") == "1.0"
