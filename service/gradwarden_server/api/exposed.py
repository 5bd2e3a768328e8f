"""Answers of PromQL as Prometheus writes them: text of JSON, for there may be a million numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import orjson

from gradwarden_server.promql.engine import Answer
from gradwarden_server.promql.vector import Floats, Labels, Millis, Vector


class Json(str):
    """Text that is JSON already."""

    __slots__ = ()


def told(answer: Answer) -> Json:
    """``resultType`` and ``result`` of an answer."""
    if answer.kind == "string":
        result = json.dumps([answer.times[0] / 1000, answer.text])
    elif answer.vector is None:
        found = [
            row
            for block in answer.blocks
            for row in _full_rows(block.labels, block.times, block.values)
        ]
        result = f"[{','.join(found)}]"
    elif answer.kind == "scalar":
        result = _pairs(answer.times) % tuple(_texts(answer.vector.values[0]))
    else:
        result = f"[{','.join(_series(answer, answer.vector))}]"
    return Json(f'{{"resultType":"{answer.kind}","result":{result}}}')


def number(value: float) -> str:
    """A finite number as JSON, whole ones without a point."""
    return str(int(value)) if value.is_integer() else repr(value)


def _series(answer: Answer, vector: Vector) -> Iterator[str]:
    if answer.kind == "vector":
        metrics, texts = map(_labels, vector.labels), _texts(vector.values[:, 0])
        line = f'{{"metric":%s,"value":{_pairs(answer.times)}}}'
        yield from map(line.__mod__, zip(metrics, texts, strict=True))
        return
    full = np.all(vector.present, axis=1).tolist()
    whole = _full_rows(
        [labels for labels, all_of in zip(vector.labels, full, strict=True) if all_of],
        answer.times,
        vector.values[full],
    )
    for row, labels in enumerate(vector.labels):
        if full[row]:
            yield next(whole)
        else:
            there = vector.present[row]
            yield from _full_rows(
                [labels], answer.times[there], vector.values[row : row + 1, there]
            )


def _full_rows(labels: Sequence[Labels], times: Millis, values: Floats) -> Iterator[str]:
    """Series that all have a value at each time; [S], [T], [S, T]."""
    line = f'{{"metric":%s,"values":[{_pairs(times)}]}}'
    for held, row in zip(labels, values, strict=True):
        yield line % (_labels(held), *_texts(row))


def _pairs(times: Millis) -> str:
    """A template of values with their times in seconds."""
    return ",".join(f'[{number(at / 1000)},"%s"]' for at in times.tolist())


def _texts(values: Floats) -> list[str]:
    """The shortest text that gives back each number; whole ones without a point. [N]."""
    array = np.ascontiguousarray(values)
    texts = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).decode()[1:-1].split(",")
    if not np.isfinite(array).all():
        for at in np.flatnonzero(~np.isfinite(array)).tolist():
            texts[at] = "NaN" if np.isnan(array[at]) else "+Inf" if array[at] > 0 else "-Inf"
    if (array == np.floor(array)).any():
        texts = [text[:-2] if text.endswith(".0") else text for text in texts]
    return texts if len(array) else []


def _labels(labels: Labels) -> str:
    try:
        return orjson.dumps(labels).decode()
    except TypeError:  # half of a character, which orjson refuses
        return json.dumps(labels, ensure_ascii=False)
