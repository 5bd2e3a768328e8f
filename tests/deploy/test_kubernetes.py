"""deploy/kubernetes.yaml: valid by the API's own schema, and its parts fit each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradwarden import wire
from gradwarden.settings import Settings as SdkSettings
from gradwarden_server.notify import spec
from gradwarden_server.settings import DEFAULT_PORT, Settings

MANIFEST = Path(__file__).resolve().parent.parent.parent / "deploy" / "kubernetes.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """Every object by kind and name."""
    documents = [document for document in yaml.safe_load_all(MANIFEST.read_text()) if document]
    found = {(item["kind"], item["metadata"]["name"]): item for item in documents}
    assert len(found) == len(documents)
    return found


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """The one container of a workload."""
    (only,) = workload["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("version", ["1.28", "1.33"])
def test_valid_by_the_schema_of_the_api(version: str) -> None:
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet", "-k", version]
    done = subprocess.run([*command, MANIFEST], capture_output=True, text=True, check=False)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line]
    # The operator's kind is not part of Kubernetes; its shape is held below.
    assert done.returncode == 0, said
    assert all("kind ServiceMonitor" in line for line in said), said


def test_the_whole_set_is_there(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    kinds = {kind for kind, _ in objects}
    assert kinds == {
        "ConfigMap",
        "Deployment",
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Secret",
        "Service",
        "ServiceMonitor",
    }


def test_probes_ports_and_selectors_meet(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    deployment = objects["Deployment", "gradwarden"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service = objects["Service", "gradwarden"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (port,) = container(deployment)["ports"]
    assert port == {"name": "http", "containerPort": DEFAULT_PORT}
    (offered,) = service["spec"]["ports"]
    assert (offered["port"], offered["targetPort"]) == (DEFAULT_PORT, "http")
    probes = {kind: container(deployment)[f"{kind}Probe"]["httpGet"] for kind in PROBES}
    assert probes == PROBES


PROBES = {
    "startup": {"path": "/-/healthy", "port": "http"},
    "liveness": {"path": "/-/healthy", "port": "http"},
    "readiness": {"path": "/-/ready", "port": "http"},
}


def test_one_sqlite_file_never_has_two_writers(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    spec = objects["Deployment", "gradwarden"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_mounts_lead_to_objects_that_exist(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    pod = objects["Deployment", "gradwarden"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == set(volumes)
    assert (
        "PersistentVolumeClaim",
        volumes["data"]["persistentVolumeClaim"]["claimName"],
    ) in objects
    secret = objects["Secret", volumes["secret"]["secret"]["secretName"]]
    assert {item["key"] for item in volumes["secret"]["secret"]["items"]} <= set(
        secret["stringData"]
    )
    config = objects["ConfigMap", volumes["receivers"]["configMap"]["name"]]
    environment = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    folder, _, file = str(environment["GRADWARDEN_RECEIVERS"]).rpartition("/")
    assert mounts["receivers"] == folder
    receivers = yaml.safe_load(config["data"][file])
    assert [receiver.type for receiver in spec.parse(receivers, file, {})] == ["alertmanager"]


def test_the_service_understands_its_environment(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    names = {f"GRADWARDEN_{name.upper()}" for name in Settings.model_fields}
    used = {item["name"] for item in container(objects["Deployment", "gradwarden"])["env"]}
    assert used <= names


def test_no_secret_is_shipped(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for (kind, name), item in objects.items():
        if kind == "Secret":
            assert set(item["stringData"].values()) == {""}, name


def test_prometheus_finds_the_service(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    monitor = objects["ServiceMonitor", "gradwarden"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    service = objects["Service", "gradwarden"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    credentials = endpoint["authorization"]["credentials"]
    assert credentials["key"] in objects["Secret", credentials["name"]]["stringData"]


def test_the_trainer_example_names_what_the_sdk_reads(
    objects: dict[tuple[str, str], dict[str, Any]],
) -> None:
    job = objects["Job", "gradwarden-trainer-example"]
    assert job["spec"]["suspend"] is True
    environment = {item["name"]: item for item in container(job)["env"]}
    url = environment["GRADWARDEN_URL"]["value"]
    service = objects["Service", "gradwarden"]
    assert url == f"http://{service['metadata']['name']}.gradwarden.svc:{DEFAULT_PORT}"
    fields = {
        name: item["valueFrom"]["fieldRef"]["fieldPath"]
        for name, item in environment.items()
        if "fieldRef" in item.get("valueFrom", {})
    }
    assert fields == {
        "GRADWARDEN_RUN_ID": "metadata.labels['batch.kubernetes.io/controller-uid']",
        "GRADWARDEN_POD": "metadata.name",
        "GRADWARDEN_NAMESPACE": "metadata.namespace",
        "GRADWARDEN_NODE": "spec.nodeName",
    }
    assert wire.is_identifier("0a7ff0ed-6f3e-4c0e-9b0a-3c9e0f1d2b3c"), "a uid names a run"
    reference = environment["GRADWARDEN_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert reference["key"] in objects["Secret", reference["name"]]["stringData"]
    sdk = MANIFEST.parent.parent / "client_sdk"
    read = {f"GRADWARDEN_{field.upper()}" for field in SdkSettings.__dataclass_fields__}
    read |= set(re.findall(r"GRADWARDEN_\w+", "".join(p.read_text() for p in sdk.rglob("*.py"))))
    assert set(environment) <= read, f"the SDK does not read {set(environment) - read}"
