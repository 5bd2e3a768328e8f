"""``gradwarden db``: what an operator does to the database itself."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from gradwarden_server.cli.bars import Told, bars
from gradwarden_server.cli.faults import DONE, NO, UNREACHABLE, USAGE, CommandError
from gradwarden_server.cli.reading import Client, table
from gradwarden_server.cli.serving import open_database, settings_from, why
from gradwarden_server.store.database import Database
from gradwarden_server.store.errors import DatabaseInUse, StoreError
from gradwarden_server.store.keeping import backup as backups
from gradwarden_server.store.keeping import check as checks
from gradwarden_server.store.keeping import stats as weights
from gradwarden_server.store.keeping import transfer, vacuum
from gradwarden_server.store.keeping.maintenance import Janitor


def copy(options: argparse.Namespace) -> int:
    """Copy a database into another; the same command again goes on where one was cut off."""
    if options.source == options.target:
        raise CommandError(f"--to: {options.target}; name another database than --from", USAGE)
    with (
        _held(options.source, "db copy") as source,
        _held(options.target, "db copy") as target,
        _told(options) as told,
    ):
        rows = transfer.copy(source, target, told)
    _say(options, {"rows": rows}, _counted(rows, "copied and verified"))
    return DONE


def backup(options: argparse.Namespace) -> int:
    """Write the whole database to one file, also while it is in use."""
    with _beside(options, "db backup") as database, _told(options) as told:
        rows = backups.backup(database, options.file, told)
    size = options.file.stat().st_size
    words = f"{options.file} is written and verified: {_size(size)}, {sum(rows.values())} rows"
    _say(options, {"file": str(options.file), "bytes": size, "rows": rows}, words)
    return DONE


def restore(options: argparse.Namespace) -> int:
    """Make the database what a backup says."""
    url = settings_from(options).db
    with _held(url, "db restore", migrated=False) as database, _told(options) as told:
        rows = backups.restore(options.file, database, options.force, told)
    _say(options, {"rows": rows}, _counted(rows, "restored"))
    return DONE


def check(options: argparse.Namespace) -> int:
    """Verify every checksum; exit code 1 when something is damaged."""
    with _beside(options, "db check") as database, _told(options) as told:
        found = list(checks.damages(database, told))
    lines = [str(damage) for damage in found] or ["nothing is damaged"]
    _say(options, {"damages": [asdict(damage) for damage in found]}, "\n".join(lines))
    return NO if found else DONE


def stats(options: argparse.Namespace) -> int:
    """Tell what is stored and what it weighs."""
    with _beside(options, "db stats") as database:
        sizes = weights.sizes(database)
        room = vacuum.room(database) if database.kind == "sqlite" else None
    if options.json:
        runs = [
            {**asdict(s), "bytes": s.bytes, "bytes_per_sample": s.bytes_per_sample} for s in sizes
        ]
        totals = {"bytes": sum(s.bytes for s in sizes), "file": room and asdict(room)}
        print(json.dumps({"runs": runs, "totals": totals}, indent=2))
        return DONE
    _show(sizes)
    if room is not None:
        print(f"\nfile {_size(room.size)}, of which {_size(room.free)} hold nothing")
    return DONE


def retain(options: argparse.Namespace) -> int:
    """Drop now what no project wants to keep; a running service does so by itself."""
    with _held(settings_from(options).db, "db retain") as database:
        swept = Janitor(database, "gradwarden db retain").round(time.time_ns())
    if swept is None:
        raise CommandError("another process is at it; nothing is left to do here", UNREACHABLE)
    words = (
        f"{swept.runs} runs removed, {swept.narrowed} segments hold less, "
        f"{swept.values} rows of them dropped; series: {swept.points} chunks dropped, "
        f"{swept.merged} merged"
    )
    if swept.waiting:
        words += f"; {swept.waiting} runs wait until a service has resolved their alerts"
    _say(options, asdict(swept), words)
    return DONE


def give_back(options: argparse.Namespace) -> int:
    """Give room that deleted rows left behind back to the disk."""
    if options.url:
        return _give_back_online(options)
    with _held(settings_from(options).db, "db vacuum") as database:
        before = vacuum.room(database).size if database.kind == "sqlite" else None
        vacuum.vacuum_alone(database)
        after = vacuum.room(database).size if before is not None else None
    words = "vacuumed and analyzed"
    if before is not None and after is not None:
        words = f"the file had {_size(before)} and has {_size(after)}"
    _say(options, {"before_bytes": before, "after_bytes": after}, words)
    return DONE


def _give_back_online(options: argparse.Namespace) -> int:
    client = Client(options)
    with bars(not options.json) as told:
        answer = client.call("POST", "/v1/admin/vacuum")
        free = before = answer["free_bytes"]
        while free:
            answer = client.call("POST", "/v1/admin/vacuum")
            told("bytes", before - answer["free_bytes"], before)
            if answer["free_bytes"] >= free:  # what is deleted meanwhile is not chased
                break
            free = answer["free_bytes"]
    words = f"the file has {_size(answer['size_bytes'])}, {_size(answer['free_bytes'])} of it free"
    _say(options, answer, words)
    return DONE


@contextmanager
def _held(url: str, what: str, migrated: bool = True) -> Iterator[Database]:
    """A database that nobody else writes to while this command does."""
    try:
        database = Database(url)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    except OSError as error:
        raise CommandError(f"db: {error}", UNREACHABLE) from None
    try:
        database.hold_lock(f"gradwarden {what}")
        if migrated:
            database.migrate()
        yield database
    except DatabaseInUse as error:
        online = what == "db vacuum"
        remedy = "repeat this with --url http://HOST:PORT" if online else "stop it first"
        raise CommandError(
            f"{error}: a service or another command is at work on it; {remedy}", UNREACHABLE
        ) from None
    except StoreError as error:
        raise CommandError(why(error), UNREACHABLE) from None
    finally:
        database.close()


@contextmanager
def _beside(options: argparse.Namespace, what: str) -> Iterator[Database]:
    """A database that is read, maybe beside a service."""
    database = open_database(settings_from(options).db, f"gradwarden {what}", beside=True)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _told(options: argparse.Namespace) -> Iterator[Told]:
    """Bars while something long goes on; what cannot be done is told as such."""
    try:
        with bars(not options.json) as told:
            yield told
    except (backups.NotBackedUp, transfer.NotCopied) as error:
        raise CommandError(str(error), UNREACHABLE) from None
    except (OSError, StoreError) as error:
        raise CommandError(why(error), UNREACHABLE) from None


def _show(sizes: Sequence[weights.RunSize]) -> None:
    rows = [
        {
            "project": size.project,
            "run": size.run,
            "frames": size.log_frames + size.segment_frames,
            "samples": size.samples,
            "log": _size(size.log_bytes),
            "segments": _size(size.segment_bytes),
            "chunks": _size(sum(size.chunk_bytes.values())),
            "roll-ups": _size(sum(size.rollup_bytes.values())),
            "series": _size(size.series_bytes),
            "bytes/sample": size.bytes_per_sample,
        }
        for size in sizes
    ]
    table(tuple(rows[0]) if rows else (), rows, "no runs yet")
    for title, parts in (
        ("chunks by quantity", [size.chunk_bytes for size in sizes]),
        ("roll-ups by width", [size.rollup_bytes for size in sizes]),
    ):
        totals: Counter[str | int] = Counter()
        for part in parts:
            totals.update(part)
        if totals:
            words = (f"{name} {_size(weight)}" for name, weight in totals.most_common())
            print(f"\n{title}: {', '.join(words)}")
    samples = sum(size.samples for size in sizes)
    whole = f"\nall runs: {_size(sum(size.bytes for size in sizes))}"
    compacted = sum(size.compacted_bytes for size in sizes)
    print(f"{whole}, {compacted / samples:.3g} bytes a compacted sample" if samples else whole)


def _counted(rows: Mapping[str, int], done: str) -> str:
    lines = [f"{name:<16} {count}" for name, count in rows.items() if count]
    return "\n".join([*lines, f"{sum(rows.values())} rows {done}"])


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _say(options: argparse.Namespace, facts: object, words: str) -> None:
    print(json.dumps(facts, indent=2) if options.json else words)
