"""PromQL over blocks of samples, with the semantics of Prometheus 3: parse, select, evaluate."""
