"""Trainings that TensorBoard and MLflow kept: brought in, judged, and nobody is woken."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradwarden_server.transfer import tags
from tests.needs import missing
from tests.server.pager import LocalReceiver
from tests.service import Service, gradwarden

PATIENCE = 60.0
DAY = 86_400.0
LAYERS = ("blocks.0.weight", "blocks.1.weight", "blocks.2.weight", "blocks.2.bias")
RECEIVERS = """\
receivers:
  - name: oncall
    type: webhook
    url: {url}
    allow_private: true
"""


@pytest.fixture(scope="module")
def pager() -> Iterator[LocalReceiver]:
    """Somebody who must not be told."""
    listening = LocalReceiver()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, pager: LocalReceiver) -> Iterator[Service]:
    """A service that pages whom it can."""
    folder = tmp_path_factory.mktemp("house")
    running = Service(folder, receivers=RECEIVERS.format(url=pager.url))
    yield running
    running.close()


def alerts(service: Service, run: str, name: str) -> list[dict[str, Any]]:
    """The alerts of that name, once there are any."""
    deadline = time.monotonic() + PATIENCE
    while True:
        query = f"?state=pending,firing,resolved&run={run}"
        found = [a for a in service.get(f"/v1/alerts{query}")["items"] if a["alertname"] == name]
        if found:
            return found
        assert time.monotonic() < deadline, f"no {name} was found in {run}"
        time.sleep(0.05)


def nobody_was_told(service: Service, pager: LocalReceiver) -> None:
    """Nothing waits, and all that came is the test message sent now."""
    lines = service.call("GET", "/metrics").text.splitlines()
    assert "gradwarden_outbox_waiting 0.0" in lines
    before = len(pager.requests)
    assert gradwarden("receivers", "test", "oncall", "--url", service.url).returncode == 0
    told = pager.wait(before + 1)
    assert all(b'"Test' in r.body or b"test" in r.body.lower() for r in told)


def event_files(folder: Path, kind: str, steps: int = 120) -> None:
    """A training of yesterday, in which ``kind`` happens at step 100."""
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        missing("tensorboard", 'pip install "gradwarden[tensorboard]"')
    writer = EventFileWriter(str(folder))
    began = time.time() - DAY
    for step in range(steps):
        ill = step >= 100
        wobble = 1 + 0.05 * math.sin(step)
        values = [("Loss/train", math.nan if kind == "nan" and ill else 2 / (step + 1))]
        values += [("learning_rate", 0.1), ("val/accuracy", 0.5)]
        summary = summary_pb2.Summary()
        for tag, value in values:
            summary.value.add(tag=tag, simple_value=value)
        for name in LAYERS:
            norm = wobble * (1e6 if kind == "explosion" and ill else 1.0)
            if kind == "histograms":
                histo = summary_pb2.HistogramProto(
                    min=-norm / 2, max=norm / 4, num=10, sum=0, sum_squares=norm**2
                )
                summary.value.add(tag=f"gradients/{name}", histo=histo)
                summary.value.add(tag=f"weights/{name}", histo=histo)
            else:
                summary.value.add(tag=f"grad_norm/{name}", simple_value=norm)
        writer.add_event(event_pb2.Event(wall_time=began + step, step=step, summary=summary))
    writer.close()


def test_a_tensorboard_run_whose_loss_went_nan_is_found_and_nobody_is_paged(
    house: Service, pager: LocalReceiver, tmp_path: Path
) -> None:
    event_files(tmp_path / "nan run", "nan")
    event_files(tmp_path / "deep" / "well", "well")
    at = ("--from", "tensorboard", "--url", house.url)
    done = gradwarden("import", str(tmp_path), "--json", *at)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    assert [(i["run"], i["stored"]) for i in items] == [("deep-well", 120), ("nan-run", 120)]
    (found,) = alerts(house, "nan-run", "NonFiniteLoss")
    assert found["severity"] == "note"
    assert found["annotations"]["backfill"] == "found late; was a page"
    assert found["annotations"]["step"] == "100"
    assert found["fired_at"] < house.get("/v1/runs/nan-run")["last_seen_at"]
    assert not house.get("/v1/alerts?state=pending,firing,resolved&run=deep-well")["items"]
    shown = house.get("/v1/runs/nan-run")
    assert (shown["status"], shown["name"], shown["steps"]) == ("finished", "nan run", [0, 119])
    assert [layer["name"] for layer in shown["layers"]] == list(LAYERS)
    reported = house.get("/v1/runs/nan-run/series?keys=loss,lr")
    assert {"loss", "lr", "val/accuracy"} <= set(reported["reported"])
    nobody_was_told(house, pager)
    again = gradwarden("import", str(tmp_path), "--json", *at)
    assert [i["duplicate"] for i in json.loads(again.stdout)["items"]] == [120, 120]


def test_layers_that_exploded_are_found(
    house: Service, pager: LocalReceiver, tmp_path: Path
) -> None:
    event_files(tmp_path / "exploded", "explosion")
    at = ("--from", "tensorboard", "--url", house.url)
    done = gradwarden("import", str(tmp_path / "exploded"), *at)
    assert done.returncode == 0, done.stderr
    assert "4 layers by their gradient norms; their shapes are unknown" in done.stdout
    (found,) = alerts(house, "exploded", "ExplodingGradient")
    assert found["severity"] == "note"
    nobody_was_told(house, pager)


def test_histograms_of_gradients_give_exact_norms(house: Service, tmp_path: Path) -> None:
    event_files(tmp_path / "histograms", "histograms", steps=3)
    at = ("--from", "tensorboard", "--url", house.url)
    assert gradwarden("import", str(tmp_path / "histograms"), *at).returncode == 0
    answer = house.call("GET", "/v1/runs/histograms/export?format=jsonl")
    frames = [json.loads(line) for line in answer.text.splitlines()[2:]]
    norm = 1 + 0.05 * math.sin(1)
    assert frames[1]["quantities"]["l2"] == pytest.approx([norm] * 4)
    assert frames[1]["quantities"]["absmax"] == pytest.approx([norm / 2] * 4)
    assert frames[1]["quantities"]["nan"] == [0] * 4


def test_folders_without_runs_and_two_runs_of_one_name_are_told(
    service: Service, tmp_path: Path
) -> None:
    at = ("--from", "tensorboard", "--url", service.url)
    empty = gradwarden("import", str(tmp_path), *at)
    assert (empty.returncode, "no event file" in empty.stderr) == (2, True)
    for name in ("a", "b"):
        event_files(tmp_path / name, "well", steps=2)
    two = gradwarden("import", str(tmp_path), "--run", "one", *at)
    assert (two.returncode, "--run names one run" in two.stderr) == (2, True)
    (tmp_path / "b" / "events.out.tfevents.2").write_bytes(b"\x07\x00\x00\x00nonsense" * 9)
    torn = gradwarden("import", str(tmp_path / "b"), *at)
    assert torn.returncode in (0, 2)
    assert "Traceback" not in torn.stderr


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database with a failed and a finished run of yesterday."""
    try:
        import mlflow
        from mlflow.entities import Metric, Param
    except ImportError:
        missing("mlflow-skinny", 'pip install "gradwarden[mlflow]"')
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri)
    began = int((time.time() - DAY) * 1000)
    experiment = client.create_experiment("gpt2", artifact_location=str(folder))
    for name, status in (("ill", "FAILED"), ("well", "FINISHED")):
        run = client.create_run(experiment, start_time=began, run_name=name)
        metrics = []
        for step in range(120):
            ill = name == "ill" and step >= 100
            points = [("train/loss", math.nan if ill else 2 / (step + 1)), ("lr", 0.1)]
            points += [(f"gradients/{layer}", 1e6 if ill else 1.0) for layer in LAYERS]
            metrics += [Metric(k, v, began + 1000 * step, step) for k, v in points]
        for first in range(0, len(metrics), 500):
            client.log_batch(run.info.run_id, metrics[first : first + 500])
        client.log_batch(run.info.run_id, params=[Param("hidden", "64")])
        client.log_metric(run.info.run_id, "peak", math.inf, began, 7)
        client.set_terminated(run.info.run_id, status, began + 120_000)
    return uri


