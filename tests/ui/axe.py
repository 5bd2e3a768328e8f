"""axe-core over a page as it stands: what would stop somebody who cannot see, point or tell red."""

from __future__ import annotations

import json

from dashboards.build_web import WEB
from tests.needs import missing
from tests.ui.browser import Page

FILE = WEB / "node_modules" / "axe-core" / "axe.min.js"
RUN = """
axe.run(document, { resultTypes: ['violations'] }).then(found => JSON.stringify(
  found.violations
    .filter(v => v.impact === 'serious' || v.impact === 'critical')
    .map(v => `${v.id}: ${v.nodes.map(n => `${n.target} ${n.any[0]?.message ?? ''}`).join(' | ')}`)
))
"""


def serious(page: Page) -> list[str]:
    """Rules of axe-core that the page breaks badly, each with its places."""
    if not page.evaluate("Boolean(window.axe)"):
        if not FILE.is_file():
            missing("axe-core", "cd dashboards/web && npm ci")
        page.evaluate(FILE.read_text(encoding="utf-8") + "; true")
    found: list[str] = json.loads(page.evaluate(RUN))
    return found
