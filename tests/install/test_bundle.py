"""Building and opening bundles with real processes, real wheels and an index on loopback.

The locks here name a few tiny packages. test_bootstrap.py tests bootstrap.sh with a bundle on a
machine without a network.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import LIMIT, copy_installer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wheel_index import lock_text, make_wheel, served

from vqa_repro.install import bundle_open, lockfile
from vqa_repro.install.errors import InstallError
from vqa_repro.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "{}.{}".format(*sys.version_info)
# The environment has no pip, but its base Python has, as bootstrap.sh requires.
BASE = getattr(sys, "_base_executable", sys.executable)
MACHINE = bundle_open.platform_tag().partition("-")[2]
CHECKPOINT = bytes(range(256)) * 20
CHECKPOINT_NAME = f"vgg19-{hashlib.sha256(CHECKPOINT).hexdigest()[:8]}.pth"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wheels here are for Linux")


@dataclass
class Project:
    """A small project, an index with its packages, and a folder for bundles."""

    root: Path
    home: Path
    url: str
    environ: dict[str, str]
    requested: list[str]  # requests to the index
    pause: list[float]  # seconds that the index waits after each 64 KiB

    @property
    def out(self) -> Path:
        return self.home / "a 'bundle' [é], here"

    @property
    def index(self) -> Path:
        return self.home / "index/usual"

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BASE, "-E", "-s", "-m", "vqa_repro.install.bundle", *map(str, arguments)],
            env=self.environ,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: object, exits: int = 0, quiet: bool = True) -> str:
        """Return what it printed; on failure, its one line on standard error."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == exits, f"{out}\n{err}"
        assert err == "" or not quiet if exits == 0 else re.fullmatch("error: .+\n", err), err
        return err if exits else out

    def make(self, *arguments: object, python: str = PYTHON, exits: int = 0) -> str:
        options = ("--python", python, "--torch", "cu130")
        return self.run("make", self.out, *options, *arguments, exits=exits)

    def open(self, *arguments: object, exits: int = 0) -> str:
        options = ("--into", self.into, "--python", PYTHON, "--torch", "cu130")
        return self.run("open", self.out, *options, *arguments, exits=exits)

    @property
    def into(self) -> Path:
        return self.home / "into"

    def wheels(self) -> set[str]:
        return {path.name.split("-")[0] for path in (self.out / "wheels").iterdir()}

    def lock(self, *requirements: str) -> None:
        (self.root / "requirements.lock").write_text(lock_text(self.index, *requirements))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the project, its home and a complete bundle."""
    folder = tmp_path_factory.mktemp("template")
    root, home = folder / 'the "project" [ü]', folder / "home"
    index = home / "index/usual"
    index.mkdir(parents=True)
    for name in ("alpha", "old", "words", "lab"):
        make_wheel(index, name, "1.0", {f"{name}.py": b"version = 1\n"})
    for python in ("310", "311", "312", "313", "314", "315"):
        tag = f"cp{python}-cp{python}-manylinux_2_28_{MACHINE}"
        make_wheel(index, "native", "1.0", {"native.py": b""}, tag=tag)
    make_wheel(index, "big", "1.0", {"big.bin": os.urandom(2_500_000)})
    copy_installer(root)
    shutil.copy(ROOT / ".gitignore", root)
    (root / "bootstrap.sh").write_text("#!/bin/sh\n")
    (root / "bootstrap.sh").chmod(0o755)
    (root / ".venv").mkdir()
    (root / ".venv/not-ours").touch()
    known = (ROOT / "vqa_repro/install/checkpoints.py").read_text(encoding="utf-8")
    known, count = re.subn(
        r'"vgg19-dcbb9e9d.pth", [\d_]+', f'"{CHECKPOINT_NAME}", {len(CHECKPOINT)}', known
    )
    assert count == 1
    (root / "vqa_repro/install/checkpoints.py").write_text(known, encoding="utf-8")
    (root / "wordnet.lock").write_text(lock_text(index, "words==1.0"))
    (root / "jupyter.lock").write_text(lock_text(index, "lab==1.0", "alpha==1.0"))
    with in_place(folder) as project:
        project.lock(
            "alpha==1.0", "big==1.0", "native==1.0", "old==1.0 ; python_full_version < '3.11'"
        )
        project.make()
    return folder


@contextmanager
def in_place(folder: Path) -> Iterator[Project]:
    root, home = folder / 'the "project" [ü]', folder / "home"
    requested: list[str] = []
    pause = [0.0]
    with served(home / "index", requested, lambda: pause[0]) as url:
        environ = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "TORCH_HOME": str(home / "torch"),
            "LC_ALL": "C",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"{url}/usual",
            "PIP_RETRIES": "0",
        }
        yield Project(root, home, url, environ, requested, pause)


@pytest.fixture
def made(tmp_path: Path, template: Path) -> Iterator[Project]:
    """Return a copy of the project with its bundle."""
    shutil.copytree(template, tmp_path / "copy")
    with in_place(tmp_path / "copy") as project:
        yield project


@pytest.fixture
def project(made: Project) -> Project:
    """Return the project without a bundle."""
    shutil.rmtree(made.out)
    return made


def seed(project: Project) -> None:
    folder = project.home / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    (folder / CHECKPOINT_NAME).write_bytes(CHECKPOINT)


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino)
        for path in (folder, *folder.rglob("*"))
    }


def rewrite(out: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change bundle.json and adapt MANIFEST.sha256, as a forger would."""
    path = out / "bundle.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))
    for line in (out / "MANIFEST.sha256").read_text().splitlines():
        if line.endswith("  bundle.json"):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            replace_line(out, line, f"{digest}  bundle.json")


