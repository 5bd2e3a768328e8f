"""What the names that other tools log under mean here.

The usual names of loss, learning rate and gradient norm get ours, so that detectors know them;
the norm of one parameter's gradient becomes that layer's. Everything else keeps its name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

LONGEST = 128
_USUAL = {
    "loss": (
        *("loss", "train/loss", "train_loss", "training_loss", "training/loss", "loss/train"),
        *("train/train_loss", "train/loss_step", "train_loss_step", "loss_step", "batch_loss"),
        *("loss/training", "train/total_loss", "total_loss"),
    ),
    "lr": (
        *("lr", "learning_rate", "train/lr", "train/learning_rate", "optimizer/lr"),
        *("learning-rate", "lr/0", "train/lr_0"),
    ),
    "grad_norm": (
        *("grad_norm", "train/grad_norm", "gradient_norm", "train/gradient_norm", "grad-norm"),
        *("grad_norm/total", "grad_norm/global", "grad_norm_total", "grad_2.0_norm_total"),
        *("total_grad_norm", "global_grad_norm", "gradients/norm", "optimizer/grad_norm"),
    ),
}
_LIGHTNING_LR = re.compile(r"lr-\w+(?:/pg1)?\Z")
_PREFIXED = re.compile(
    r"(?:[\w-]+/)?(?:grad(?:ient)?s?(?:[_-](?:l2[_-])?norms?)?|grad_2(?:\.0)?_norm)[/:](?P<name>.+)\Z",
    re.IGNORECASE,
)
_SUFFIXED = re.compile(
    r"(?P<name>.+(?:\.|weight|bias|kernel).*?)[/._]grad(?:ient)?(?:[/._]?(?:l2[_-])?norm)?\Z",
    re.IGNORECASE,
)
_TAIL = re.compile(r"(?:[/._]grad(?:ient)?)?(?:[/._](?:l2|norm|l2_norm|grad_norm))?\Z", re.I)
_NO_NORM = re.compile(
    r"(?:\A|[/._])(?:total|global|all|overall|norm|mean|std|var|min|max|avg|median|count|scale"
    r"|absmax|abs_mean|clipped|zeros?|hist(?:ogram)?)\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Roles:
    """Our name of each tag: of a scalar, or of the layer whose gradient norm it is."""

    scalars: dict[str, str]
    layers: dict[str, str]


def roles(tags: Iterable[str], histograms: Iterable[str] = ()) -> Roles:
    """What each tag becomes; of several usual names the first of the list above is taken."""
    tags = list(tags)
    layers = {tag: name for tag in histograms if (name := layer(tag)) is not None}
    scalars: dict[str, str] = {}
    taken: set[str] = set()
    low = {tag.lower(): tag for tag in reversed(tags)}
    for ours, usual in _USUAL.items():
        found = next((low[name] for name in usual if name in low), None)
        if found is None and ours == "lr":
            found = next((tag for tag in tags if _LIGHTNING_LR.match(tag)), None)
        if found is not None:
            scalars[found] = ours
            taken.add(ours)
    exact = set(layers.values())
    for tag in tags:
        name = layer(tag)
        if tag in scalars or name in exact:
            continue  # a histogram of the same layer says more
        if name is not None and name not in layers.values():
            layers[tag] = name
        else:
            scalars[tag] = _short(tag) if tag not in taken else f"logged/{tag}"
    return Roles(scalars, layers)


def layer(tag: str) -> str | None:
    """The parameter whose gradient's norm a tag is, or None."""
    found = _PREFIXED.match(tag) or _SUFFIXED.match(tag)
    if found is None:
        return None
    name = _TAIL.sub("", found["name"], count=1).strip("/.")
    return None if not name or _NO_NORM.search(name) else name[:1024]


def identifier(text: str) -> str:
    """A run's identifier made of any text: other characters become a dash."""
    clean = re.sub(r"[^A-Za-z0-9._:+-]+", "-", text).strip("-._:+")
    if clean == text and len(clean) <= LONGEST:
        return clean
    return clean[: LONGEST - 9] + "-" + _digest(text) if len(clean) > LONGEST else clean or "run"


def _short(tag: str) -> str:
    tag = tag.replace("\x00", "") or "unnamed"
    return tag if len(tag) <= LONGEST else f"{tag[: LONGEST - 9]}-{_digest(tag)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
