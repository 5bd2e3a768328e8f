"""One document of a file of objectives, read strictly: what is wrong is told with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Document:
    """One document of a file; what is wrong is told with where it stands."""

    at: str
    body: Mapping[str, Any]
    mistakes: list[str]
    annotations: dict[str, str] = field(default_factory=dict)
    name: str = ""
    title: str = ""

    def wrong(self, where: str, what: str) -> None:
        self.mistakes.append(f"{self.at}: {where}: {what}")

    def mapping(self, held: Any, where: str, known: Iterable[str]) -> Mapping[str, Any]:
        if not isinstance(held, Mapping):
            self.wrong(where, "expected keys and values")
            return {}
        for key in held:
            if key not in known:
                self.wrong(f"{where}.{key}", f"is not known here; known are {', '.join(known)}")
        return held

    def text(self, held: Mapping[str, Any], key: str, where: str, needed: bool = True) -> str:
        value = held.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if needed or value is not None:
            self.wrong(
                f"{where}.{key}", "is missing" if value is None else f"is {value!r}, no text"
            )
        return ""

    def number(self, held: Mapping[str, Any], key: str, where: str) -> float | None:
        value = held.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.wrong(f"{where}.{key}", f"is {value!r}, no number")
            return None
        return float(value)
