"""Columns of matrices as bits: taken from batches, looked over, folded, rolled up.

By a C kernel that is compiled where the service is installed, or by numpy where no compiler
was; both give the same bytes. A word is the bits of a float32.
"""

from __future__ import annotations

from gradwarden_server.store.columns import native, plain
from gradwarden_server.store.columns.forms import (
    HOLE,
    Batches,
    Engine,
    Level,
    Survey,
    Words,
    words_of,
)

__all__ = [
    "HOLE",
    "Batches",
    "Level",
    "Survey",
    "Words",
    "fold",
    "lay",
    "measured",
    "roll",
    "survey",
    "words_of",
]

_engine: Engine = native if native.available() else plain

measured = _engine.measured
lay = _engine.lay
survey = _engine.survey
fold = _engine.fold
roll = _engine.roll
