"""What the driver's management library (NVML) knows of one GPU, asked by a thread of its own.

Bound through ctypes to the library that every NVIDIA driver brings. A question takes from
microseconds to many milliseconds, so that no training thread asks one.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
PERIOD = 1.0
"""Seconds between two samples, at least."""
_TEXT = 96
_GPU_SENSOR = 0
_POWER_CAP, _HARDWARE, _WARM, _HOT, _POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
"""Reasons for which clocks are held down; ``_HARDWARE`` comes with the last two or, on old
devices, instead of them."""


class NvmlError(RuntimeError):
    """The library is missing, or knows nothing of this device."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a GPU; None is what it does not tell."""

    utilisation: float | None
    """Share of the last sampling period in which a kernel ran, 0 to 1."""
    watts: float | None
    celsius: float | None
    thermal: float | None
    """1.0 while heat holds the clocks down, else 0.0."""
    power: float | None
    """1.0 while a power limit holds the clocks down, else 0.0."""


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Device:
    """One GPU as NVML sees it.

    Raises:
        NvmlError: at construction, if NVML or the device cannot be had.
    """

    def __init__(self, uuid: str) -> None:
        """``uuid`` as torch tells it, without the ``GPU-`` that NVML puts before it."""
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise NvmlError(f"{LIBRARY} is not installed") from None
        self._call("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        for self.uuid in (f"MIG-{uuid}", f"GPU-{uuid}"):
            handle = ctypes.byref(self._handle)
            code = self._try("nvmlDeviceGetHandleByUUID", self.uuid.encode(), handle)
            if code == 0:
                return
        self.close()
        raise NvmlError(f"NVML does not know {self.uuid} (error {code})")

    def sample(self) -> Sample:
        """Utilisation, power, temperature and slowdowns now."""
        rates, reasons = _Utilisation(), ctypes.c_ulonglong()
        watts, celsius = ctypes.c_uint(), ctypes.c_uint()
        busy = self._asks("nvmlDeviceGetUtilizationRates", ctypes.byref(rates))
        powered = self._asks("nvmlDeviceGetPowerUsage", ctypes.byref(watts))
        warm = self._asks("nvmlDeviceGetTemperature", _GPU_SENSOR, ctypes.byref(celsius))
        slowed = self._asks("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.byref(reasons))
        return Sample(
            rates.gpu / 100 if busy else None,
            watts.value / 1e3 if powered else None,
            float(celsius.value) if warm else None,
            float(_thermal(reasons.value)) if slowed else None,
            float(reasons.value & (_POWER_CAP | _POWER_BRAKE) > 0) if slowed else None,
        )

    def facts(self) -> dict[str, str]:
        """``uuid``, and ``serial`` and ``driver`` as far as they are told."""
        serial, driver = ctypes.create_string_buffer(_TEXT), ctypes.create_string_buffer(_TEXT)
        found = {"uuid": self.uuid}
        if self._asks("nvmlDeviceGetSerial", serial, ctypes.c_uint(_TEXT)):
            found["serial"] = serial.value.decode(errors="replace")
        if self._try("nvmlSystemGetDriverVersion", driver, ctypes.c_uint(_TEXT)) == 0:
            found["driver"] = driver.value.decode(errors="replace")
        return found

    def close(self) -> None:
        """Let go of the library; it counts its users."""
        self._try("nvmlShutdown")

    def _asks(self, name: str, *arguments: Any) -> bool:
        return self._try(name, self._handle, *arguments) == 0

    def _try(self, name: str, *arguments: Any) -> int:
        """NVML's code; -1 where this library lacks the function."""
        function = getattr(self._library, name, None)
        return int(function(*arguments)) if function is not None else -1

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._try(name, *arguments)
        if code != 0:
            raise NvmlError(f"{name} failed (error {code})")


def _thermal(reasons: int) -> bool:
    return bool(reasons & (_WARM | _HOT)) or bool(
        reasons & _HARDWARE and not reasons & _POWER_BRAKE
    )


class Sampler:
    """Looks at one GPU at most once per ``period`` seconds while somebody wants to know."""

    def __init__(self, uuid: str, period: float = PERIOD) -> None:
        self._uuid, self._period = uuid, period
        self._latest: Sample | None = None
        self._wanted, self._over = threading.Event(), threading.Event()
        self.trouble: str | None = None
        """Why there are no samples."""
        self._thread = threading.Thread(target=self._run, name="gradwarden-gpu", daemon=True)

    def start(self) -> None:
        """Begin; even finding the library is left to the thread."""
        self._thread.start()

    def take(self) -> Sample | None:
        """A sample that nobody has taken yet, if there is one; asks for the next. Never waits."""
        found, self._latest = self._latest, None
        self._wanted.set()
        return found

    def stop(self) -> None:
        """End soon; nobody waits for the thread."""
        self._over.set()
        self._wanted.set()

    def _run(self) -> None:
        try:
            device = Device(self._uuid)
        except NvmlError as error:
            self.trouble = str(error)
            return
        while True:
            self._wanted.wait()
            if self._over.is_set():
                break
            self._wanted.clear()
            self._latest = device.sample()
            self._over.wait(self._period)
        device.close()
