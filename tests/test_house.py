"""The shape of the house, held by tests: who may import whom, what is documented, what is said.

The tables at the head are the rules. A new room, a new third-party package or an exception to a
rule is one deliberate line here, with its reason.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "client_sdk" / "gradwarden"
SERVER = ROOT / "service" / "gradwarden_server"
MIGRATIONS = ROOT / "migrations"
DOCS = ROOT / "docs"

# Rooms of the server by floor. A room imports its own modules and the floors below, never a
# neighbour: rooms of one floor meet only in `app` and `cli`. The bottom floor is one room.
FLOORS = (
    ("model", "settings", "assets", "telemetry", "logs", "joins", "matchers", "weekly"),
    ("store", "detect", "rules", "promql", "slo", "notify", "transfer", "diagnosis"),
    ("querying",),
    ("alerting",),
    ("api",),
    ("app", "house", "cli", "demo"),
)
# Packages of the store by floor, likewise; its own modules lie beside all of them.
STORE_FLOORS = (
    ("columns", "tables"),
    ("shelves",),
    ("log",),
    ("compacting", "reading", "judging", "alerts"),
    ("keeping",),
)
# Which of our packages may use which third-party package. Not listed: nobody may.
THIRD_PARTY = {
    "torch": {"gradwarden", "demo"},
    "zstandard": {"gradwarden.wire", "store", "detect"},
    "re2": {"matchers", "promql"},
    "orjson": {"api"},
    "sqlalchemy": {"store", "migrations"},
    "alembic": {"store", "migrations"},
    "psycopg": {"store"},
    "fastapi": {"api", "app", "house"},
    "starlette": {"api", "app"},
    "uvicorn": {"app", "cli", "demo"},
    "httpx": {"notify", "cli", "demo"},  # cli: its commands are clients of a running service
    "pydantic": {"api", "settings", "cli"},
    "pydantic_settings": {"settings"},
    "prometheus_client": {"telemetry"},
    "opentelemetry": {"telemetry", "house", "gradwarden.instruments.spans"},
    "yaml": {"settings", "rules", "notify", "app", "cli", "slo"},
    "promql_parser": {"promql"},
    "numpy": {
        "gradwarden_server.cli.terminal_heatmap",
        "alerting",
        "api",
        "app",
        "demo",
        "detect",
        "joins",
        "promql",
        "querying",
        "rules",
        "store",
        "transfer",
    },
    "markdown_it": {"api"},
    "apprise": {"notify"},
    "mlflow": {"transfer"},
    "pyarrow": {"transfer"},
    "tensorboard": {"transfer"},
    "rich": {"cli", "demo"},
    "triton": {"gradwarden.stats"},
    "sklearn": {"demo"},
    "transformers": {"gradwarden.integrations.huggingface"},
    "lightning": {"gradwarden.integrations.lightning"},
    "accelerate": {"gradwarden.integrations.accelerate"},
}
# Time and chance are arguments here, so that replaying history is the same code as live.
PURE = ("detect", "diagnosis", "rules", "slo", "alerting.lifecycle")
IMPURE_MODULES = {"time", "random", "secrets", "threading", "socket", "subprocess", "asyncio"}

MOST_LINES = 400
LONG_BY_DESIGN: dict[str, int] = {}

# Public methods of store classes that take no project, each with its reason.
WITHOUT_PROJECT = {
    "Buckets.columns": "arithmetic",
    "Buckets.places": "arithmetic",
    "Buckets.starts": "arithmetic",
    "Canvas": "arithmetic",
    "Cache": "memory; its keys are rows of the database",
    "ClickHouseShelf": "takes segments, which were found in a project",
    "Compaction": "keeps house for all projects",
    "Compactor": "keeps house for all projects",
    "Curve.add": "arithmetic",
    "Curve.of_first_rank": "arithmetic",
    "Curve.summed": "arithmetic",
    "Database": "the engine itself: connections, migrations and the writer, no tenant's rows",
    "Janitor": "keeps house for all projects",
    "Broom": "runs the writes that it is given",
    "Overview.totals": "totals for /metrics",
    "Listener": "the engine itself: hears that something changed, never what",
    "LogReader.of_stream": "compaction asks it about a stream that it found",
    "Opened": "one batch in memory",
    "GroupStore.due": "the herald serves all projects",
    "GroupStore.sweep": "the herald keeps house for all projects",
    "Outbox.bury": "the delivery loop serves all projects; a message carries its own",
    "Outbox.claim": "the delivery loop",
    "Outbox.counts": "totals for /metrics",
    "Outbox.dead_since": "totals for /metrics",
    "Outbox.due": "the delivery loop",
    "Outbox.hasten": "the delivery loop: a host answers again, whoever waits for it",
    "Outbox.oldest_unsent": "totals for /metrics",
    "Outbox.record": "the delivery loop",
    "Outbox.stuck": "the delivery loop: a host does not answer, whoever waits for it",
    "Outbox.void_claims": "a process that starts alone takes over from one that died",
    "RunStore.projects": "lists the projects",
    "SegmentReader.column": "takes a segment, which was found in a project",
    "SegmentReader.matrices": "takes a segment, which was found in a project",
    "SegmentReader.rollups": "takes segments, which were found in a project",
    "SegmentReader.row": "takes segments, which were found in a project",
    "SegmentReader.spines": "takes segments, which were found in a project",
    "SegmentReader.steps": "takes segments, which were found in a project",
    "SegmentReader.words": "takes a segment, which was found in a project",
    "Shelves": "takes segments, which were found in a project",
    "TableShelf": "takes segments, which were found in a project",
    "Workshop.rest": "ends processes",
    "Zoom": "arithmetic over segments, which were found in a project",
    "Telling.pieces": "takes what was found held in a project",
    "Telling.scalars": "takes what was found held in a project",
    "TokenStore.any_live": "whether the service may listen beyond loopback at all",
    "TokenStore.authenticate": "a token is what tells the project",
}


@dataclass(frozen=True)
class Module:
    """One Python file of ours and what it imports, at any depth."""

    path: Path
    name: str
    imports: frozenset[str]

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def room(self) -> str:
        """The word that the tables use: `gradwarden`, `migrations`, or a room of the server."""
        parts = self.name.split(".")
        return parts[1] if self.package == "gradwarden_server" and len(parts) > 1 else parts[0]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Full dotted names that a tree imports; relative ones resolved against `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def parse(path: Path, top: Path) -> Module:
    """A file as a Module, named from the folder above its package."""
    parts = path.relative_to(top).with_suffix("").parts
    inside = ".".join(parts[:-1])
    name = inside if parts[-1] == "__init__" else ".".join(parts)
    tree = ast.parse(path.read_text(), str(path))
    return Module(path, name, frozenset(imported(tree, inside)))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the SDK, the server and the migrations."""
    return tuple(
        parse(path, folder.parent)
        for folder in (SDK, SERVER, MIGRATIONS)
        for path in sorted(folder.rglob("*.py"))
        if "_bundled" not in path.parts
    )


