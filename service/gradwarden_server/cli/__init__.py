"""The ``gradwarden`` command. Only the standard library is imported before a command is chosen.

``sync`` and ``--version`` need nothing else; the others name the extra that they miss.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gradwarden_server.cli import objectives, operating, quieting, rehearsal
from gradwarden_server.cli.faults import EXIT_CODES, USAGE, CommandError
from gradwarden_server.cli.grammar import (
    DEFAULT_URL,
    Group,
    Parser,
    add,
    add_db,
    add_service,
)

_DEMO_MODULES = ("torch", "sklearn")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code says how it went."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["demo"]:  # it has a parser of its own
        return _guarded(lambda: _handler("gradwarden_server.demo.story", "main")(arguments[1:]))
    options = _parser().parse_args(arguments)
    return _guarded(lambda: _handler(options.module, options.function)(options))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except CommandError as error:
        print(f"gradwarden: {error}", file=sys.stderr)
        return error.code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("gradwarden"):
            raise
        extra = "demo" if missing in _DEMO_MODULES else "server"
        print(
            f"gradwarden: this command needs {missing}, which is not installed. Run:",
            f'  pip install "gradwarden[{extra}]"',
            sep="\n",
            file=sys.stderr,
        )
        return USAGE
    except BrokenPipeError:  # `gradwarden runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _handler(module: str, function: str) -> Callable[..., int]:
    gc.disable()  # what is imported stays: a fifth of a start would go into looking through it
    try:
        handler: Callable[..., int] = getattr(importlib.import_module(module), function)
    finally:
        gc.enable()
    return handler


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gradwarden",
        description="Gradient observability and alerting for people who train networks.",
        epilog=f"example:\n  gradwarden serve\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gradwarden {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _serving(commands)
    _tokens(commands)
    _reading(commands)
    _asking(commands)
    _files(commands)
    operating.add_commands(commands)
    rehearsal.add_commands(commands)
    quieting.add_commands(commands)
    objectives.add_commands(commands)
    _transfer(commands)
    add(
        commands,
        "demo",
        "train a real network that falls ill, and watch it be found",
        "gradwarden demo --healthy",
        "",
    )
    return parser


def _serving(commands: argparse._SubParsersAction[Parser]) -> None:
    serve = add(
        commands,
        "serve",
        "run the service: API, evaluation, delivery and dashboard",
        "gradwarden serve --receivers receivers.yaml",
        "serving:serve",
    )
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (8321); 0 takes a free one")
    serve.add_argument("--receivers", type=Path, help="YAML file that says who is told")
    serve.add_argument("--rules", type=Path, help="folder of alert rules, not the shipped ones")
    serve.add_argument("--external-url", help="address under which people reach the service")
    serve.add_argument("--log-format", choices=("auto", "json", "text"))
    add_db(serve)
    migrate = add(
        commands,
        "migrate",
        "bring the database to the newest schema",
        "gradwarden migrate --db sqlite:////var/lib/gw.sqlite",
        "serving:migrate",
    )
    add_db(migrate)


def _tokens(commands: argparse._SubParsersAction[Parser]) -> None:
    token = Group(commands, "token", "make, list and revoke tokens")
    create = add(
        token.actions,
        "create",
        "make a token and print its secret once",
        "gradwarden token create --name ci --scope ingest --days 90",
        "tokens:create",
    )
    create.add_argument("--name", help="what it is for (its scope)")
    create.add_argument(
        "--scope",
        choices=("ingest", "read", "admin"),
        default="ingest",
        help="ingest for trainers (default), read for people, admin for all",
    )
    create.add_argument("--days", type=float, help="expire after so many days")
    listing = add(
        token.actions,
        "list",
        "list tokens, never their secrets",
        "gradwarden token list --json",
        "tokens:show",
    )
    revoke = add(
        token.actions,
        "revoke",
        "close a token and the sessions it opened",
        "gradwarden token revoke 3",
        "tokens:revoke",
    )
    revoke.add_argument("id", type=int, help="as listed")
    for command in (create, listing, revoke):
        add_db(command)
        add_service(
            command, default=None, note="go through a running service instead of the database"
        )
        command.add_argument("--json", action="store_true", help="print JSON")


def _reading(commands: argparse._SubParsersAction[Parser]) -> None:
    runs = add(
        commands,
        "runs",
        "list runs, show one, or delete one",
        "gradwarden runs --state running",
        "keeping:runs",
    )
    runs.add_argument("run", nargs="?", help="show this run, by its identifier or name")
    operating.add_deletion(runs)
    runs.add_argument("--state", default="", help="running, finished, failed, cancelled")
    runs.add_argument("--query", default="", help="part of run, name, job, model or owner")
    top = add(
        commands,
        "top",
        "watch the fleet, or one run, live in the terminal",
        "gradwarden top\n  gradwarden top RUN --interval 5",
        "top:top",
    )
    top.add_argument("run", nargs="?", help="watch this run alone")
    top.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="ask again (2)")
    top.add_argument("--once", action="store_true", help="print it once and leave")
    diagnose = add(
        commands,
        "diagnose",
        "tell what ails a run, why, and what to do first",
        "gradwarden diagnose RUN\n  gradwarden diagnose --spool ~/.local/state/gradwarden/spool",
        "diagnosing:diagnose",
    )
    diagnose.add_argument("run", nargs="?", help="the run's identifier, or its name")
    diagnose.add_argument(
        "--spool", type=Path, metavar="DIR", help="of a spool on disk, without a service"
    )
    receivers = Group(commands, "receivers", "list receivers, and send them a test message")
    listing = add(
        receivers.actions, "list", "who is told", "gradwarden receivers list", "reading:receivers"
    )
    test = add(
        receivers.actions,
        "test",
        "send a test message now",
        "gradwarden receivers test oncall",
        "reading:test_receiver",
    )
    test.add_argument("name", help="as in the receivers file")
    routes = add(
        receivers.actions,
        "routes",
        "by which routes alerts find people",
        "gradwarden receivers routes\n  gradwarden receivers routes severity=page environment=prod",
        "reading:routes",
    )
    routes.add_argument("label", nargs="*", help="NAME=VALUE: only those that such alerts take")
    letters = add(
        receivers.actions,
        "dead-letters",
        "messages that were given up; --retry ID sends one once more",
        "gradwarden receivers dead-letters\n  gradwarden receivers dead-letters --retry 42",
        "reading:dead_letters",
    )
    letters.add_argument("--retry", type=int, metavar="ID", help="send this one once more")
    rotate = add(
        receivers.actions,
        "rotate-links",
        "make all links in sent messages worthless",
        "gradwarden receivers rotate-links",
        "reading:rotate_links",
    )
    add_service(rotate, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    for command in (runs, top, diagnose, listing, test, routes, letters):
        add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (runs, top):
        command.add_argument("--limit", type=int, default=50, help="at most so many (50)")


def _asking(commands: argparse._SubParsersAction[Parser]) -> None:
    halt = add(
        commands,
        "halt",
        "ask a run to end, where its Guard allows it",
        "gradwarden halt RUN --reason 'node 7 flips bits'",
        "commanding:halt",
    )
    halt.add_argument("run", help="the run's identifier, or its name")
    halt.add_argument("--rank", type=int, default=0, help="through this rank (0)")
    halt.add_argument("--reason", default="", help="said in the trainer's log and on the page")
    command = add(
        commands,
        "command",
        "ask something of a run's ranks",
        "gradwarden command RUN schedule every=10 preset=light",
        "commanding:command",
    )
    command.add_argument("run", help="the run's identifier, or its name")
    command.add_argument("kind", help="checksums, capture, speak, pause, resume, schedule or halt")
    command.add_argument("args", nargs="*", metavar="NAME=VALUE", help="such as steps=8")
    command.add_argument("--rank", type=int, help="of this rank alone (all that are alive)")
    for asking in (halt, command):
        add_service(asking, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        asking.add_argument("--json", action="store_true", help="print JSON")


def _files(commands: argparse._SubParsersAction[Parser]) -> None:
    check = Group(commands, "check", "check files before the service reads them")
    rules = add(
        check.actions,
        "rules",
        "report all mistakes of all rule files",
        "gradwarden check rules alert_rules/ more.rules.yml",
        "checking:rules",
    )
    what = "folders and files; default: the shipped rules"
    rules.add_argument("paths", nargs="*", type=Path, metavar="PATH", help=what)
    receivers = add(
        check.actions,
        "receivers",
        "report all mistakes of a receivers file",
        "gradwarden check receivers receivers.yaml",
        "checking:receivers",
    )
    receivers.add_argument("file", type=Path)
    sync = add(
        commands,
        "sync",
        "send what a spool holds, also of a dead node",
        "gradwarden sync /mnt/dead-node/gradwarden/spool",
        "syncing:sync",
    )
    sync.add_argument("directory", type=Path, help="a spool, or a folder of spools")
    add_service(sync, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
    sync.add_argument("--json", action="store_true", help="print JSON")


def _transfer(commands: argparse._SubParsersAction[Parser]) -> None:
    export = add(
        commands,
        "export",
        "write a run to one file",
        "gradwarden export RUN --format parquet -o run.parquet\n"
        "  gradwarden export RUN --format html -o run.html\n"
        "  gradwarden export RUN --format csv --from 1000 --to 2000 | gzip > run.csv.gz",
        "exporting:export",
    )
    export.add_argument("run", help="the run's identifier, or its name")
    export.add_argument(
        "--format",
        choices=("jsonl", "csv", "parquet", "frames", "html"),
        help="html is a page that opens without a network; default: as FILE ends, else jsonl",
    )
    export.add_argument(
        "-o", "--output", metavar="FILE", help="- is standard output; default: that, into a pipe"
    )
    export.add_argument("--from", dest="first", type=int, metavar="STEP", help="leave out before")
    export.add_argument("--to", dest="last", type=int, metavar="STEP", help="leave out after")
    taken = add(
        commands,
        "import",
        "bring back an exported run, or one of TensorBoard or MLflow",
        "gradwarden import run.parquet --run run-again\n"
        "  gradwarden import runs/ --from tensorboard\n"
        "  gradwarden import --from mlflow --tracking-uri http://mlflow:5000 --experiment gpt2",
        "importing:run",
    )
    taken.add_argument("source", nargs="?", help="file, log folder, or MLflow run id")
    taken.add_argument(
        "--from", dest="origin", choices=("gradwarden", "tensorboard", "mlflow"), help="whose it is"
    )
    taken.add_argument(
        "--format",
        choices=("jsonl", "csv", "parquet", "frames"),
        help="default: as the file begins",
    )
    taken.add_argument("--run", help="call it so, not as it was called")
    taken.add_argument("--tracking-uri", help="of MLflow (MLFLOW_TRACKING_URI)")
    taken.add_argument("--experiment", help="all runs of this MLflow experiment")
    for command in (export, taken):
        add_service(command, default=os.environ.get("GRADWARDEN_URL") or DEFAULT_URL)
        command.add_argument("--json", action="store_true", help="print JSON")


def _version() -> str:
    try:
        return version("gradwarden")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "(not installed)"
