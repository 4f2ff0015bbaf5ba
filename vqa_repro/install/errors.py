"""Exit codes of the installer, and the error that carries one.

bootstrap.sh, checkpoints_setup.py and the bundle share this table. The codes of
checkpoints_setup.py (3 to 6) are those of a single checkpoint, the others those of an installation.
"""

from __future__ import annotations

import enum
import errno

from vqa_repro.utils.errors import UserError


class ExitCode(enum.IntEnum):
    """How a command of the installer ended."""

    OK = 0
    INTERNAL = 1  # a bug
    BAD_INPUT = 2
    NO_SOURCE = 3  # checkpoint: no source had it
    CHECKPOINT_MISMATCH = 4  # checkpoint: wrong bytes
    CHECKPOINT_BUSY = 5  # checkpoint: another process held the lock for too long
    CHECKPOINT_DISK = 6  # checkpoint: disk full, or a file that cannot be read or written
    SYSTEM = 10
    NO_PYTHON = 11
    DISK_FULL = 12
    NO_PERMISSION = 13
    PACKAGES = 14  # the packages could not be installed, most often for lack of a network
    HASH_MISMATCH = 15
    LOCK_WAIT = 16
    DOCTOR = 17
    JUPYTER = 18
    BUNDLE = 19
    NO_TORCH_BUILD = 20
    HANGUP = 129
    INTERRUPTED = 130
    TERMINATED = 143


ERRNO_CODES = {
    errno.ENOSPC: ExitCode.DISK_FULL,
    errno.EDQUOT: ExitCode.DISK_FULL,
    errno.EACCES: ExitCode.NO_PERMISSION,
    errno.EPERM: ExitCode.NO_PERMISSION,
    errno.EROFS: ExitCode.NO_PERMISSION,
}


class InstallError(UserError):
    """A failure with its exit code: what failed, why, and what to do next.

    As text it is one line; ``what``, ``why`` and ``next`` are its parts, of which the last two may
    be empty.
    """

    def __init__(self, code: int, what: str, why: str = "", next: str = "") -> None:
        super().__init__("; ".join(part for part in (what, why, next) if part))
        self.code = int(code)
        self.what, self.why, self.next = what, why, next
