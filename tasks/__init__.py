"""The stages of the pipeline, and in subpackages the science they call, which knows no Prefect, MLflow or store."""

from factsmith.tasks.pipeline.paths import no_telemetry

no_telemetry()  # here, since whatever of ours imports one of those libraries comes through here first
