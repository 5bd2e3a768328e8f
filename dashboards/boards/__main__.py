"""Write the dashboards: ``python -m dashboards.boards``."""

from __future__ import annotations

from pathlib import Path
from string import ascii_uppercase

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.boards import debug, executive, oncall

FOLDER = Path(__file__).parents[1] / "grafana"
BOARDS = (executive, oncall, debug)


def texts() -> dict[str, str]:
    """The JSON of each dashboard, by the name of its file."""
    found = {}
    for module in BOARDS:
        made = module.made().build()
        for number, panel in enumerate(made.panels, start=1):
            panel.id_val = number
            for letter, target in zip(ascii_uppercase, panel.targets or (), strict=False):
                target.ref_id = letter
        encoded = JSONEncoder(indent=2, sort_keys=True).encode(made)
        found[f"{made.uid}.json"] = f"{encoded}\n"
    return found


def main() -> None:
    """Write them all."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
