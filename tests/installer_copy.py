"""A copy of the project whose locks name a few tiny packages, to run bootstrap.sh in."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import uv
from conftest import LIMIT, copy_installer
from wheel_index import lock_text, make_wheel

ROOT = Path(__file__).resolve().parents[1]
UV = Path(uv.find_uv_bin())
UV_VERSION = subprocess.check_output([UV, "--version"], text=True).split()[1]

TRAIN = """
import os, sys
without = os.environ["VQA_REPRO_WITHOUT"]
print("train in", os.getcwd(), "with", sys.argv[1:], "without", repr(without))
sys.exit(7)
"""


@dataclass
class Copy:
    """A copy of the project and the environment in which its bootstrap.sh is called."""

    root: Path
    home: Path
    wheelhouse: Path
    environ: dict[str, str]
    before: list[str] = field(default_factory=list)  # goes before the command

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def lock(self, *requirements: str, uv_marker: str = " ; python_full_version < '3'") -> None:
        """Lock these packages, and uv, which the environment itself does not need."""
        requirements += (f"uv=={UV_VERSION}{uv_marker}",)
        (self.root / "requirements.lock").write_text(lock_text(self.wheelhouse, *requirements))

    def lock_words(self, version: str) -> None:
        """Lock this version of the package that is installed without dependencies."""
        (self.root / "wordnet.lock").write_text(lock_text(self.wheelhouse, f"words=={version}"))

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.before, str(self.root / "bootstrap.sh"), *arguments],
            env=self.environ | environ,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # no terminal, and signals reach this process only
        )

    def run(
        self, *arguments: str, exits: int = 0, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environ)
        out, err = process.communicate(timeout=LIMIT)
        assert process.returncode == exits, f"{out}\n{err}"
        assert exits or not err, err
        return subprocess.CompletedProcess(arguments, exits, out, err)

    def python(self, code: str) -> str:
        """Return what ``code`` prints in the environment, run outside the project.

        No bytecode is written: two builds of a small module, installed in the same second, have
        the same size and time, and Python would take the first one's bytecode for the second.
        """
        command = [str(self.venv / "bin/python"), "-B", "-c", code]
        return subprocess.check_output(command, cwd=self.home, text=True).strip()

    def slow_uv(self, first: str) -> None:
        """Replace uv by one that runs ``first`` (sh, in the home folder) before it installs."""
        own = self.root / f".bootstrap/uv-{UV_VERSION}/uv"
        own.unlink()
        program(own, f'[ "$1 $2" != "pip sync" ] || {{ cd ~; {first}; }}\nexec {str(UV)!r} "$@"')

    def quick_uv(self) -> None:
        own = self.root / f".bootstrap/uv-{UV_VERSION}/uv"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.unlink(missing_ok=True)
        own.symlink_to(UV)


def make_copy(root: Path, home: Path, wheelhouse: Path) -> Copy:
    package = root / "vqa_repro"
    root.mkdir(parents=True)
    home.mkdir()
    for name in ("bootstrap.sh", "checkpoints_setup.py", "pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    copy_installer(root)
    (package / "train.py").write_text(TRAIN)
    (package / "doctor.py").write_text("print('healthy')\n")
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TORCH_HOME": str(home),
        "LC_ALL": "C",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheelhouse),
        "VQA_PYTHON": sys.executable,
        "VQA_OFFLINE": "1",
    }
    made = Copy(root, home, wheelhouse, environ)
    made.quick_uv()
    made.lock("alpha==1.0", "beta==1.0")
    made.lock_words("1.0")
    (root / "jupyter.lock").write_text("# a lock\n")
    return made


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def fill_wheelhouse(folder: Path) -> None:
    """Make the packages that the locks of a copy name, and the wheel of uv."""
    for name, version in (("alpha", "1.0"), ("alpha", "2.0"), ("beta", "1.0")):
        make_wheel(folder, name, version, {f"{name}.py": f"version = {version!r}\n".encode()})
    for version in ("1.0", "2.0"):  # its dependency is unavailable
        make_wheel(folder, "words", version, {"words/data": version.encode()}, needs="absent")
    make_wheel(folder, "uv", UV_VERSION, {f"uv-{UV_VERSION}.data/scripts/uv": UV.read_bytes()})
