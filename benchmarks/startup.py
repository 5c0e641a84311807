"""How long ``lorascope --help`` takes, and whether importing lorascope imports torch.

python benchmarks/startup.py [--write docs/benchmarks/startup.md]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lorascope.core.provenance import machine, package_versions


def seconds(*command: str) -> list[float]:
    times = []
    for _ in range(11):
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return times[1:]  # the first one fills the file cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    rows = {
        "lorascope --help": seconds("-m", "lorascope", "--help"),
        "python -c 'import lorascope'": seconds("-c", "import lorascope"),
        "python -c pass": seconds("-c", "pass"),
    }
    check = "import sys, lorascope, lorascope.cli; print('torch' in sys.modules)"
    torch = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.strip()
    lines = ["# Start-up", "", "| command | seconds, median of 10 | largest |", "|---|---|---|"]
    lines += [f"| `{name}` | {statistics.median(times):.2f} | {max(times):.2f} |" for name, times in rows.items()]
    lines += [
        "",
        f"torch imported by `import lorascope, lorascope.cli`: {torch}",
        "",
        f"{machine()}",
        f"{package_versions()}",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
