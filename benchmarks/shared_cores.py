"""Steps on CPU cores that other programs use as well, by how long idle threads spin.

    python benchmarks/shared_cores.py --json

One busy process for each core is the other program. Each round times all settings, one after the
other, first without and then with it; the figures are medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict

# GNU OpenMP's own, the package's (vqa_repro/__init__.py), and the standard's way not to spin
SETTINGS = {
    "default": {},
    "package": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"
STEPS = """
import sys, time
import torch
network = torch.nn.LSTM(500, 500, batch_first=True)  # SAN's question model
words = torch.randn(100, 20, 500)
start, steps, passed = time.monotonic(), 0, 0.0
while passed < float(sys.argv[1]):
    network(words)[0].sum().backward()
    steps, passed = steps + 1, time.monotonic() - start
print(steps / passed)
"""


def steps_per_second(setting: dict[str, str], seconds: float) -> float:
    """Return the steps per second of a process with these variables."""
    chosen = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    clean = {key: value for key, value in os.environ.items() if key not in chosen}
    command = [sys.executable, "-c", STEPS, str(seconds)]
    return float(subprocess.check_output(command, env=clean | setting))


def main() -> int:
    """Print the figures of all settings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each timing (default: 10)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    figures: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        for where, busy in ("alone", 0), ("shared", os.cpu_count() or 1):
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
            try:
                for name, setting in SETTINGS.items():
                    figures[f"{where}, {name}"].append(steps_per_second(setting, args.seconds))
            finally:
                for process in others:
                    process.kill()
    medians = {name: round(statistics.median(values), 3) for name, values in figures.items()}
    if args.json:
        print(json.dumps(medians, indent=1))
    else:
        for name, value in medians.items():
            print(f"{name:<18}{value:8.3f} steps/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
