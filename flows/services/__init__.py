"""Long-running services around the flows: schedules, and the servers of Prefect and MLflow."""
