"""Debug: one run, for the ML engineer who wants its numbers beside those of the cluster."""

from __future__ import annotations

from dashboards.boards.parts import (
    Builder,
    bands,
    board,
    curves,
    label_choice,
    listed,
    query,
    word_choice,
)

RUN = 'run="$run"'
LAYERS = f'gradwarden_layer{{{RUN},quantity="$quantity"}}'
PHASES = "data_seconds|forward_seconds|backward_seconds|optimizer_seconds|allreduce_exposed_seconds"
QUANTITIES = ("l2", "absmax", "rms", "weight_l2", "update_ratio", "zero", "nan", "inf")


def made() -> Builder:
    """The dashboard."""
    return (
        board("gradwarden-debug", "gradwarden: debug a run", "One run, layer by layer", "now-6h")
        .with_variable(label_choice("run", "Run", "gradwarden_run_info"))
        .with_variable(word_choice("quantity", "Statistic of layers", QUANTITIES))
        .with_panel(listed("Run", "Who trains what, where", f"gradwarden_run_info{{{RUN}}}"))
        .with_panel(
            bands(
                "Alerts",
                "What was pending or firing when",
                query(
                    f"max by (alertname, severity, alertstate) (ALERTS{{{RUN}}})",
                    "{{alertname}} ({{severity}}, {{alertstate}})",
                ),
            )
        )
        .with_panel(
            curves(
                "Loss",
                "The mean over the ranks that logged it",
                [query(f"gradwarden_loss{{{RUN}}}", "loss")],
            )
        )
        .with_panel(
            curves(
                "Global gradient norm",
                "Before clipping, over all layers",
                [query(f"gradwarden_gradient_norm{{{RUN}}}", "norm")],
                log=True,
            )
        )
        .with_panel(
            curves(
                "Layers with the largest values",
                "The ten largest now; choose the statistic above",
                [query(f"topk(10, max by (layer) ({LAYERS}))", "{{layer}}")],
                log=True,
            )
        )
        .with_panel(
            curves(
                "Layers with the smallest values",
                "The ten smallest now; choose the statistic above",
                [query(f"bottomk(10, min by (layer) ({LAYERS}))", "{{layer}}")],
                log=True,
            )
        )
        .with_panel(
            curves(
                "Non-finite gradients",
                "NaN and Inf of a step, in elements",
                [query(f"gradwarden_nonfinite_gradients{{{RUN}}}", "elements")],
                bars=True,
            )
        )
        .with_panel(
            curves(
                "Learning rate",
                "As the first parameter group has it",
                [query(f'max by (quantity) (gradwarden_scalar{{{RUN},quantity="lr"}})', "lr")],
            )
        )
        .with_panel(
            curves(
                "Phases of a step",
                "The mean over ranks; what is not hidden of communication is a phase of its own",
                [
                    query(
                        f'avg by (quantity) (gradwarden_scalar{{{RUN},quantity=~"{PHASES}"}})',
                        "{{quantity}}",
                    )
                ],
                "s",
            )
        )
        .with_panel(
            curves(
                "Step time by rank",
                "A slow rank holds up all the others",
                [query(f'gradwarden_scalar{{{RUN},quantity="step_seconds"}}', "rank {{rank}}")],
                "s",
            )
        )
    )
