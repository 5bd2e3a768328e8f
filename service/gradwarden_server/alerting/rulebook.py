"""The files that people write: read at the start, and again when they change.

A set of files is taken over whole or not at all: while one of them is wrong, what was read before
stands, and all mistakes are told in the log, to ``GET /v1/rules`` and to ``/metrics``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gradwarden_server.detect import registry
from gradwarden_server.notify import routefile, weekly
from gradwarden_server.notify.routefile import Paging
from gradwarden_server.notify.spec import ReceiversError
from gradwarden_server.notify.weekly import Weekly
from gradwarden_server.promql.parse import parse
from gradwarden_server.querying.grammar import Grammar, doubts
from gradwarden_server.querying.objectives import groups_of
from gradwarden_server.rules import spec as rules_spec
from gradwarden_server.rules.nodes import RulesError
from gradwarden_server.rules.spec import RuleSet
from gradwarden_server.slo import openslo
from gradwarden_server.slo.objective import Objective
from gradwarden_server.slo.openslo import SloError

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often the files are looked at."""
_OBJECTIVES = "slo"
"""The folder of objectives within that of rules."""


@dataclass(frozen=True, slots=True)
class Book:
    """What the files say."""

    rules: RuleSet
    """With the groups that objectives are compiled to."""
    paging: Paging
    """Receivers, and the routes to them."""
    objectives: tuple[Objective, ...]
    weekly: Weekly | None = None


@dataclass(frozen=True, slots=True)
class Reload:
    """How the last reading went; ``mistakes`` has one line for each, and then nothing changed."""

    at_ns: int
    mistakes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether what the files say is what holds."""
        return not self.mistakes


class Rulebook:
    """Holds what the files say now."""

    def __init__(
        self,
        rules: Path,
        receivers: Path | None,
        environ: Mapping[str, str],
        url: str,
        clock: Callable[[], int],
    ) -> None:
        """Read the files; ``url`` is where people find the service.

        Raises:
            RulesError, ReceiversError, SloError: a file is wrong; all its mistakes are told.
            OSError: the folder cannot be read.
        """
        self._rules = rules
        self._receivers = receivers
        self._environ = environ
        self._url = url
        self._clock = clock
        self._adopt: Callable[[Book], None] = lambda book: None
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="rulebook", daemon=True)
        self._seen = self._stamp()
        self.book = self._read()
        self.last = Reload(clock())
        self.loaded_ns = self.last.at_ns

    def start(self, adopt: Callable[[Book], None]) -> None:
        """Look at the files from now on; ``adopt`` takes over what changed."""
        self._adopt = adopt
        self._thread.start()

    def ask(self) -> None:
        """Read them again soon; for signals."""
        self._asked.set()

    def stop(self) -> None:
        """Look no more."""
        self._stopped = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join()

    def reload(self) -> Reload:
        """Read the files again and take them over, if nothing in them is wrong."""
        with self._lock:
            self._seen = self._stamp()
            try:
                book = self._read()
                if book != self.book:
                    self._adopt(book)
                self.book = book
                self.last = Reload(self._clock())
                self.loaded_ns = self.last.at_ns
                log.info("rules and receivers were read again")
            except (RulesError, ReceiversError, SloError) as error:
                self.last = Reload(self._clock(), tuple(error.mistakes))
            except (OSError, ValueError) as error:
                self.last = Reload(self._clock(), (str(error),))
            for mistake in self.last.mistakes:
                log.error("the old rules and receivers stand: %s", mistake)
            return self.last

    def _loop(self) -> None:
        while True:
            asked = self._asked.wait(LOOK_SECONDS)
            self._asked.clear()
            if self._stopped:
                return
            try:
                if asked or self._stamp() != self._seen:
                    self.reload()
            except Exception:
                log.exception("files were not read again")

    def _read(self) -> Book:
        found = rules_spec.load(
            self._rules, registry.schemas(), registry.BASELINE_SCHEMA, Grammar()
        )
        for doubt in doubts(found):
            log.warning("rules: %s", doubt)
        told = routefile.load(self._receivers, self._environ) if self._receivers else Paging()
        objectives = openslo.load(self._rules / _OBJECTIVES, parse)
        groups = (*found.groups, *groups_of(objectives, self._url))
        report = weekly.load(self._receivers, told.receivers) if self._receivers else None
        return Book(replace(found, groups=groups), told, objectives, report)

    def _stamp(self) -> dict[str, tuple[int, int, int]]:
        """What tells whether a file changed, by its path."""
        stamps = {}
        for path in self._files():
            try:
                stat = path.stat()
            except OSError:
                continue
            stamps[str(path)] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        return stamps

    def _files(self) -> Iterator[Path]:
        for folder in (self._rules, self._rules / _OBJECTIVES):
            if folder.is_dir():
                yield from (p for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
        if self._receivers is not None:
            yield self._receivers
