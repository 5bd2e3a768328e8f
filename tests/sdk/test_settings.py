"""Arguments, then environment, then defaults; a bad one is refused where it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwarden
from gradwarden.errors import ConfigurationError
from gradwarden.settings import Settings
from tests.sdk.conftest import mlp


def test_argument_wins_over_environment_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.resolve().environment == "dev"
    monkeypatch.setenv("GRADWARDEN_ENVIRONMENT", "prod")
    assert Settings.resolve().environment == "prod"
    assert Settings.resolve(environment="lab").environment == "lab"


def test_every_setting_comes_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given = {
        "run": "r-1",
        "url": "https://house.example:8443/base/",
        "token": "gw_x",
        "start_step": "7",
        "config": '{"a": [1]}',
        "group": "2",
        "page": "true",
        "cost_per_hour": "12.5",
        "spool": str(tmp_path / "s"),
        "exit_seconds": "0",
        "notify_url": "http://127.0.0.1:9/x?y=1",
        "disabled": "no",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"GRADWARDEN_{name.upper()}", value)
    found = Settings.resolve()
    assert (found.run, found.url, found.start_step) == ("r-1", "https://house.example:8443/base", 7)
    assert (found.config, found.group, found.page) == ({"a": [1]}, 2, True)
    assert (found.cost_per_hour, found.exit_seconds, found.disabled) == (12.5, 0.0, False)
    assert found.spool == tmp_path / "s"


BAD: list[tuple[str, Any]] = [
    ("run", "has space"),
    ("run", "x" * 129),
    ("url", "ftp://x"),
    ("url", "http://"),
    ("url", "http://x:port"),
    ("token", "line\nbreak"),
    ("project", "snow☃"),
    ("start_step", -1),
    ("start_step", True),
    ("start_step", "many"),
    ("config", {"x": float("nan")}),
    ("config", "[1]"),
    ("group", -2),
    ("page", "perhaps"),
    ("cost_per_hour", float("inf")),
    ("exit_seconds", -1),
    ("notify_url", "mailto:x"),
    ("name", ""),
    ("owner", 7),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda v: repr(v)[:20])
def test_a_bad_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}="):
        gradwarden.watch(mlp(), **{name: value})


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWARDEN_URL", "nonsense")
    with pytest.raises(ConfigurationError, match="GRADWARDEN_URL='nonsense'"):
        gradwarden.watch(mlp())


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "http://h:port", "https://"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigurationError, match="url="):
        gradwarden.watch(mlp(), url=url)
    with pytest.raises(ConfigurationError, match="notify_url="):
        gradwarden.watch(mlp(), notify_url=url)


def test_a_run_id_from_the_environment_is_never_quietly_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADWARDEN_RUN_ID", "nightly run/7")
    with pytest.raises(ConfigurationError, match="GRADWARDEN_RUN_ID='nightly run/7'"):
        gradwarden.watch(mlp())


def test_a_spool_with_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="file in the way"):
        gradwarden.watch(mlp(), spool=tmp_path / "file" / "spool")


def test_what_is_no_model_or_optimizer_is_refused() -> None:
    model = mlp()
    with pytest.raises(ConfigurationError, match=r"torch\.nn\.Module"):
        gradwarden.watch(object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"torch\.optim\.Optimizer"):
        gradwarden.watch(model, [model])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="no parameters"):
        gradwarden.watch(nn.Tanh())
    stranger = torch.optim.SGD(mlp().parameters(), 0.1)
    with pytest.raises(ConfigurationError, match="optimizer 0: it holds no parameter"):
        gradwarden.watch(model, stranger)