def replace_line(out: Path, old: str, new: str) -> None:
    manifest = out / "MANIFEST.sha256"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(text.replace(old, new, 1))


# --- making --------------------------------------------------------------------------------------


def test_it_is_complete_and_sha256sum_verifies_it(project: Project) -> None:
    seed(project)
    output = project.make()
    assert "without vgg19-d01eb7cb.pth, which is not here" in output
    assert project.wheels() == {"alpha", "big", "native", "words", "lab"} | (
        {"old"} if PYTHON == "3.10" else set()
    )
    assert (project.out / "checkpoints" / CHECKPOINT_NAME).read_bytes() == CHECKPOINT
    names = {path.relative_to(project.out).as_posix() for path in project.out.rglob("*")}
    names = {name for name in names if "/" not in name}
    locks = {"requirements.lock", "wordnet.lock", "jupyter.lock"}
    own = {"MANIFEST.sha256", "bundle.json", "README.txt", "code.tar.gz"}
    assert names == locks | own | {"wheels", "checkpoints"}
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "MANIFEST.sha256"],
        cwd=project.out,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    files = [path for path in project.out.rglob("*") if path.is_file()]
    assert done.stdout.count(": OK") == len(files) - 1
    assert "all as they should be" in project.run("verify", project.out)


def test_the_code_in_it_is_the_project_and_nothing_else(made: Project) -> None:
    with tarfile.open(made.out / "code.tar.gz") as tar:
        modes = {member.name: member.mode for member in tar.getmembers()}
    assert {"vqa_repro/bootstrap.sh", "vqa_repro/vqa_repro/install/bundle.py"} <= set(modes)
    assert modes["vqa_repro/bootstrap.sh"] == 0o755
    assert not any(".venv" in name for name in modes)
    git = ["git", "-C", str(made.root), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "bootstrap.sh", "vqa_repro"], check=True)
    assert "is outdated and will be updated" in made.make()
    with tarfile.open(made.out / "code.tar.gz") as tar:
        package = [str(path.relative_to(made.root)) for path in made.root.glob("vqa_repro/**/*.*")]
        code = sorted(name for name in package if "__pycache__" not in name)
        expected = ["bootstrap.sh", *code, "requirements.lock", "wordnet.lock", "jupyter.lock"]
        assert sorted(tar.getnames()) == sorted(f"vqa_repro/{name}" for name in expected)


