"""Reads files of OpenSLO v1: Services, SLIs and SLOs over Prometheus. Strict; all mistakes at once.

What OpenSLO cannot say is said by annotations of the SLO, all of which begin with
``gradwarden.dev/``; docs/slo.md lists them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml

from gradwarden_server.slo import windows
from gradwarden_server.slo.annotations import PREFIX, annotated
from gradwarden_server.slo.document import Document
from gradwarden_server.slo.objective import WINDOW, Budgeting, Objective, Period

VERSION = "openslo/v1"

_KINDS = ("Service", "SLI", "SLO")
_METHODS: Mapping[str, Budgeting] = {
    "Occurrences": "occurrences",
    "Timeslices": "timeslices",
    "RatioTimeslices": "ratio_timeslices",
}
_ID = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?\Z")
_PERIOD = re.compile(r"([1-9]\d{0,3})([dwMQY])\Z")
_DAYS = {"d": 1, "w": 7, "M": 30, "Q": 90, "Y": 365}
_LONGEST_DAYS = 400  # recorded series are kept for so long

Check = Callable[[str], None]
"""Raises ValueError where a text is no PromQL."""


class SloError(ValueError):
    """Files of objectives are wrong; ``mistakes`` has one line for each: file, document, field."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def load(directory: Path, check: Check) -> tuple[Objective, ...]:
    """The objectives of every ``*.yaml`` and ``*.yml`` of a directory; none where there is none.

    Raises:
        SloError: at least one file is wrong.
    """
    if not directory.is_dir():
        return ()
    paths = sorted(p for p in directory.iterdir() if p.suffix in (".yaml", ".yml"))
    return load_files(paths, check)


def load_files(paths: Iterable[Path], check: Check) -> tuple[Objective, ...]:
    """The objectives of these files together, since one may name what another holds.

    Raises:
        SloError: at least one file is wrong.
    """
    reader = _Reader(check)
    for path in paths:
        reader.read(path)
    made = reader.objectives()
    if reader.mistakes:
        raise SloError(reader.mistakes)
    return made


