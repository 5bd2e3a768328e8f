"""Real data that ships in Python packages: small images, tables and text."""

from __future__ import annotations

import argparse
import functools
import inspect

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """[1797, 64] images from 0 to 1 and [1797] labels of ten classes."""
    held = load_digits()
    return torch.tensor(held.data, dtype=torch.float32) / 16, torch.tensor(held.target)


@functools.cache
def cancer() -> tuple[Tensor, Tensor]:
    """[569, 30] standardised features and [569] labels, 0 or 1."""
    held = load_breast_cancer()
    return _standard(torch.tensor(held.data, dtype=torch.float32)), torch.tensor(held.target)


@functools.cache
def diabetes() -> tuple[Tensor, Tensor]:
    """[442, 10] standardised features and [442, 1] standardised progressions."""
    held = load_diabetes()
    x = torch.tensor(held.data, dtype=torch.float32)
    return _standard(x), _standard(torch.tensor(held.target, dtype=torch.float32)[:, None])


@functools.cache
def text() -> tuple[Tensor, int]:
    """The characters of a module of the standard library as numbers, and how many differ."""
    source = inspect.getsource(argparse)
    letters = sorted(set(source))
    table = {letter: i for i, letter in enumerate(letters)}
    return torch.tensor([table[c] for c in source]), len(letters)


@functools.cache
def tokens() -> tuple[Tensor, int]:
    """The words of the same module as numbers, and how many differ."""
    source = inspect.getsource(argparse).split()
    table = {word: i for i, word in enumerate(sorted(set(source)))}
    return torch.tensor([table[w] for w in source]), len(table)


def lines(numbers: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, length + 1] stretches of a text, drawn anywhere in it."""
    starts = torch.randint(len(numbers) - length - 1, (count,), generator=generator)
    return numbers[starts[:, None] + torch.arange(length + 1)]


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0)