def test_the_code_in_it_has_the_locks_that_it_is_made_from(project: Project) -> None:
    """Also one that git does not track: that of the build cpu is made where it is wanted."""
    git = ["git", "-C", str(project.root)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "vqa_repro", "wordnet.lock", "jupyter.lock"], check=True)
    shutil.copy(project.root / "requirements.lock", project.root / "requirements-cpu.lock")
    options = ("--python", PYTHON, "--torch", "cpu")
    project.run("make", project.out, *options)
    with tarfile.open(project.out / "code.tar.gz") as tar:
        assert {name for name in tar.getnames() if name.endswith(".lock")} == {
            f"vqa_repro/{name}.lock" for name in ("requirements-cpu", "wordnet", "jupyter")
        }
    subprocess.run(["tar", "-xzf", project.out / "code.tar.gz"], cwd=project.home, check=True)
    server = replace(project, root=project.home / "vqa_repro")
    server.run("open", project.out, "--into", project.into, *options)
    assert "nothing to do" in project.run("make", project.out, *options)


def test_without_git_only_the_bundle_itself_and_ignored_folders_are_left_out(
    project: Project,
) -> None:
    """A folder of the project may be called like the bundle, or like one ignored at the top."""
    kept = {"vqa_repro/data/vqa.py", "vqa_repro/data.part/a.py", "vqa_repro/runs/folder.py"}
    ignored = {"runs/one/notes.txt", "report.html", "vqa_repro/__pycache__/a.pyc"}
    for name in kept | ignored:
        (project.root / name).parent.mkdir(parents=True, exist_ok=True)
        (project.root / name).touch()
    for out in (project.home / "usb/data", project.root / "data"):
        project.run("make", out, "--python", PYTHON, "--torch", "cu130")
        with tarfile.open(out / "code.tar.gz") as tar:
            names = set(tar.getnames())
        assert {f"vqa_repro/{name}" for name in kept} <= names
        assert not {f"vqa_repro/{name}" for name in ignored} & names
    assert "nothing to do" in project.run(
        "make", project.root / "data", "--python", PYTHON, "--torch", "cu130"
    )


@pytest.mark.slow
def test_a_bundle_for_another_python(project: Project) -> None:
    other = "3.12" if PYTHON == "3.10" else "3.10"
    project.make(python=other)
    (native,) = (project.out / "wheels").glob("native-*")
    assert f"-cp{other.replace('.', '')}-" in native.name
    assert ("old" in project.wheels()) == (other == "3.10")
    output = project.open(exits=19)
    assert f"is for python '{other}', but this machine has '{PYTHON}'" in output
    assert f"./bootstrap.sh bundle OUT --python {PYTHON}" in output


def test_a_second_call_has_nothing_to_do(made: Project) -> None:
    seed(made)
    made.make()
    before = state_of(made.out)
    made.requested.clear()
    assert "complete, nothing to do" in made.make()
    assert made.requested == []
    assert state_of(made.out) == before


def test_an_outdated_bundle_is_updated(made: Project) -> None:
    seed(made)
    make_wheel(made.index, "alpha", "2.0", {"alpha.py": b"version = 2\n"})
    made.lock("alpha==2.0", "native==1.0")
    (made.root / "jupyter.lock").write_text(lock_text(made.index, "lab==1.0"))
    made.requested.clear()
    made.make()
    assert made.wheels() == {"alpha", "native", "words", "lab"}
    assert [path for path in made.requested if path.endswith(".whl")] == [
        "/usual/alpha-2.0-py3-none-any.whl"
    ]
    assert (made.out / "checkpoints" / CHECKPOINT_NAME).exists()
    made.open()