class _Reader:
    """Goes on after each mistake, so that one run tells them all."""

    def __init__(self, check: Check) -> None:
        self.mistakes: list[str] = []
        self._check = check
        self._held: dict[str, dict[str, Document]] = {kind: {} for kind in _KINDS}
        self._order: list[tuple[str, Document]] = []

    def read(self, path: Path) -> None:
        try:
            documents = list(yaml.safe_load_all(path.read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f":{mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or error
            self.mistakes.append(f"{path.name}{line}: not YAML: {problem}")
            return
        for number, body in enumerate(documents, start=1):
            if body is not None:
                self._document(path.name, number, body)

    def objectives(self) -> tuple[Objective, ...]:
        made = []
        for file, document in self._order:
            objective = self._objective(document, file)
            if objective is not None:
                made.append(objective)
        return tuple(made)

    def _document(self, file: str, number: int, body: Any) -> None:
        document = Document(f"{file} document {number}", {}, self.mistakes)
        if not isinstance(body, Mapping):
            document.wrong("document", "expected apiVersion, kind, metadata and spec")
            return
        document.mapping(body, "document", ("apiVersion", "kind", "metadata", "spec"))
        if body.get("apiVersion") != VERSION:
            document.wrong("apiVersion", f"is {body.get('apiVersion')!r}; write {VERSION}")
        kind = body.get("kind")
        if kind not in _KINDS:
            remedy = f"{', '.join(_KINDS)} are read here"
            if kind in ("AlertPolicy", "AlertCondition", "AlertNotificationTarget"):
                remedy = f"say when somebody is told by the annotation {PREFIX}windows of the SLO"
            elif kind == "DataSource":
                remedy = "leave it out: every query reads this service's own series"
            document.wrong("kind", f"is {kind!r}; {remedy}")
            return
        metadata = document.mapping(
            body.get("metadata"), "metadata", ("name", "displayName", "labels", "annotations")
        )
        document.name = document.text(metadata, "name", "metadata")
        if document.name and not _ID.match(document.name):
            document.wrong(
                "metadata.name", f"is {document.name!r}; give at most 63 of a-z, 0-9, . and -"
            )
        document.title = document.text(metadata, "displayName", "metadata", needed=False)
        for part in ("labels", "annotations"):
            self._texts(document, metadata.get(part), f"metadata.{part}")
        document.annotations = dict(metadata.get("annotations") or {})
        spec = body.get("spec")
        if isinstance(spec, Mapping):
            document.body = spec
        elif "spec" in body:
            document.wrong("spec", "expected keys and values")
        held = self._held[kind]
        if document.name in held:
            document.wrong("metadata.name", f"{document.name!r} stands at {held[document.name].at}")
        held.setdefault(document.name, document)
        if kind == "Service":
            document.mapping(document.body, "spec", ("description",))
        if kind == "SLO":
            self._order.append((file, document))

    def _texts(self, document: Document, held: Any, where: str) -> None:
        if held is None:
            return
        for key, value in document.mapping(
            held, where, tuple(held) if isinstance(held, Mapping) else ()
        ).items():
            if not isinstance(value, str):
                document.wrong(f"{where}.{key}", f"is {value!r}; put it in quotes")

    def _objective(self, document: Document, file: str) -> Objective | None:
        before = len(self.mistakes)
        spec = document.mapping(
            document.body,
            "spec",
            (
                "description", "service", "indicator", "indicatorRef", "timeWindow",
                "budgetingMethod", "objectives", "alertPolicies",
            ),
        )  # fmt: skip
        if spec.get("alertPolicies"):
            remedy = f"say it by the annotation {PREFIX}windows, and leave this out"
            document.wrong("spec.alertPolicies", remedy)
        service = document.text(spec, "service", "spec")
        if service and service not in self._held["Service"]:
            document.wrong("spec.service", f"is {service!r}; no document is a Service of that name")
        method = spec.get("budgetingMethod")
        if method not in _METHODS:
            document.wrong("spec.budgetingMethod", f"is {method!r}; one of {', '.join(_METHODS)}")
        period = self._period(document, spec.get("timeWindow"))
        target, slice_s, slice_target = self._target(document, spec.get("objectives"), str(method))
        queries = self._indicator(document, spec)
        told = annotated(document, period, target)
        if told.get("count") is not None and ("bad" not in queries or method != "Occurrences"):
            document.wrong(
                f"metadata.annotations.{PREFIX}count", "needs Occurrences, and bad in place of good"
            )
        if len(self.mistakes) > before or period is None:
            return None
        return Objective(
            id=document.name,
            name=document.title or document.name,
            service=service,
            description=" ".join(str(spec.get("description") or "").split()),
            target=target,
            period=period,
            total=queries["total"],
            good=queries.get("good", ""),
            bad=queries.get("bad", ""),
            budgeting=_METHODS[str(method)],
            slice_s=slice_s,
            slice_target=slice_target,
            file=file,
            **told,
        )

    def _period(self, document: Document, held: Any) -> Period | None:
        if not isinstance(held, list) or len(held) != 1:
            document.wrong("spec.timeWindow", "expected a list of one window")
            return None
        where = "spec.timeWindow[0]"
        window = document.mapping(held[0], where, ("duration", "isRolling", "calendar"))
        text = document.text(window, "duration", where)
        found = _PERIOD.match(text)
        if found is None:
            if text:
                document.wrong(f"{where}.duration", f"is {text!r}; write for example 30d, 4w or 1M")
            return None
        days = int(found[1]) * _DAYS[found[2]]
        if days > _LONGEST_DAYS:
            document.wrong(
                f"{where}.duration", f"is {text!r}; at most {_LONGEST_DAYS} days are kept"
            )
            return None
        if window.get("isRolling") is True and "calendar" not in window:
            return Period("rolling", days)
        if window.get("isRolling") is True:
            document.wrong(f"{where}.isRolling", "a rolling window has no calendar; leave one out")
            return None
        if not isinstance(window.get("calendar"), Mapping):
            document.wrong(f"{where}.isRolling", "write true, or give the calendar it begins by")
            return None
        if found[1] != "1":
            document.wrong(
                f"{where}.duration", f"is {text!r}; a calendar window is 1 d, w, M, Q or Y"
            )
            return None
        calendar = document.mapping(
            window["calendar"], f"{where}.calendar", ("startTime", "timeZone")
        )
        zone = document.text(calendar, "timeZone", f"{where}.calendar")
        try:
            ZoneInfo(zone or "UTC")
        except (ZoneInfoNotFoundError, ValueError):
            document.wrong(f"{where}.calendar.timeZone", f"is {zone!r}; write for example UTC")
            return None
        return Period("calendar", days, cast(Any, found[2]), zone or "UTC")

    def _target(self, document: Document, held: Any, method: str) -> tuple[float, int, float]:
        if not isinstance(held, list) or len(held) != 1:
            document.wrong("spec.objectives", "expected a list of one objective")
            return 0.0, 0, 0.0
        where = "spec.objectives[0]"
        known = ("displayName", "target", "targetPercent", "timeSliceTarget", "timeSliceWindow")
        one = document.mapping(held[0], where, known)
        target = document.number(one, "target", where)
        percent = document.number(one, "targetPercent", where)
        if (target is None) == (percent is None):
            document.wrong(f"{where}.target", "give either target or targetPercent")
        target = target if target is not None else (percent or 0.0) / 100
        if not 0 < target < 1:
            document.wrong(
                f"{where}.target", f"is {target:g}; it lies between 0 and 1, without both"
            )
        sliced = method in ("Timeslices", "RatioTimeslices")
        text = one.get("timeSliceWindow")
        slice_s = 0
        if (text is None) == sliced:
            needs = "is missing" if sliced else "is for Timeslices and RatioTimeslices alone"
            document.wrong(f"{where}.timeSliceWindow", needs)
        elif text is not None:
            try:
                slice_s = windows.seconds(str(text))
            except ValueError as error:
                document.wrong(f"{where}.timeSliceWindow", str(error))
        share = document.number(one, "timeSliceTarget", where)
        if (share is None) == (method == "Timeslices"):
            needs = "is missing" if method == "Timeslices" else "is for Timeslices alone"
            document.wrong(f"{where}.timeSliceTarget", needs)
        elif share is not None and not 0 < share <= 1:
            document.wrong(f"{where}.timeSliceTarget", f"is {share:g}; it is above 0, at most 1")
        return target, slice_s, share or 0.0

    def _indicator(self, document: Document, spec: Mapping[str, Any]) -> dict[str, str]:
        inline, named = spec.get("indicator"), spec.get("indicatorRef")
        if (inline is None) == (named is None):
            document.wrong("spec.indicator", "give either indicator or indicatorRef")
            return {}
        if named is not None:
            found = self._held["SLI"].get(str(named))
            if found is None:
                remedy = "no document is an SLI of that name"
                document.wrong("spec.indicatorRef", f"is {named!r}; {remedy}")
                return {}
            return self._queries(found, found.body, "spec")
        held = document.mapping(inline, "spec.indicator", ("metadata", "spec"))
        return self._queries(document, held.get("spec"), "spec.indicator.spec")

    def _queries(self, document: Document, held: Any, where: str) -> dict[str, str]:
        spec = document.mapping(held, where, ("description", "ratioMetric"))
        if "ratioMetric" not in spec:
            if isinstance(held, Mapping) and "thresholdMetric" in held:
                remedy = "write it as a ratioMetric: good is total where the threshold holds"
            else:
                remedy = "is missing"
            document.wrong(f"{where}.ratioMetric", remedy)
            return {}
        where += ".ratioMetric"
        ratio = document.mapping(spec["ratioMetric"], where, ("counter", "good", "bad", "total"))
        if "counter" in ratio and not isinstance(ratio["counter"], bool):
            document.wrong(f"{where}.counter", f"is {ratio['counter']!r}; true or false")
        if ("good" in ratio) == ("bad" in ratio):
            document.wrong(where, "give either good or bad")
        parts = [part for part in ("good", "bad", "total") if part in ratio or part == "total"]
        return {part: self._query(document, ratio.get(part), f"{where}.{part}") for part in parts}

    def _query(self, document: Document, held: Any, where: str) -> str:
        part = document.mapping(held, where, ("metricSource",))
        known = ("metricSourceRef", "type", "spec")
        source = document.mapping(part.get("metricSource"), f"{where}.metricSource", known)
        kind = source.get("type", "Prometheus")
        if kind != "Prometheus":
            document.wrong(f"{where}.metricSource.type", f"is {kind!r}; Prometheus is read here")
        where += ".metricSource.spec"
        query = document.text(
            document.mapping(source.get("spec"), where, ("query",)), "query", where
        )
        if not query:
            return ""
        if WINDOW not in query:
            document.wrong(f"{where}.query", f"has no {WINDOW}; write it where the window belongs")
            return query
        try:
            self._check(query.replace(WINDOW, "5m"))
        except ValueError as error:
            document.wrong(f"{where}.query", f"is no PromQL: {error}")
        return query
