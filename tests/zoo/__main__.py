"""``python -m tests.zoo``: train every inhabitant, judge it, print the score."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.zoo.cases import Case, Variant
from tests.zoo.judge import judge
from tests.zoo.play import play
from tests.zoo.registry import plays, title
from tests.zoo.score import Raised, Scored, add, bound, delay, score

WORKERS = 2


def examine(case: Case, variant: Variant, seed: int, folder: Path) -> Scored:
    """Train, judge and score one run in ``folder``."""
    from tests.zoo.ground import TRUTH

    folder.mkdir(parents=True)
    troubles = play(case.name, variant, seed, folder)
    judged = judge(case.name, folder)
    troubles += [judged["error"]] if "error" in judged else []
    truth = folder / TRUTH
    began = json.loads(truth.read_text())["step"] if truth.exists() else None
    return score(
        case,
        variant,
        title(case, variant),
        seed,
        [Raised(**r) for r in judged["raised"]],
        began=began,
        steps=judged["steps"],
        troubles=troubles,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each case (1)")
    parser.add_argument("--only", metavar="NAME", help="cases whose name begins so")
    parser.add_argument("--json", action="store_true", help="the last line alone")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave what the runs wrote")
    arguments = parser.parse_args()
    wanted = [
        (case, variant, seed)
        for case, variant in plays()
        if title(case, variant).startswith(arguments.only or "")
        for seed in range(arguments.seeds)
    ]
    if not wanted:
        parser.error(f"no case begins with {arguments.only!r}")
    with tempfile.TemporaryDirectory(prefix="gradwarden-zoo-") as made:
        scored = run(wanted, arguments.keep or Path(made), quiet=arguments.json)
    sums = add(scored)
    if not arguments.json:
        Console(width=150).print(table(scored))
        for line in told(scored):
            print(line)
    print(json.dumps(summary(scored)))
    return 0 if sums.troubles == 0 and not any(s.short for s in scored) else 1


def run(
    wanted: Sequence[tuple[Case, Variant, int]], folder: Path, quiet: bool = False
) -> list[Scored]:
    """Examine all, two at a time, with progress on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=quiet)
    with progress, ThreadPoolExecutor(WORKERS) as pool:
        task = progress.add_task("zoo", total=len(wanted))

        def one(asked: tuple[Case, Variant, int]) -> Scored:
            case, variant, seed = asked
            made = examine(case, variant, seed, folder / f"{title(case, variant)}.{seed}")
            progress.update(task, advance=1, description=made.title)
            return made

        return list(pool.map(one, wanted))


def table(scored: Iterable[Scored]) -> Table:
    """One line for each case and variant."""
    made = Table(title="The zoo: real runs, shipped rules")
    made.add_column("run")
    for column in ("runs", "raised", "named", "steps to detect", "false pages", "false tickets"):
        made.add_column(column, justify="right")
    rows: dict[str, list[Scored]] = {}
    for one in scored:
        rows.setdefault(one.title, []).append(one)
    for name, held in rows.items():
        found = [f for s in held for f in s.found]
        alerts = list(dict.fromkeys(f.alert for f in found)) or [""]
        false = [f.split()[0] for s in held for f in s.false]
        for at, alert in enumerate(alerts):
            mine = [f for f in found if f.alert == alert]
            raised = [f for f in mine if f.steps is not None]
            steps = delay(mine)
            made.add_row(
                f"{name}: {alert}" if alert else name,
                str(len(held)),
                f"{len(raised)} of {len(mine)}" if alert else "",
                f"{sum(f.named for f in raised)} of {len(raised)}" if alert else "",
                "" if steps is None else f"{steps:g}",
                str(false.count("page")) if at == 0 else "",
                str(false.count("ticket")) if at == 0 else "",
            )
    return made


def told(scored: Sequence[Scored]) -> list[str]:
    """The sums in words, and what fell short by name."""
    sums = add(scored)
    pages = (sums.false_pages, sums.false_pages_healthy)
    tickets = (sums.false_tickets, sums.false_tickets_healthy)
    lines = [
        f"recall {sums.raised} of {sums.wanted} ({sums.recall:.1%}), "
        f"named rightly {sums.named} of {sums.raised} ({sums.naming:.1%})",
        *(
            f"false {what} {count} in {sums.runs} runs ({calm} in {sums.healthy_runs} healthy "
            f"ones): at most {bound(count, sums.runs):.3g} a run, "
            f"{bound(count, sums.run_steps):.2g} a step, with 95 % confidence"
            for what, (count, calm) in {"pages": pages, "tickets": tickets}.items()
        ),
    ]
    short = [f"  {s.title}, seed {s.seed}: {text}" for s in scored for text in s.short]
    return [*lines, "fell short:" if short else "nothing fell short", *short]


def summary(scored: Sequence[Scored]) -> dict[str, object]:
    """The last line: sums and what fell short."""
    sums = add(scored)
    found: dict[str, list[int]] = {}
    for one in scored:
        for alert in one.found:
            if alert.steps is not None:
                found.setdefault(f"{one.title}: {alert.alert}", []).append(alert.steps)
    return {
        **asdict(sums),
        "recall": sums.recall,
        "naming": sums.naming,
        "false_pages_per_run_at_most": bound(sums.false_pages, sums.runs),
        "false_tickets_per_run_at_most": bound(sums.false_tickets, sums.runs),
        "steps_to_detect": {name: sorted(steps)[len(steps) // 2] for name, steps in found.items()},
        "short": {f"{s.title}.{s.seed}": s.short for s in scored if s.short},
    }


if __name__ == "__main__":
    sys.exit(main())
