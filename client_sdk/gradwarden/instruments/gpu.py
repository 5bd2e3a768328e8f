"""Memory, utilisation, power and temperature of the GPU that a model trains on.

Memory is what torch's allocator counts on the host; the rest is NVML's, asked elsewhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradwarden.collect import Pending
from gradwarden.instruments.nvml import Device, NvmlError, Sample, Sampler

_EVERY = 8
"""Steps between two looks at the allocator: some 20 microseconds each."""
_LOOK = 50
"""Steps between two looks for a device while there is none."""


class Gpu:
    """The first GPU that holds a parameter of the model."""

    name = "gpu"

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._device: torch.device | None = None
        self._sampler: Sampler | None = None
        self._steps = 0

    def start(self) -> None:
        """Find the device, if the model is on one yet."""
        self._look()

    def step_ended(self) -> Mapping[str, float | Pending]:
        """Of every eighth step ``gpu_memory_allocated_bytes``, ``_peak_bytes`` (both since the
        process began or the peak was reset), ``_reserved_bytes``, ``_total_bytes`` (the
        device's), ``_retries`` (how often the allocator had to free its cache) and ``_ooms``;
        about once a second
        ``gpu_utilisation_ratio``, ``gpu_power_watts``, ``gpu_temperature_celsius``,
        ``gpu_thermal_slowdown`` and ``gpu_power_slowdown`` (1.0 while clocks are held down).
        """
        self._steps += 1
        if self._device is None:
            if self._steps < 3 or self._steps % _LOOK == 0:
                self._look()
            if self._device is None:
                return {}
        scalars: dict[str, float | Pending] = {}
        if self._steps % _EVERY == 1:
            scalars.update(_memory(self._device))
        sample = self._sampler.take() if self._sampler is not None else None
        if sample is not None:
            scalars.update(_numbers(sample))
        return scalars

    def stop(self) -> None:
        """End the thread that asks NVML."""
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def status(self) -> str:
        """``on``, or why not, or why only in part."""
        if self._device is None:
            return "off: no CUDA device" if not torch.cuda.is_available() else "off: not on a GPU"
        trouble = "its UUID is unknown" if self._sampler is None else self._sampler.trouble
        return f"on, without NVML: {trouble}" if trouble else "on"

    def _look(self) -> None:
        model = self._model()
        parameters = model.parameters() if model is not None else iter(())
        device = next((p.device for p in parameters if p.device.type == "cuda"), None)
        if device is None:
            return
        self._device = device
        uuid = _uuid(device)
        if uuid is not None:
            self._sampler = Sampler(uuid)
            self._sampler.start()


def device_facts(device: torch.device) -> dict[str, Any]:
    """What tells one GPU from another: ``index``, ``name``, ``memory_bytes``, ``capability``,
    ``uuid``, and from NVML ``serial`` and ``driver``; each where it is known.

    Empty where the device is no GPU in use: nothing is initialised here. NVML may take a tenth
    of a second, so that this is for a background thread.
    """
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "index": device.index,
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }
    uuid = _uuid(device)
    if uuid is not None:
        found["uuid"] = f"GPU-{uuid}"
        try:
            known = Device(uuid)
        except NvmlError:
            return found
        found.update(known.facts())
        known.close()
    return found


def _uuid(device: torch.device) -> str | None:
    """The bare UUID; None where this torch does not tell."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else str(uuid).removeprefix("GPU-")


def _memory(device: torch.device) -> dict[str, float]:
    """What the caching allocator counts; nothing before its first allocation."""
    counts = torch.cuda.memory_stats_as_nested_dict(device)
    if not counts:
        return {}
    allocated = counts["allocated_bytes"]["all"]
    return {
        "gpu_memory_allocated_bytes": float(allocated["current"]),
        "gpu_memory_peak_bytes": float(allocated["peak"]),
        "gpu_memory_reserved_bytes": float(counts["reserved_bytes"]["all"]["current"]),
        "gpu_memory_total_bytes": float(torch.cuda.get_device_properties(device).total_memory),
        "gpu_memory_retries": float(counts["num_alloc_retries"]),
        "gpu_memory_ooms": float(counts["num_ooms"]),
    }


def _numbers(sample: Sample) -> dict[str, float]:
    named = {
        "gpu_utilisation_ratio": sample.utilisation,
        "gpu_power_watts": sample.watts,
        "gpu_temperature_celsius": sample.celsius,
        "gpu_thermal_slowdown": sample.thermal,
        "gpu_power_slowdown": sample.power,
    }
    return {name: value for name, value in named.items() if value is not None}
