"""Runs all benchmarks, or those that are named, and prints a table for each topic.

    python -m tests.benchmarks [--quick] [layer training inspect convert verify growth code many]

Each topic is a process of its own, so that none starts with the memory of another. Everything is
measured beside its obvious alternative, in turns; the ratios mean something on a busy machine too,
the seconds less so. Takes about 25 minutes and 6 GB of disk, and 5 minutes with --quick.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys

TOPICS = ("layer", "training", "inspect", "convert", "verify", "growth", "code", "many")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=", ".join(TOPICS))
    parser.add_argument("--quick", action="store_true", help="few runs, small files: rough figures")
    options = parser.parse_args()
    if unknown := set(options.topics) - set(TOPICS):
        parser.error(f"no topic {', '.join(sorted(unknown))}: there are {', '.join(TOPICS)}")

    print(f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    quick = ["--quick"] if options.quick else []
    for topic in options.topics or TOPICS:
        print(f"\n== {topic}", flush=True)
        module = f"tests.benchmarks.bench_{topic}"
        subprocess.run([sys.executable, "-m", module, *quick], check=True)


if __name__ == "__main__":
    main()