@pytest.mark.slow
def test_killed_while_building_it_resumes(project: Project) -> None:
    for number in range(12):
        make_wheel(project.index, f"more{number}", "1.0", {"x": bytes(10)})
    project.lock(*(f"more{number}==1.0" for number in range(12)))
    part = project.out.with_name(project.out.name + ".part")
    part.mkdir()  # a kill before the first file
    for wanted in (1, 5, 9):
        process = project.start("make", project.out, "--python", PYTHON, "--torch", "cu130")
        while process.poll() is None and len(list((part / "wheels").glob("*.whl"))) < wanted:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not project.out.exists()
    there = {path.name for path in (part / "wheels").iterdir()}
    project.requested.clear()
    assert "is incomplete and will be continued" in project.make()
    fetched = {path.rpartition("/")[2] for path in project.requested if path.endswith(".whl")}
    assert len(there) >= 9 and not fetched & there
    project.open()
    assert not part.exists()


def test_a_big_wheel_resumes_after_a_kill(project: Project) -> None:
    folder = project.out.with_name(project.out.name + ".part")
    part = folder / "arriving/big-1.0-py3-none-any.whl.part"
    project.pause[0] = 0.05
    have = [0]
    for _ in range(3):
        process = project.start("make", project.out, "--python", PYTHON, "--torch", "cu130")
        while process.poll() is None and (
            not part.exists() or part.stat().st_size < have[-1] + 500_000
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        have.append(part.stat().st_size)
    project.pause[0] = 0
    assert project.run("make", project.out, "--python", PYTHON, "--torch", "cu130", quiet=False)
    starts = [path.partition(" from ")[2] for path in project.requested if "/big-1.0" in path]
    assert [int(first or 0) for first in starts] == have  # no byte was fetched twice
    project.open()


@pytest.mark.slow
def test_without_an_index_it_is_left_to_pip(project: Project) -> None:
    project.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(project.index)}
    project.make()
    assert project.requested == []
    project.open()


def test_a_folder_with_other_files_is_left_alone(project: Project) -> None:
    project.out.mkdir()
    (project.out / "thesis.tex").write_text("years of work")
    assert "exists and is not a bundle" in project.make(exits=2)
    assert (project.out / "thesis.tex").read_text() == "years of work"


def test_wheels_with_other_hashes_are_refused(project: Project) -> None:
    path = project.root / "requirements.lock"
    text = path.read_text()
    path.write_text(re.sub(r"(big==1.0 .*\n.*sha256:)....", r"\g<1>0000", text))
    assert "big==1.0: hash mismatch: the file is not the one that the lock names" in project.make(
        exits=15
    )
    path.write_text(re.sub(r"(alpha==1.0 .*\n.*sha256:)....", r"\g<1>0000", text))
    assert "the locks name different wheels of alpha==1.0" in project.make(exits=2)
    assert not project.out.exists()


def test_a_wheel_missing_from_the_index_is_named(project: Project) -> None:
    (project.index / "alpha-1.0-py3-none-any.whl").unlink()
    url = project.url.replace("://", "://someone:hush-hush@")
    project.environ["PIP_INDEX_URL"] = f"{url}/usual"
    output = project.make(exits=14)
    assert "alpha==1.0 could not be downloaded" in output
    assert "the same command continues" in output and "hush-hush" not in output


def test_a_missing_lock_is_explained(project: Project) -> None:
    output = project.run("make", project.out, "--python", PYTHON, "--torch", "cu126", exits=20)
    assert "no requirements-cu126.lock" in output
    assert "git checkout requirements-cu126.lock" in output


# --- faults --------------------------------------------------------------------------------------

ALPHA = "wheels/alpha-1.0-py3-none-any.whl"


def truncate(out: Path) -> None:
    os.truncate(out / ALPHA, 100)


