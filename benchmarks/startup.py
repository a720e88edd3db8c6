"""How long `kamerton --help` and `import kamerton` take: new processes, each after one that warms the file cache.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from statistics import median

COMMANDS = {
    "python, nothing imported": ["-c", "pass"],
    "import kamerton": ["-c", "import kamerton"],
    "kamerton --help": ["-m", "kamerton", "--help"],
}
TARGET = 0.3
"""Seconds that `kamerton --help` may take."""


def timed(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a Markdown table; exit status 1 where `kamerton --help` takes longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    turns = parser.parse_args().turns
    for arguments in COMMANDS.values():
        timed(arguments)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(turns):
        for name, arguments in COMMANDS.items():
            runs[name].append(timed(arguments))
    print("| command | seconds, median (range) | processor seconds, median |\n|---|---|---|")
    for name, values in runs.items():
        walls = [wall for wall, _ in values]
        print(
            f"| `{name}` | {median(walls):.3f} ({min(walls):.3f}–{max(walls):.3f}) | "
            f"{median(cpu for _, cpu in values):.3f} |"
        )
    help_seconds = median(wall for wall, _ in runs["kamerton --help"])
    if help_seconds > TARGET:
        sys.exit(f"kamerton --help took {help_seconds:.3f} seconds, more than {TARGET}")


if __name__ == "__main__":
    main()
