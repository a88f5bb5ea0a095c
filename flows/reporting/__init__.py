"""What the user sees of a run: reports for ``--json``, tables for the terminal and Markdown, and figures for MLflow."""