def change_a_byte(out: Path) -> None:
    content = bytearray((out / ALPHA).read_bytes())
    content[50] ^= 1
    (out / ALPHA).write_bytes(content)


def add_a_link(out: Path) -> None:
    (out / "wheels/more.whl").symlink_to("/etc/passwd")


def link_instead(out: Path) -> None:
    (out / ALPHA).rename(out.parent / "elsewhere.whl")
    (out / ALPHA).symlink_to(out.parent / "elsewhere.whl")


def link_to_the_folder(out: Path) -> None:
    (out / "wheels").rename(out.parent / "elsewhere")
    (out / "wheels").symlink_to(out.parent / "elsewhere")


def pipe_instead(out: Path) -> None:
    (out / ALPHA).unlink()
    os.mkfifo(out / ALPHA)


def name_a_huge_file(out: Path) -> None:
    """Make a sparse file, which takes no space and long to read."""
    os.truncate(out / ALPHA, 1 << 40)


def a_path(name: str) -> Callable[[Path], None]:
    return lambda out: replace_line(out, f"  {ALPHA}\n", f"  {name}\n")


def huge_manifest(out: Path) -> None:
    os.truncate(out / "MANIFEST.sha256", 1 << 40)


def manifest_is_a_pipe(out: Path) -> None:
    (out / "MANIFEST.sha256").unlink()
    os.mkfifo(out / "MANIFEST.sha256")


def name_it_twice(out: Path) -> None:
    manifest = (out / "MANIFEST.sha256").read_text()
    (out / "MANIFEST.sha256").write_text(manifest + manifest.splitlines()[0] + "\n")


def deep_json(out: Path) -> None:
    text = "[" * 100_000
    digest = hashlib.sha256((out / "bundle.json").read_bytes()).hexdigest()
    (out / "bundle.json").write_text(text)
    replace_line(out, digest, hashlib.sha256(text.encode()).hexdigest())


def odd_size(out: Path) -> None:
    rewrite(out, lambda about: about["files"][ALPHA].update(size=-1, parts=[-1]))  # type: ignore


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (truncate, "alpha-1.0-py3-none-any.whl has 100 bytes, not "),
    (change_a_byte, "alpha-1.0-py3-none-any.whl has other bytes"),
    (lambda out: (out / ALPHA).unlink(), "alpha-1.0-py3-none-any.whl is missing"),
    (lambda out: shutil.rmtree(out / "wheels"), "is missing; "),
    (lambda out: (out / "bundle.json").unlink(), "bundle.json is missing"),
    (lambda out: (out / "MANIFEST.sha256").unlink(), "MANIFEST.sha256 is missing"),
    (add_a_link, "more.whl is a link, and a bundle has none"),
    (link_instead, "alpha-1.0-py3-none-any.whl is a link"),
    (link_to_the_folder, "wheels is a link"),
    (pipe_instead, "not a regular file"),
    (name_a_huge_file, "has 1,099,511,627,776 bytes, not "),
    (a_path("../../etc/passwd"), "no path inside the bundle"),
    (a_path("wheels/../../x.whl"), "no path inside the bundle"),
    (a_path("/etc/passwd"), "no path inside the bundle"),
    (a_path("C:\\\\x.whl"), "no path inside the bundle"),
    (a_path("wheels/.hidden"), "no path inside the bundle"),
    (a_path("wheels/" + "x" * 300), "no path inside the bundle"),
    (a_path("wheels//alpha.whl"), "no path inside the bundle"),
    (a_path("wheels/other.whl"), "bundle.json is damaged"),
    (huge_manifest, "MANIFEST.sha256: more than"),
    (manifest_is_a_pipe, "not a regular file"),
    (name_it_twice, "a second time"),
    (deep_json, "is damaged"),
    (odd_size, "is damaged"),
    (lambda out: rewrite(out, lambda about: about.update(format=2)), "has format 2"),
    (lambda out: rewrite(out, lambda about: about.update(platform="linux-vax")), "'linux-vax'"),
    (lambda out: rewrite(out, lambda about: about.update(torch="cpu")), "is for torch 'cpu'"),
    (lambda out: (out / "bundle.json").write_text("{}"), "is not what MANIFEST.sha256 says"),
]


