"""On-call: every run, for the SRE who was paged."""

from __future__ import annotations

from dashboards.boards.parts import Builder, bands, board, curves, listed, number, query

FIRING = 'ALERTS{alertstate="firing"}'


def made() -> Builder:
    """The dashboard."""
    return (
        board("gradwarden-oncall", "gradwarden: on-call", "What fires, and since when", "now-3h")
        .with_panel(
            number(
                "Pages",
                "Alerts that wake somebody and fire now",
                'count(ALERTS{alertstate="firing",severity="page"}) or vector(0)',
                bad=1,
            )
        )
        .with_panel(
            number(
                "Tickets",
                "Alerts for working hours that fire now",
                'count(ALERTS{alertstate="firing",severity="ticket"}) or vector(0)',
            )
        )
        .with_panel(
            number(
                "Runs with an alert",
                "Runs that are at risk now",
                f"count(count by (run) ({FIRING})) or vector(0)",
            )
        )
        .with_panel(
            number("Runs", "Runs that train now", "count(gradwarden_run_info) or vector(0)")
        )
        .with_panel(
            number(
                "Runs with NaN or Inf",
                "Runs whose newest step had non-finite gradients",
                "count(max by (run) (gradwarden_nonfinite_gradients) > 0) or vector(0)",
                bad=1,
            )
        )
        .with_panel(
            number(
                "Silent for a minute",
                "Runs that train and whose loss is older than a minute",
                "count(time() - max by (run) (timestamp(gradwarden_loss)) > 60) or vector(0)",
            )
        )
        .with_panel(
            listed(
                "Firing now",
                "Each with the run, its owner and its cluster; the run page names layer and rank",
                FIRING,
                hidden=("alertstate",),
            )
        )
        .with_panel(
            bands(
                "What fired when",
                "Every alert that was pending or firing in the time shown",
                query(
                    "max by (alertname, severity, run_name) (ALERTS)",
                    "{{severity}}: {{alertname}} of {{run_name}}",
                ),
                height=10,
            )
        )
        .with_panel(
            curves(
                "Global gradient norm",
                "Of every run",
                [query("max by (run) (gradwarden_gradient_norm)", "{{run}}")],
                log=True,
            )
        )
        .with_panel(
            curves(
                "Non-finite gradients",
                "NaN and Inf of a step, in elements",
                [query("max by (run) (gradwarden_nonfinite_gradients)", "{{run}}")],
                bars=True,
            )
        )
        .with_panel(
            curves(
                "Slowest rank of each run",
                "Step time of its slowest rank",
                [
                    query(
                        'max by (run) (gradwarden_scalar{quantity="step_seconds"})',
                        "{{run}}",
                    )
                ],
                "s",
            )
        )
        .with_panel(
            curves(
                "All-reduce",
                "First bucket, from hand-over to return: waiting for other ranks is in it",
                [
                    query(
                        'max by (run) (gradwarden_scalar{quantity="allreduce_seconds"})',
                        "{{run}}",
                    )
                ],
                "s",
            )
        )
    )
