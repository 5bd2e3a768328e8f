"""Each example runs as a reader would run it, and its run arrives at a real service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.conftest import needs_library
from tests.service import Service, clean_environment

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS = 30


@dataclass(frozen=True)
class Expected:
    """What the service must know of an example's run."""

    layer: str
    size: int
    """Elements of the whole layer, whoever holds which part."""
    last: int
    """Number of the last step."""
    ranks: int = 1
    library: str = ""
    steps: int = STEPS


EXPECTED = {
    "01_plain_loop": Expected("8.weight", 640, STEPS - 1),
    "02_amp": Expected("4.weight", 256, STEPS - 1),
    "03_ddp_torchrun": Expected("4.weight", 256, STEPS - 1, ranks=2),
    "04_fsdp2": Expected("5.weight", 256, STEPS - 1, ranks=2),
    "05_hf_trainer": Expected(
        "transformer.h.3.mlp.c_fc.weight", 64 * 256, STEPS, library="transformers"
    ),
    "06_lightning": Expected("net.5.weight", 256, STEPS - 1, library="lightning.pytorch"),
    # Step 120 is bad, and training goes on from the checkpoint of step 99.
    "07_guard": Expected("4.weight", 256, 99 + (200 - 1 - 120), steps=200),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = Service(tmp_path_factory.mktemp("service"))
    yield made
    made.close()


def run(name: str, house: Service, folder: Path) -> str:
    """Run one example to its end; what it printed."""
    environment = clean_environment(
        GRADWARDEN_URL=house.url,
        GRADWARDEN_RUN_ID=name,
        GRADWARDEN_SPOOL=str(folder / "spool"),
        OMP_NUM_THREADS="1",
        STEPS=str(EXPECTED[name].steps),
    )
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def mine(full: bool) -> list[Any]:
    return [
        pytest.param(n, marks=pytest.mark.full if e.library else ()) if full else n
        for n, e in EXPECTED.items()
    ]


@pytest.mark.parametrize("name", mine(full=True))
def test_an_example_arrives_with_its_layers(name: str, house: Service, tmp_path: Path) -> None:
    expected = EXPECTED[name]
    if expected.library:
        needs_library(expected.library)
    printed = run(name, house, tmp_path)
    assert f"{house.url}/runs/{name}" in printed
    known = house.get(f"/v1/runs/{name}")
    assert known["status"] == "finished"
    assert known["world_size"] == expected.ranks
    assert len(known["ranks"]) == expected.ranks
    sizes = {layer["name"]: layer["params"] for layer in known["layers"]}
    assert sizes[expected.layer] == expected.size
    series = house.get(f"/v1/runs/{name}/series", params={"keys": "loss,grad_norm"})
    last = {
        key: [step for step, v in zip(series["step"], values["last"], strict=True) if v is not None]
        for key, values in series["keys"].items()
    }
    assert last["grad_norm"][-1] == expected.last
    assert last["loss"]


def test_the_readme_of_the_examples_lists_them_all() -> None:
    files = sorted(p.stem for p in EXAMPLES.glob("*.py"))
    assert files == sorted(EXPECTED)
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in files if f"({name}.py)" not in text] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_says_how_to_run_it_and_what_to_see(name: str) -> None:
    first, second, *_ = (EXAMPLES / f"{name}.py").read_text().splitlines()
    assert first.startswith('"""Run: ')
    assert f"examples/{name}.py" in first
    assert second.startswith("See: ")
