#!/usr/bin/env python3
"""Put pretrained checkpoints where torch.hub looks for them, verified byte by byte.

    python checkpoints_setup.py --help

Needs nothing but Python 3.10 or newer. Any older Python, 2.7 too, can read this file and says so.
"""

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        "error: Python 3.10 or newer is needed; this is %s (%s); "  # noqa: UP031
        "run it as ./bootstrap.sh checkpoint, which finds or fetches one\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(2)

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from vqa_repro.install.checkpoints_command import main
from vqa_repro.utils.errors import main_guard

if __name__ == "__main__":
    main_guard(main)
