"""Memory, utilisation, power and time of a GPU; what NVML says comes from a small real library.

The stand-in is compiled here under NVML's own name, with its functions' names and signatures,
so that the binding is the one that a driver meets.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradwarden.collect import Pending
from gradwarden.instruments.clock import Clock, Mark, seconds
from gradwarden.instruments.gpu import Gpu, device_facts
from gradwarden.instruments.nvml import Device, NvmlError, Sample, Sampler
from tests.needs import missing
from tests.sdk.conftest import mlp

UUID = "2b1c3a5e-0000-1111-2222-333344445555"
on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: run it on a machine with a GPU"
)

LIBRARY = """
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>
typedef struct device *nvmlDevice_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
static struct device { unsigned long long reasons; int power_known; } board = {0, 1};
static int users, samples, broken;
static long asker;
int nvmlInit_v2(void) { if (broken) return 9; users++; return 0; }
int nvmlShutdown(void) { users--; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device) {
    if (strcmp(uuid, "GPU-2b1c3a5e-0000-1111-2222-333344445555")) return 6;
    *device = &board; return 0;
}
int nvmlDeviceGetUtilizationRates(nvmlDevice_t d, nvmlUtilization_t *u) {
    if (d != &board) return 2;
    asker = syscall(SYS_gettid); samples++; u->gpu = 87; u->memory = 41; return 0;
}
int nvmlDeviceGetPowerUsage(nvmlDevice_t d, unsigned int *milliwatts) {
    if (!d->power_known) return 3;
    *milliwatts = 312500; return 0;
}
int nvmlDeviceGetTemperature(nvmlDevice_t d, int sensor, unsigned int *celsius) {
    if (sensor != 0) return 2;
    *celsius = 71; return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t d, unsigned long long *reasons) {
    *reasons = d->reasons; return 0;
}
int nvmlDeviceGetSerial(nvmlDevice_t d, char *serial, unsigned int length) {
    if (length < 14) return 7;
    strcpy(serial, "1324123456789"); return 0;
}
int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    if (length < 80) return 7;
    strcpy(version, "580.95.05"); return 0;
}
void set(unsigned long long reasons, int power_known, int is_broken) {
    board.reasons = reasons; board.power_known = power_known; broken = is_broken;
}
int user_count(void) { return users; }
int sample_count(void) { return samples; }
long last_asker(void) { return asker; }
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stand-in, loaded first: who asks for NVML by name then gets it."""
    if torch.cuda.is_available():
        pytest.skip("the driver's own library is there")
    folder = tmp_path_factory.mktemp("nvml")
    source, built = folder / "nvml.c", folder / "libnvidia-ml.so.1"
    source.write_text(LIBRARY)
    words = ["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", built, source]
    try:
        subprocess.run(words, check=True)
    except FileNotFoundError:
        missing("a C compiler", "apt-get install -y gcc libc6-dev")
    loaded = ctypes.CDLL(str(built), mode=os.RTLD_NOW)
    loaded.set.argtypes = (ctypes.c_ulonglong, ctypes.c_int, ctypes.c_int)
    loaded.last_asker.restype = ctypes.c_long
    return loaded


@pytest.fixture
def nvml(library: Any) -> Iterator[Any]:
    library.set(0, 1, 0)
    yield library
    library.set(0, 1, 0)


def soon(condition: Callable[[], Any]) -> Any:
    """What the condition answers once it is true."""
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
    return found


def test_a_sample_holds_what_the_driver_tells(nvml: Any) -> None:
    device = Device(UUID)
    assert device.sample() == Sample(0.87, 312.5, 71.0, 0.0, 0.0)
    nvml.set(0, 0, 0)
    assert device.sample() == Sample(0.87, None, 71.0, 0.0, 0.0)
    device.close()
    assert nvml.user_count() == 0


@pytest.mark.parametrize(
    ("reasons", "thermal", "power"),
    [
        (0x1, 0.0, 0.0),  # idle
        (0x4, 0.0, 1.0),  # software power cap
        (0x8 | 0x80, 0.0, 1.0),  # power brake
        (0x20, 1.0, 0.0),  # software thermal
        (0x8 | 0x40, 1.0, 0.0),  # hardware thermal
        (0x8, 1.0, 0.0),  # an old device's protection
        (0x8 | 0x40 | 0x80, 1.0, 1.0),
    ],
)
def test_slowdowns_are_told_apart(nvml: Any, reasons: int, thermal: float, power: float) -> None:
    nvml.set(reasons, 1, 0)
    device = Device(UUID)
    sample = device.sample()
    device.close()
    assert (sample.thermal, sample.power) == (thermal, power)


def test_a_device_has_its_serial_and_driver(nvml: Any) -> None:
    device = Device(UUID)
    assert device.facts() == {
        "uuid": f"GPU-{UUID}",
        "serial": "1324123456789",
        "driver": "580.95.05",
    }
    device.close()


def test_a_device_that_nvml_does_not_know_is_refused(nvml: Any) -> None:
    with pytest.raises(NvmlError, match=r"does not know GPU-0000 \(error 6\)"):
        Device("0000")
    assert nvml.user_count() == 0
    nvml.set(0, 1, 1)
    with pytest.raises(NvmlError, match=r"nvmlInit_v2 failed \(error 9\)"):
        Device(UUID)


def test_a_machine_without_the_library_says_so() -> None:
    code = (
        "from gradwarden.instruments import nvml\n"
        "nvml.LIBRARY = 'libnvidia-ml.so.none'\n"
        "sampler = nvml.Sampler('x'); sampler.start(); sampler._thread.join()\n"
        "print(sampler.trouble, sampler.take())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "client_sdk")},
    )
    assert done.stdout.strip() == "libnvidia-ml.so.none is not installed None", done.stderr


def test_the_driver_is_asked_by_another_thread_once_a_period(nvml: Any) -> None:
    before = nvml.sample_count()
    sampler = Sampler(UUID, period=3600.0)
    sampler.start()
    first = soon(sampler.take)
    assert first.utilisation == 0.87
    assert nvml.last_asker() != threading.get_native_id()
    for _ in range(1000):
        assert sampler.take() is None  # each sample is told once
    assert nvml.sample_count() == before + 1
    sampler.stop()
    soon(lambda: nvml.user_count() == 0)


def test_nobody_asks_while_no_step_ends(nvml: Any) -> None:
    before = nvml.sample_count()
    sampler = Sampler(UUID, period=0.001)
    sampler.start()
    soon(lambda: nvml.user_count() == 1)
    assert nvml.sample_count() == before
    assert soon(sampler.take).celsius == 71.0
    sampler.stop()
    soon(lambda: nvml.user_count() == 0)


def test_without_a_gpu_it_is_off_and_says_why() -> None:
    instrument = Gpu(mlp())
    instrument.start()
    assert [dict(instrument.step_ended()) for _ in range(120)] == [{}] * 120
    expected = "off: not on a GPU" if torch.cuda.is_available() else "off: no CUDA device"
    assert instrument.status() == expected
    instrument.stop()
    assert device_facts(torch.device("cpu")) == {}
    assert device_facts(torch.device("cuda", 0)) == {} or torch.cuda.is_initialized()


@on_gpu
def test_on_a_gpu_memory_is_told_and_matches_torch() -> None:
    model = mlp()
    instrument = Gpu(model)
    instrument.start()
    assert instrument.step_ended() == {}
    model.cuda()
    found: dict[str, Any] = {}
    for _ in range(60):
        found |= instrument.step_ended()
    assert instrument.status().startswith("on")
    assert found["gpu_memory_allocated_bytes"] == torch.cuda.memory_allocated()
    assert found["gpu_memory_peak_bytes"] >= found["gpu_memory_allocated_bytes"]
    assert found["gpu_memory_reserved_bytes"] == torch.cuda.memory_reserved()
    assert found["gpu_memory_ooms"] == 0
    instrument.stop()
    facts = device_facts(torch.device("cuda", 0))
    assert facts["name"] == torch.cuda.get_device_name(0)
    assert facts["index"] == 0


# -- the clock of phases ------------------------------------------------------------------


class Moment:
    """A CUDA event: it happens when the test says so."""

    def __init__(self, milliseconds: float) -> None:
        self.at, self.happened = milliseconds, False

    def query(self) -> bool:
        return self.happened

    def elapsed_time(self, later: Moment) -> float:
        assert self.happened
        assert later.happened, "torch raises here"
        return later.at - self.at


def test_a_host_clock_answers_at_once() -> None:
    clock = Clock(torch.device("cpu"))
    first = clock.mark()
    last = clock.mark()
    assert seconds(first, last) == last.at - first.at
    assert last.at >= first.at


def test_time_between_events_is_known_when_the_later_one_happened() -> None:
    first, last = Mark(Moment(2.0)), Mark(Moment(14.5))
    elapsed = seconds(first, last)
    assert isinstance(elapsed, Pending)
    assert not elapsed.at_hand
    assert not elapsed.ready
    first.event.happened = True
    assert not elapsed.ready
    last.event.happened = True
    assert elapsed.ready
    assert elapsed.peek().tolist() == [0.0125]
    assert elapsed.take().tolist() == [0.0125]


@on_gpu
def test_on_a_gpu_the_clock_tells_what_the_device_took() -> None:
    clock = Clock(torch.device("cuda", 0))
    first = clock.mark()
    torch.cuda._sleep(20_000_000)  # ten milliseconds at two gigahertz
    last = clock.mark()
    elapsed = seconds(first, last)
    assert isinstance(elapsed, Pending)
    torch.cuda.synchronize()
    assert elapsed.ready
    assert 0.002 < float(elapsed.take()) < 1.0
    assert last.at - first.at < float(elapsed.take())  # and the host did not wait for it
