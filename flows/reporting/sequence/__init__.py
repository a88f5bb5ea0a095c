"""How a sequence went: its curves in MLflow, and the tables of a sweep of sequences."""
