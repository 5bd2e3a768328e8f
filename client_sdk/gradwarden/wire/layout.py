"""What the rows of a matrix mean."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from gradwarden.wire.checks import (
    DEFAULT_LIMITS,
    Limits,
    Malformed,
    TooLarge,
    integer,
    member,
    text,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One watched parameter as the layout names it.

    ``block`` groups parameters for display and for per-block medians (``blocks.3``);
    ``kind`` is one of matrix, embedding, head, norm, bias, adapter, expert, other. Of a
    ``sharded`` one each rank holds a part; ``shape`` is that of the whole.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    block: str
    kind: str
    sharded: bool = False

    @property
    def layer(self) -> str:
        """The owning module's path: the name without its last part."""
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows of a matrix mean; sent once per run and hash.

    ``backward`` lists row indices in the order in which gradients became ready (the loss
    side first), or is empty where that order was not seen.
    """

    parameters: tuple[Parameter, ...]
    backward: tuple[int, ...] = ()

    @property
    def hash(self) -> str:
        """32 hex digits over the canonical JSON form."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        return {
            "parameters": [
                {
                    "name": p.name,
                    "shape": list(p.shape),
                    "dtype": p.dtype,
                    "block": p.block,
                    "kind": p.kind,
                    **({"sharded": True} if p.sharded else {}),
                }
                for p in self.parameters
            ],
            "backward": list(self.backward),
        }

    @classmethod
    def from_json(cls, data: object, limits: Limits = DEFAULT_LIMITS) -> Layout:
        """Build a layout from its JSON form.

        Raises:
            Malformed: a field is missing or of the wrong type.
            TooLarge: more parameters than the limit.
        """
        rows = member(data, "parameters", list)
        if len(rows) > limits.parameters:
            raise TooLarge("parameters", len(rows), f"send at most {limits.parameters}")
        parameters = tuple(
            Parameter(
                name=text(member(row, "name", str), "name", 1024),
                shape=tuple(integer(n, "shape") for n in member(row, "shape", list)),
                dtype=text(member(row, "dtype", str), "dtype", 64),
                block=text(member(row, "block", str), "block", 1024),
                kind=text(member(row, "kind", str), "kind", 64),
                sharded=row.get("sharded") is True,
            )
            for row in rows
        )
        backward = tuple(integer(i, "backward") for i in member(data, "backward", list))
        if backward and sorted(backward) != list(range(len(parameters))):
            raise Malformed("backward", len(backward), "list each row exactly once, or none")
        return cls(parameters, backward)
