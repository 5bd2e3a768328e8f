"""What is watched and what one more line of code would add, in one line at step 20."""

from __future__ import annotations

from collections.abc import Collection

DETECTORS = (
    "NonFiniteGradient",
    "NonFiniteLoss",
    "ExplodingGradient",
    "VanishingGradient",
    "RunStalled",
    "RunFailed",
)
AT_STEP = 20
MATRICES = 4


def armed(scalars: Collection[str], captured: bool, matrices: int, server: bool | None) -> set[str]:
    """The detectors that have what they need.

    ``matrices`` counts the layers with a weight matrix, the head aside: VanishingGradient
    compares quarters of them; stalls and failures need a service that notices our silence.
    """
    found: set[str] = set()
    if captured:
        found |= {"NonFiniteGradient", "ExplodingGradient"}
        if matrices >= MATRICES:
            found.add("VanishingGradient")
    if "loss" in scalars:
        found.add("NonFiniteLoss")
    if server:
        found |= {"RunStalled", "RunFailed"}
    return found


def line(
    scalars: Collection[str],
    captured: bool,
    matrices: int,
    server: bool | None,
    hooks: Collection[str],
    seconds: float,
) -> str:
    """The coverage line: armed count, what ``monitor.log`` would add, hooks, cost per step."""
    ready = armed(scalars, captured, matrices, server)
    parts = [f"{len(ready)} of {len(DETECTORS)} detectors armed"]
    missing = [name for name in ("loss", "lr") if name not in scalars]
    if missing:
        call = ", ".join(f"{name}={name}" for name in missing)
        gain = " adds NonFiniteLoss" if "loss" in missing else " sharpens VanishingGradient"
        parts.append(f"monitor.log({call}){gain}")
    if "VanishingGradient" not in ready and captured:
        parts.append(f"VanishingGradient needs {MATRICES} layers below the head")
    if server is None:
        parts.append("GRADWARDEN_URL adds RunStalled, RunFailed")
    elif not server:
        parts.append("RunStalled, RunFailed wait for the service to answer")
    parts.append(f"hooks: {', '.join(hooks) or 'none'}")
    parts.append(f"cost {seconds * 1e3:.2f} ms a step")
    return "; ".join(parts)