def test_every_fault_is_found_before_anything_is_installed(made: Project) -> None:
    whole = made.home / "whole"
    made.out.rename(whole)
    for damage, expected in FAULTS:
        shutil.copytree(whole, made.out)
        damage(made.out)
        answer = made.open(exits=19)
        assert expected in answer, answer
        assert not list(made.into.glob("*/*"))
        shutil.rmtree(made.out)
        shutil.rmtree(made.home / "elsewhere", ignore_errors=True)


def link_the_new(out: Path) -> None:
    """The file to be written is a link out of the folder."""
    (out.parent / "mine").touch()
    (out / "bundle.json.new").symlink_to(out.parent / "mine")
    truncate(out)


@pytest.mark.parametrize("damage", [truncate, change_a_byte, link_instead, link_the_new])
def test_building_again_repairs_it(made: Project, damage: Callable[[Path], None]) -> None:
    damage(made.out)
    made.requested.clear()
    assert "is damaged and will be completed" in made.make()
    wheels = [path for path in made.requested if path.endswith(".whl")]
    assert wheels == ["/usual/alpha-1.0-py3-none-any.whl"]
    made.open()
    assert damage is not link_the_new or (made.home / "mine").read_bytes() == b""


def test_a_bundle_of_another_lock_is_refused(made: Project) -> None:
    with (made.root / "wordnet.lock").open("a") as lockfile:
        lockfile.write("# another\n")
    output = made.open(exits=19)
    assert "made for another wordnet.lock" in output and "code.tar.gz" in output


def test_a_wheel_outside_the_locks_is_refused_even_if_in_the_manifest(
    made: Project,
) -> None:
    old = hashlib.sha256((made.out / ALPHA).read_bytes()).hexdigest()
    change_a_byte(made.out)
    new = hashlib.sha256((made.out / ALPHA).read_bytes()).hexdigest()
    replace_line(made.out, old, new)
    rewrite(made.out, lambda about: about["files"][ALPHA].update(sha256=new))  # type: ignore
    assert "verify" not in made.run("verify", made.out)  # it agrees with itself
    assert "lacks alpha==1.0, which the locks name" in made.open(exits=19)


def test_files_outside_the_locks_are_ignored_even_if_in_the_manifest(made: Project) -> None:
    """Such as another uv, which would be executed."""
    evil = make_wheel(made.out / "wheels", "uv", "1.0", {"uv.data/scripts/uv": b"evil"})
    digest = hashlib.sha256(evil.read_bytes()).hexdigest()
    name, size = f"wheels/{evil.name}", evil.stat().st_size
    entry = {"size": size, "sha256": digest, "parts": [size]}
    with (made.out / "MANIFEST.sha256").open("a") as manifest:
        manifest.write(f"{digest}  {name}\n")
    rewrite(made.out, lambda about: about["files"].update({name: entry}))  # type: ignore
    made.open()
    assert not (made.into / name).exists() and (made.into / ALPHA).exists()
    lie = entry | {"sha256": hashlib.sha256((made.out / ALPHA).read_bytes()).hexdigest()}
    rewrite(made.out, lambda about: about["files"].update({name: lie}))  # type: ignore
    assert "do not make" in made.open(exits=19)


def test_unrelated_files_are_left_alone(made: Project) -> None:
    (made.out / ".DS_Store").touch()
    make_wheel(made.out / "wheels", "evil", "9.0", {"evil.py": b""})
    made.open()
    offered = {path.name for path in made.into.rglob("*.whl")}
    assert len(offered) == len(made.wheels()) - 1 and not any("evil" in n for n in offered)
    assert all(path.resolve().parent == made.out / "wheels" for path in made.into.glob("w*/*"))


