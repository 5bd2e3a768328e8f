"""What is wrong with a file: where, which field, what was found, and what to do."""

from __future__ import annotations


class Unreadable(ValueError):
    """A file or a foreign run that cannot be imported; nothing of it was stored."""

    def __init__(self, where: str, field: str, found: object, remedy: str) -> None:
        shown = found if isinstance(found, (int, float)) else str(found)[:120]
        super().__init__(f"{where}: {field}: {shown!r}; {remedy}")
        self.where, self.field, self.remedy = where, field, remedy


class MissingExtra(Exception):
    """A package that only this needs is not installed; the text says which extra brings it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f'{what} needs {package}, which is not installed: pip install "gradwarden[{extra}]"'
        )
