"""Executive: promises kept, for the team lead."""

from __future__ import annotations

from dashboards.boards.parts import Builder, board, curves, listed, number, query

LEFT = "slo:period_error_budget_remaining:ratio"
BURN = "slo:current_burn_rate:ratio"
ENDED = "last_over_time(gradwarden_run_good[30d])"


def made() -> Builder:
    """The dashboard."""
    return (
        board(
            "gradwarden-executive",
            "gradwarden: trainings",
            "How trainings go, and what is left of their error budgets",
            "now-30d",
        )
        .with_panel(
            number("Runs", "Runs that train now", "count(gradwarden_run_info) or vector(0)")
        )
        .with_panel(
            number(
                "Runs at risk",
                "Runs with a page or a ticket that fires",
                "count(count by (run) "
                '(ALERTS{alertstate="firing",severity=~"page|ticket"})) or vector(0)',
            )
        )
        .with_panel(
            number(
                "Ended well",
                "Of the runs of the last 30 days that count, the share that reached their end",
                f"avg({ENDED})",
                "percentunit",
            )
        )
        .with_panel(
            number(
                "Least budget left",
                "Of the objective that is worst off, in this period",
                f"min({LEFT})",
                "percentunit",
            )
        )
        .with_panel(
            number(
                "Fastest burn",
                "1 spends the whole budget in its period; 14.4 in two days",
                f"max({BURN})",
                bad=14.4,
            )
        )
        .with_panel(
            number(
                "Steps in a day",
                "Of all runs together",
                "sum(increase(gradwarden_steps_total[1d]))",
            )
        )
        .with_panel(
            listed(
                "Budgets",
                "What each objective promises, by project and environment",
                f"sort({LEFT})",
                hidden=("sloth_id", "sloth_service"),
            )
        )
        .with_panel(
            curves(
                "Error budget left",
                "Of each objective's period",
                [query(LEFT, "{{sloth_slo}} {{environment}}")],
                "percentunit",
            )
        )
        .with_panel(
            curves(
                "Burn rate",
                "How many times faster than allowed the budget is spent",
                [query(BURN, "{{sloth_slo}} {{environment}}")],
            )
        )
        .with_panel(
            curves(
                "Alerts that fire",
                "By severity",
                [query('count by (severity) (ALERTS{alertstate="firing"})', "{{severity}}")],
                bars=True,
            )
        )
        .with_panel(
            curves(
                "Steps with NaN or Inf",
                "Of every 100 steps",
                [
                    query(
                        "100 * sum by (environment) "
                        "(increase(gradwarden_nonfinite_steps_total[1h]))"
                        " / sum by (environment) (increase(gradwarden_steps_total[1h]))",
                        "{{environment}}",
                    )
                ],
            )
        )
    )
