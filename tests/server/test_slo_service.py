"""A budget that burns in a running service: from frames to somebody's pager, and off again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.server.pager import eventually, local_receiver
from tests.server.traffic import batch, begin, frame, send
from tests.service import Service

ROOT = Path(__file__).parents[2]
FAST = """
apiVersion: openslo/v1
kind: Service
metadata: {name: ours}
spec: {}
---
apiVersion: openslo/v1
kind: SLO
metadata:
  name: our-steps
  displayName: Our steps
  annotations:
    gradwarden.dev/windows: page 2m/1m x2
    gradwarden.dev/min-events: "10"
    gradwarden.dev/interval: 1s
spec:
  service: ours
  indicator:
    metadata: {name: our-steps}
    spec:
      ratioMetric:
        bad:
          metricSource:
            spec:
              query: >-
                sum by (environment) (increase(gradwarden_nonfinite_steps_total[{{.window}}]))
        total:
          metricSource:
            spec:
              query: sum by (environment) (increase(gradwarden_steps_total[{{.window}}]))
  timeWindow: [{duration: 1d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{target: 0.9}]
---
apiVersion: openslo/v1
kind: SLO
metadata:
  name: our-runs
  displayName: Our runs
  annotations:
    gradwarden.dev/count: 1 of 50
    gradwarden.dev/interval: 1s
spec:
  service: ours
  indicator:
    metadata: {name: our-runs}
    spec:
      ratioMetric:
        counter: false
        bad:
          metricSource:
            spec: {query: "last_over_time(gradwarden_run_good[{{.window}}]) == 0"}
        total:
          metricSource:
            spec: {query: "last_over_time(gradwarden_run_ended_seconds[{{.window}}])"}
  timeWindow: [{duration: 1d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{target: 0.98}]
"""


def test_a_burning_budget_pages_and_its_file_is_read_again(tmp_path: Path) -> None:
    """Half of forty steps are bad, which is five times what the target allows."""
    rules = tmp_path / "rules"
    shutil.copytree(ROOT / "alert_rules", rules)
    for shipped in (rules / "slo").iterdir():
        shipped.unlink()
    (rules / "slo" / "ours.yaml").write_text(FAST)
    with local_receiver() as pager:
        receivers = (
            f"receivers:\n  - name: pager\n    type: webhook\n    url: {pager.url}\n"
            "    allow_private: true\n"
        )
        service = Service(tmp_path / "s", receivers=receivers, env={"GRADWARDEN_RULES": str(rules)})
        try:
            begin(service, "r1")
            frames = [frame(n + 1, bad_row=1 if n % 2 else None) for n in range(40)]
            assert send(service, batch("r1", frames)).status_code == 200

            def told() -> bool:
                return any(b'"SloBudgetBurn"' in r.body for r in pager.requests)

            eventually(told)
            body = next(json.loads(r.body) for r in pager.requests if b'"SloBudgetBurn"' in r.body)
            [alert] = body["alerts"]
            assert alert["labels"]["slo"] == "our-steps"
            assert alert["labels"]["severity"] == "page"
            assert alert["labels"]["environment"] == "prod"
            assert alert["annotations"]["runbook_url"].endswith("/runbooks/SloBudgetBurn")

            face = next(one for one in service.get("/v1/slos")["items"] if one["id"] == "our-steps")
            assert face["alerts"]
            assert face["burn"][0]["word"] == "Critical"

            def counted() -> list[str]:
                firing = service.get("/v1/alerts", params={"state": "firing"})["items"]
                return [a["severity"] for a in firing if a["labels"].get("slo") == "our-runs"]

            begin(service, "r2")
            for run, left in (("r1", 0), ("r2", -1)):
                assert counted() == [], "one bad run of fifty is allowed"
                said = service.call("POST", f"/v1/runs/{run}/outcome", json={"outcome": "bad"})
                assert said.status_code == 200, said.text
                eventually(
                    lambda left=left: service.get("/v1/slos/our-runs")["budget_left"] == left
                )
            eventually(lambda: counted() == ["ticket"])

            (rules / "slo" / "ours.yaml").unlink()
            eventually(lambda: service.get("/v1/slos")["items"] == [])
        finally:
            service.close()
