"""The stages of the pipeline, and in subpackages the science they call, which knows no Prefect, MLflow or store."""
