"""Long-running services around the flows: schedules, the temporary Prefect server, and the page of the MLflow UI."""
