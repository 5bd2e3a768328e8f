"""Where shipped files lie. The only code that knows a checkout from an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_REPOSITORY = _PACKAGE.parent.parent


def _locate(bundled: str, checkout: str) -> Path:
    inside = _PACKAGE / "_bundled" / bundled
    return inside if inside.exists() else _REPOSITORY / checkout


MIGRATIONS = _locate("migrations", "migrations")
ALERT_RULES = _locate("alert_rules", "alert_rules")
RUNBOOKS = _locate("runbooks", "docs/runbooks")
WEB = _locate("web", "dashboards/web/dist")