def server_rooms(module: Module) -> set[str]:
    """The rooms of the server that a module imports from."""
    return {
        name.split(".")[1]
        for name in module.imports
        if name.startswith("gradwarden_server.") and name.count(".") >= 1
    }


def floor(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"gradwarden_server.{room} has no place in FLOORS: give it one")


def complaints(found: Iterator[str]) -> None:
    """Fails with all mistakes together."""
    lines = sorted(set(found))
    assert not lines, "\n" + "\n".join(lines)


def test_the_wire_imports_nothing_of_ours() -> None:
    room = [module for module in modules() if module.name.startswith("gradwarden.wire")]
    assert room
    complaints(
        f"{module.name} imports {name}"
        for module in room
        for name in module.imports
        if name.startswith("gradwarden") and not name.startswith("gradwarden.wire.")
    )


def test_the_sdk_never_imports_the_server() -> None:
    complaints(
        f"{module.name} imports {name}"
        for module in modules()
        if module.package == "gradwarden"
        for name in module.imports
        if name.split(".")[0] == "gradwarden_server"
    )


def test_the_server_knows_only_the_wire_of_the_sdk() -> None:
    def found() -> Iterator[str]:
        for module in modules():
            if module.package != "gradwarden_server" or floor_or_top(module) == len(FLOORS) - 1:
                continue
            for name in module.imports:
                parts = name.split(".")
                if parts[0] == "gradwarden" and parts[1:2] not in ([], ["wire"]):
                    yield f"{module.name} imports {name}, more than gradwarden.wire"

    complaints(found())


def floor_or_top(module: Module) -> int:
    """The floor of a server module; the package itself and __main__ count as the top."""
    return len(FLOORS) - 1 if module.name.count(".") == 0 else floor(module.room)


def test_rooms_import_only_the_floors_below() -> None:
    def found() -> Iterator[str]:
        for module in modules():
            if module.package != "gradwarden_server" or module.name == "gradwarden_server":
                continue
            mine = floor(module.room)
            for other in server_rooms(module) - {module.room}:
                theirs = floor(other)
                same_room = mine == theirs and mine in (0, len(FLOORS) - 1)
                if theirs >= mine and not same_room:
                    yield f"{module.name} (floor {mine}) imports {other} (floor {theirs})"

    complaints(found())


