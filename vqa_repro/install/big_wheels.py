"""Fetch the big wheels of an interrupted installation, so that another interruption loses nothing.

    python -m vqa_repro.install.big_wheels INTO --python 3.X --uv UV --venv DIR LOCK...

uv keeps what it has finished, but starts an interrupted wheel again, even one of half a gigabyte.
So after an interruption bootstrap.sh lets this module fetch the wheels that uv does not have yet,
with resume, installs them, and leaves the rest to uv. INTO holds the wheels and their lock,
wanted.lock, which is empty where there is nothing to fetch.

Exit code 1: it could not, for which uv may have the better reasons.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from vqa_repro.install.lockfile import Entry
from vqa_repro.install.wheels import fetch_wheels, lock_text, wanted_wheels
from vqa_repro.utils.errors import UserError

# All others together are about 200 MB.
BIG = re.compile(r"torch|triton|nvidia-.*|opencv-python-headless")


def has_it(uv: str, venv: Path, entry: Entry, scratch: Path) -> bool:
    """Return whether uv has the wheel in its cache."""
    scratch.write_text(lock_text([entry]), encoding="ascii")
    asking = [uv, "pip", "sync", "--dry-run", "--require-hashes", "--only-binary", ":all:"]
    asking += ["--python", str(venv / "bin/python"), str(scratch)]
    done = subprocess.run(asking, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode == 0 and "Would download" not in done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="big_wheels.py")
    parser.add_argument("into", type=Path)
    parser.add_argument("--python", required=True)
    parser.add_argument("--uv", required=True)
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("locks", nargs="+", type=Path)
    args = parser.parse_args()
    for folder in (args.into / "wheels", args.into / "arriving"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = args.into / "wanted.lock"
    try:
        named = wanted_wheels([path.read_bytes() for path in args.locks], args.python)
        big = [entry for entry in named if BIG.fullmatch(entry.name)]
        wanted = [entry for entry in big if not has_it(args.uv, args.venv, entry, lock)]
        fetch_wheels(args.into / "wheels", args.into / "arriving", wanted, args.python)
        lock.write_text(lock_text(wanted), encoding="ascii")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