# --- parts ---------------------------------------------------------------------------------------


def big(project: Project, number: int) -> Path:
    return project.out / f"wheels/big-1.0-py3-none-any.whl.{number:03d}"


def test_parts_are_small_enough_and_are_joined(made: Project) -> None:
    seed(made)
    made.make("--split", "1M")
    assert max(path.stat().st_size for path in made.out.rglob("*")) <= 1_000_000
    assert big(made, 3).exists() and not big(made, 4).exists()
    original = (made.index / "big-1.0-py3-none-any.whl").read_bytes()
    join = 'cat "$1".[0-9][0-9][0-9]'  # as README.txt describes
    by_hand = ["sh", "-c", join, "sh", str(big(made, 1).with_suffix(""))]
    assert subprocess.check_output(by_hand) == original
    made.open()
    init_distributed = made.into / "wheels/big-1.0-py3-none-any.whl"
    assert init_distributed.read_bytes() == original and not init_distributed.is_symlink()
    before = init_distributed.stat().st_ino
    made.open()
    assert init_distributed.stat().st_ino == before
    made.requested.clear()
    assert "nothing to do" in made.make("--split", "1M")
    made.make()  # complete again without a download
    assert not any(path.endswith(".whl") for path in made.requested)
    assert not list(made.out.rglob("*.001"))
    made.open()


def test_parts_missing_or_in_the_wrong_order_are_refused(made: Project) -> None:
    made.make("--split", "1M")
    first, second = big(made, 1).read_bytes(), big(made, 2).read_bytes()
    big(made, 1).write_bytes(second)
    big(made, 2).write_bytes(first)
    assert "big-1.0-py3-none-any.whl.001 has other bytes" in made.open(exits=19)
    digests = [hashlib.sha256(part).hexdigest() for part in (first, second)]
    for old, new in zip(digests, ("x" * 64, digests[0]), strict=True):  # the manifest agrees
        replace_line(made.out, old, new)
    replace_line(made.out, "x" * 64, digests[1])
    assert "the parts of wheels/big-1.0-py3-none-any.whl do not make it" in made.open(exits=19)
    assert not (made.into / "wheels/big-1.0-py3-none-any.whl").exists()
    big(made, 2).unlink()
    assert "big-1.0-py3-none-any.whl.002 is missing" in made.open(exits=19)


def test_killed_while_splitting_it_resumes(made: Project) -> None:
    made.make("--split", "1M")
    part = made.out.with_name(made.out.name + ".part")
    original = (made.index / "big-1.0-py3-none-any.whl").read_bytes()
    made.out.rename(part)
    path = part / "wheels/big-1.0-py3-none-any.whl"
    path.write_bytes(original)  # splitting removes the whole file last
    (part / "wheels/big-1.0-py3-none-any.whl.003").unlink()
    made.requested.clear()
    made.make("--split", "1M")
    assert not any(path.endswith(".whl") for path in made.requested)
    made.open()


