"""TensorBoard event files: every folder that holds some is a run.

Scalars keep their tags, but for the usual names of :mod:`.tags`. A histogram of a parameter's
gradient holds the sum of squares and the extremes, so the layer's norm and largest value are
exact; histograms of other things are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwarden_server.transfer import tags
from gradwarden_server.transfer.faults import MissingExtra, Unreadable
from gradwarden_server.transfer.foreign import Series, source
from gradwarden_server.transfer.head import RunFacts
from gradwarden_server.transfer.source import Source

try:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2, types_pb2
    from tensorboard.util import tensor_util
except ImportError as error:
    raise MissingExtra("Reading event files", "tensorboard", "tensorboard") from error

_FILES = "*tfevents*"
_NUMBERS = (types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE, types_pb2.DT_HALF, types_pb2.DT_BFLOAT16)
_FINISH = {"kind": "finish", "status": "finished", "text": "end of the event files"}


def runs(folder: Path) -> Iterator[Source]:
    """Each run at or under a folder, read when its turn comes.

    Raises:
        Unreadable: there is none, or an event file is damaged.
    """
    found = [folder] if folder.is_file() else folder.rglob(_FILES)
    folders = sorted({path.parent for path in found})
    if not folders:
        remedy = "no file called events.out.tfevents... is here or below"
        raise Unreadable(f"{folder}", "folder", "no event file", remedy)
    root = folder.parent if folder.is_file() else folder
    names: dict[str, Path] = {}
    for path in folders:
        files = [folder] if folder.is_file() else sorted(path.glob(_FILES))
        scalars, histograms = _read(files)
        if not scalars and not histograms:
            continue  # hyperparameters and text have event files of their own
        inside = path.relative_to(root).as_posix()
        name = root.resolve().name if inside == "." else inside
        run = tags.identifier(name)
        if run in names:
            remedy = f"its run would be called {run}, as that of {names[run]}; import one alone"
            raise Unreadable(f"{path}", "folder", inside, remedy)
        names[run] = path
        facts = RunFacts(run, name=name[:256])
        yield source(f"{path}", facts, scalars, histograms, _FINISH, f"tensorboard {name}")


def _read(files: list[Path]) -> tuple[dict[str, Series], dict[str, Series]]:
    scalars: dict[str, Series] = {}
    histograms: dict[str, Series] = {}
    for path in files:
        number = 0
        try:
            for raw in RawEventFileLoader(str(path)).Load():
                number += 1
                event = event_pb2.Event.FromString(raw)
                time_ns = max(0, round(event.wall_time * 1e9))
                for value in event.summary.value:
                    _take(value, event.step, time_ns, scalars, histograms)
        except Exception as error:  # whatever protobuf and the reader of records raise
            remedy = f"{type(error).__name__}: {str(error)[:120]}; move the file away"
            raise Unreadable(f"{path}, event {number + 1}", "event", "damaged", remedy) from None
    return scalars, histograms


def _take(
    value: Any,
    step: int,
    time_ns: int,
    scalars: dict[str, Series],
    histograms: dict[str, Series],
) -> None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        scalars.setdefault(value.tag, Series()).add(step, time_ns, value.simple_value)
    elif kind == "tensor" and value.metadata.plugin_data.plugin_name in ("", "scalars"):
        if value.tensor.dtype in _NUMBERS and not value.tensor.tensor_shape.dim:
            number = float(tensor_util.make_ndarray(value.tensor).item())
            scalars.setdefault(value.tag, Series()).add(step, time_ns, number)
    elif kind == "histo" and tags.layer(value.tag) is not None:
        histo = value.histo
        largest = max(abs(histo.min), abs(histo.max))
        norm = math.sqrt(histo.sum_squares) if histo.sum_squares >= 0 else math.nan
        histograms.setdefault(value.tag, Series()).add(step, time_ns, norm, largest)