def test_packages_of_the_store_import_only_the_floors_below() -> None:
    floor_of = {name: at for at, names in enumerate(STORE_FLOORS) for name in names}

    def found() -> Iterator[str]:
        for module in modules():
            mine = _package_of_store(module.name)
            for name in module.imports:
                theirs = _package_of_store(name)
                if None in (mine, theirs) or mine == theirs:
                    continue
                if floor_of[str(theirs)] >= floor_of[str(mine)]:
                    yield f"{module.name} imports {name}, which is no floor below"

    complaints(found())


def _package_of_store(name: str) -> str | None:
    parts = name.split(".")
    inside = parts[:2] == ["gradwarden_server", "store"] and len(parts) > 2
    return parts[2] if inside and any(parts[2] in names for names in STORE_FLOORS) else None


def test_migrations_know_only_the_store() -> None:
    complaints(
        f"{module.name} imports gradwarden_server.{room}"
        for module in modules()
        if module.package == "migrations"
        for room in server_rooms(module) - {"store"}
    )


def test_third_party_packages_stay_in_their_rooms() -> None:
    ours = {"gradwarden", "gradwarden_server", "migrations", "__future__"}

    def found() -> Iterator[str]:
        for module in modules():
            for package in {name.split(".")[0] for name in module.imports if name}:
                if package in ours or package in sys.stdlib_module_names:
                    continue
                allowed = THIRD_PARTY.get(package, set())
                names = {module.room, module.name, module.name.rpartition(".")[0]}
                if not allowed & names:
                    where = ", ".join(sorted(allowed)) or "nowhere"
                    yield f"{module.name} imports {package}, which belongs in: {where}"

    complaints(found())


def test_the_sdk_is_idle_at_import_even_with_torch() -> None:
    """torch is imported inside the functions and modules that are reached lazily."""
    eager = {
        name
        for node in ast.parse((SDK / "__init__.py").read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported(node, "gradwarden")
    }
    assert not {name for name in eager if name.split(".")[0] not in sys.stdlib_module_names}


def test_deciders_are_pure() -> None:
    def found() -> Iterator[str]:
        for module in modules():
            inside = module.name.removeprefix("gradwarden_server.")
            if any(inside == room or inside.startswith(f"{room}.") for room in PURE):
                for name in {name.split(".")[0] for name in module.imports} & IMPURE_MODULES:
                    yield f"{module.name} imports {name}: time and chance are arguments here"

    complaints(found())


def test_modules_stay_readable() -> None:
    def found() -> Iterator[str]:
        for module in modules():
            if module.package == "migrations":  # history: written once, never edited
                continue
            path = str(module.path.relative_to(ROOT))
            most = LONG_BY_DESIGN.get(path, MOST_LINES)
            lines = len(module.path.read_text().splitlines())
            if lines > most:
                yield f"{path} has {lines} lines, more than {most}: split it"

    complaints(found())


def test_modules_say_what_they_are() -> None:
    complaints(
        f"{module.path.relative_to(ROOT)} has no docstring"
        for module in modules()
        if module.path.read_text().strip()
        and not ast.get_docstring(ast.parse(module.path.read_text()))
    )


def export_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions, as the linter sorts them."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


def test_exports_are_sorted_and_real() -> None:
    def found() -> Iterator[str]:
        for module in modules():
            if module.package == "migrations" or "__all__" not in module.path.read_text():
                continue
            loaded = importlib.import_module(module.name)
            names = list(loaded.__all__)
            if names != sorted(names, key=export_order):
                yield f"{module.name}.__all__ is not sorted"
            for name in names:
                if not hasattr(loaded, name):
                    yield f"{module.name}.__all__ names {name}, which is not there"

    complaints(found())


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs Python in an environment that holds our two packages and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join((str(SDK.parent), str(SERVER.parent)))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [folder / "venv" / "bin" / "python", *words],
            env=environment,
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )

    return run


def test_the_sdk_imports_without_torch_numpy_and_server_extras(bare: Any) -> None:
    done = bare(
        "-c",
        "import importlib.util, sys, gradwarden, gradwarden.wire, gradwarden_server\n"
        "heavy = {'torch', 'numpy', 'sqlalchemy', 'fastapi', 'httpx', 'pydantic', 'yaml'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert not [m for m in heavy if importlib.util.find_spec(m)], 'this venv is not bare'\n",
    )
    assert done.returncode == 0, done.stderr


def test_the_command_names_the_extra_that_it_misses(bare: Any) -> None:
    if not (SERVER / "cli").exists() and not (SERVER / "cli.py").exists():
        pytest.skip("the command is not there yet")
    done = bare("-m", "gradwarden_server.cli", "serve")
    assert done.returncode == 2
    assert 'pip install "gradwarden[server]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert bare("-m", "gradwarden_server.cli", "sync", "--help").returncode == 0