@pytest.mark.parametrize("size", ["0M", "5G", "1000", "-1M", "1T"])
def test_impossible_sizes_are_refused(project: Project, size: str) -> None:
    process = project.start(
        "make", project.out, "--python", PYTHON, "--torch", "cu130", f"--split={size}"
    )
    assert "--split" in process.communicate()[1]
    assert process.returncode == 2 and not project.out.exists()


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 2 MB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def stick(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system without links and file modes, as on USB sticks; the first available."""
    image, folder = tmp_path / "image", tmp_path / "stick"
    folder.mkdir()
    for made_by, kind in (
        ("mkfs.vfat", "vfat"),
        ("mkfs.exfat", "exfat"),
        ("mkfs.exfat", "exfat-fuse"),
    ):
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(40 << 20)
        mounting = ["mount", "-t", kind, "-o", "loop", str(image), str(folder)]
        commands = ([made_by, str(image)], mounting)
        if shutil.which(made_by) and not any(
            subprocess.run(command, capture_output=True).returncode for command in commands
        ):
            break
    else:
        pytest.skip("neither FAT nor exFAT can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_stick_holds_a_bundle_but_no_project(project: Project, stick: Path) -> None:
    seed(project)
    out, options = stick / "out", ("--python", PYTHON, "--torch", "cu130")
    project.run("make", out, "--split", "1M", *options)
    assert "nothing to do" in project.run("make", out, "--split", "1M", *options)
    project.run("open", out, "--into", project.into, *options)
    assert len(list(project.into.glob("wheels/*.whl"))) == 5 + (PYTHON == "3.10")
    output = project.run("open", out, "--into", stick / "into", *options, exits=13)
    assert "a disk without links, as FAT and exFAT" in output


@pytest.mark.slow
def test_a_disk_that_fills_up_while_building(project: Project, small_disk: Path) -> None:
    out = small_disk / "out"
    arguments = ("make", out, "--python", PYTHON, "--torch", "cu130")
    output = project.run(*arguments, exits=12)
    assert "no space left on the disk" in output or "No space left" in output
    assert not out.exists()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert "is incomplete and will be continued" in project.run(*arguments)
    project.run("verify", out)


def test_too_little_space_to_join_is_detected_first(made: Project, small_disk: Path) -> None:
    made.make("--split", "1M")
    options = ("--python", PYTHON, "--torch", "cu130")
    output = made.run("open", made.out, "--into", small_disk, *options, exits=12)
    assert "joining the bundle's parts needs 3 MB" in output
    assert not list(small_disk.rglob("*.whl"))


# --- hostile input -------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_index_files_are_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    """Damage a description whose checksum is right, so that its content is checked."""
    scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats()
    names = st.sampled_from(["a", "a.001", "wheels/a.whl", "../a", "", "/a"]) | st.text(max_size=5)
    anything = st.recursive(
        scalars, lambda x: st.lists(x) | st.dictionaries(names, x), max_leaves=9
    )
    entry = st.fixed_dictionaries(
        {"size": anything, "sha256": anything, "parts": st.lists(st.integers(-1, 9)) | anything}
    )
    about = {"format": 1, "files": data.draw(st.dictionaries(names, entry | anything) | anything)}
    text = json.dumps(data.draw(st.just(about) | anything)).encode()
    lines = data.draw(st.lists(names))
    digest = hashlib.sha256(text).hexdigest()
    manifest = "".join(f"{'0' * 64}  {name}\n" for name in lines) + f"{digest}  bundle.json\n"
    (tmp_path / "bundle.json").write_bytes(text)
    (tmp_path / "MANIFEST.sha256").write_bytes(manifest.encode("utf-8", "surrogatepass"))
    try:
        read = bundle_open.read_bundle(tmp_path)
    except InstallError:
        return
    paths = [piece.path for whole in read.files.values() for piece in whole.pieces]
    assert all(".." not in path.split("/") and not path.startswith("/") for path in paths)


def test_markers_are_read_as_packaging_reads_them() -> None:
    from packaging.markers import Marker, default_environment

    texts = [path.read_text() for path in ROOT.glob("*.lock")]
    markers = {found for text in texts for found in re.findall(r" ; ([^\\\n]*[^\\\s])", text)}
    assert len(markers) > 10
    for python in ("3.10.0", "3.11.2", "3.11.9", "3.12.1", "3.13.99"):
        here = {
            **default_environment(),
            "python_full_version": python,
            "python_version": python.rpartition(".")[0],
        }
        for marker in markers:
            assert lockfile.applies(marker, python) == Marker(marker).evaluate(here), marker
    with pytest.raises(UserError, match="cannot be read"):
        lockfile.applies("__import__('os').system('true') == '0'", "3.10.0")
