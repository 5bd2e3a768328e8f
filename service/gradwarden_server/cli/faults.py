"""How commands fail: an exit code, and a text that says what to do next."""

from __future__ import annotations

DONE = 0
NO = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4

EXIT_CODES = """\
exit codes:
  0  done
  1  done, and the answer is no: mistakes found, a run is ill, a receiver refused, frames left
     behind
  2  wrong usage, or a configuration that is refused
  3  the service or the database cannot be reached, or is in use
  4  the token is missing, not live, or of too small a scope
"""


class CommandError(Exception):
    """Ends a command with ``code``; the text goes to stderr."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code