def store_classes() -> Iterator[tuple[str, type[Any]]]:
    """Public classes of the store with behaviour: no records, enumerations or errors."""
    for module in modules():
        if module.room != "store" or module.name.endswith(".tables"):
            continue
        for node in ast.parse(module.path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            loaded = getattr(importlib.import_module(module.name), node.name)
            record = hasattr(loaded, "__dataclass_fields__")
            if not record and loaded.__bases__ == (object,):
                yield node.name, loaded


def test_every_store_method_takes_the_project_first() -> None:
    def found() -> Iterator[str]:
        for name, loaded in store_classes():
            if name in WITHOUT_PROJECT:
                continue
            for method, function in inspect.getmembers(loaded, inspect.isfunction):
                if method.startswith("_") or f"{name}.{method}" in WITHOUT_PROJECT:
                    continue
                parameters = list(inspect.signature(function).parameters)
                if parameters[1:2] != ["project"]:
                    yield f"{name}.{method} takes {parameters[1:2] or 'nothing'}, not project"

    complaints(found())


ENVIRONMENT_NAME = re.compile(r"\bGRADWARDEN_[A-Z][A-Z0-9_]*[A-Z0-9]\b")


def settings() -> Any:
    """The Settings class, where the room is there."""
    if not (SERVER / "settings.py").exists():
        pytest.skip("the settings are not there yet")
    return importlib.import_module("gradwarden_server.settings").Settings


def test_every_setting_has_its_sentence() -> None:
    tree = ast.parse(inspect.getsource(settings()))
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)).body

    def found() -> Iterator[str]:
        for node, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if not documented and "description=" not in ast.unparse(node):
                    yield f"Settings.{node.target.id} has no sentence under it"

    complaints(found())


def test_every_setting_is_documented() -> None:
    names = {
        str(field.validation_alias or f"GRADWARDEN_{name.upper()}")
        for name, field in settings().model_fields.items()
    }
    if (SDK / "settings.py").exists():
        fields = importlib.import_module("gradwarden.settings").Settings.__dataclass_fields__
        names |= {f"GRADWARDEN_{name.upper()}" for name in fields}
    for module in modules():
        names |= set(ENVIRONMENT_NAME.findall(module.path.read_text()))
    text = (DOCS / "configuration.md").read_text()
    complaints(
        f"docs/configuration.md says nothing of {name}"
        for name in names
        if not re.search(rf"\b{name}\b", text)
    )
    complaints(
        f"docs/configuration.md names {name}, which nothing reads"
        for name in set(ENVIRONMENT_NAME.findall(text)) - names
    )


def alert_names(value: Any) -> Iterator[str]:
    """What `alert:` and `alertname:` name, at any depth of a rule file."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("alert", "alertname") and isinstance(inner, str):
                yield inner
            else:
                yield from alert_names(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from alert_names(inner)


def test_every_alert_has_a_runbook() -> None:
    folders = ROOT / "alert_rules", ROOT / "alert_rules" / "prometheus"
    rules = sorted(path for folder in folders for path in folder.glob("*.y*ml"))
    complaints(
        f"{path.name}: {name} has no docs/runbooks/{name}.md"
        for path in rules
        for name in alert_names(yaml.safe_load(path.read_text()))
        if not (DOCS / "runbooks" / f"{name}.md").exists()
    )


def tracked() -> list[Path]:
    """The files of the repository; in an unpacked archive there is no list to check."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# Split, so that this file does not find itself.
MACHINE_WORDS = ("/wor" + "k/", "/opt/whe" + "els", "/opt/py" + "pi", "/roo" + "t/", "/hom" + "e/")
LOCKED_HOST = re.compile(r'"resolved": "(?!https://registry\.npmjs\.org/)')


def test_the_repository_says_nothing_of_the_machine_that_made_it() -> None:
    def found() -> Iterator[str]:
        for path in tracked():
            try:
                text = path.read_text()
            except UnicodeDecodeError:
                continue
            for word in MACHINE_WORDS:
                if word in text:
                    yield f"{path.relative_to(ROOT)} says {word}"
            if path.name == "package-lock.json" and LOCKED_HOST.search(text):
                yield f"{path.relative_to(ROOT)} resolves packages from a host of its own"

    complaints(found())


def test_links_in_the_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")

    def found() -> Iterator[str]:
        for path in tracked():
            if path.suffix == ".md":
                for target in link.findall(path.read_text()):
                    if not (path.parent / target).exists():
                        yield f"{path.relative_to(ROOT)} links to {target}, which is not there"

    complaints(found())