@pytest.mark.full
def test_an_mlflow_experiment_is_found_ill_and_nobody_is_paged(
    house: Service, pager: LocalReceiver, tracking: str
) -> None:
    at = ("--from", "mlflow", "--tracking-uri", tracking, "--url", house.url)
    done = gradwarden("import", "--experiment", "gpt2", "--json", *at, timeout=240)
    assert done.returncode == 0, done.stderr
    items = json.loads(done.stdout)["items"]
    assert [item["stored"] for item in items] == [120, 120]
    shown = {r["name"]: r for r in (house.get(f"/v1/runs/{i['run']}") for i in items)}
    assert (shown["ill"]["status"], shown["well"]["status"]) == ("failed", "finished")
    assert shown["ill"]["config"] == {"hidden": "64"}
    assert shown["ill"]["training_job"] == "gpt2"
    for name in ("NonFiniteLoss", "ExplodingGradient"):
        assert {a["severity"] for a in alerts(house, shown["ill"]["run"], name)} == {"note"}
    frames = house.call("GET", f"/v1/runs/{shown['well']['run']}/export?format=jsonl").text
    seventh = next(f for f in map(json.loads, frames.splitlines()) if f.get("step") == 7)
    assert seventh["scalars"]["peak"] == "Infinity", "which MLflow keeps as the largest double"
    nobody_was_told(house, pager)
    unknown = gradwarden("import", "--experiment", "none", *at, timeout=240)
    assert (unknown.returncode, "experiment" in unknown.stderr) == (2, True)
    nobody = gradwarden("import", "0" * 32, *at, timeout=240)
    assert (nobody.returncode, "--tracking-uri" in nobody.stderr) == (2, True)


@pytest.mark.parametrize(
    ("tag", "layer"),
    [
        ("gradients/fc.weight", "fc.weight"),
        ("grad_norm/fc.weight", "fc.weight"),
        ("grads/fc.weight_norm", "fc.weight"),
        ("train/grad_norm/blocks.0.attn.weight", "blocks.0.attn.weight"),
        ("grad_2.0_norm/fc.bias", "fc.bias"),
        ("fc.weight.grad", "fc.weight"),
        ("fc.weight/grad_norm", "fc.weight"),
        ("gradients/norm.weight", "norm.weight"),
        ("grad_norm/total", None),
        ("gradients/fc.weight/mean", None),
        ("train/grad_norm", None),
        ("gradual/thing", None),
        ("weights/fc.weight", None),
        ("loss", None),
    ],
)
def test_tags_of_layers_are_known(tag: str, layer: str | None) -> None:
    assert tags.layer(tag) == layer


def test_the_usual_names_become_ours_once() -> None:
    roles = tags.roles(["train_loss", "loss", "lr-AdamW", "grad_norm", "val/loss"])
    assert roles.scalars == {
        "train_loss": "train_loss",
        "loss": "loss",
        "lr-AdamW": "lr",
        "grad_norm": "grad_norm",
        "val/loss": "val/loss",
    }
    assert roles.layers == {}
    assert tags.identifier("runs/a b") == "runs-a-b"
    assert tags.identifier("...") == "run"
    assert len(tags.identifier("x" * 500)) == 128
