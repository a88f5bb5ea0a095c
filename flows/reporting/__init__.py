"""What a run tells its user: reports for ``--json``, tables for the terminal and Markdown, and figures for MLflow."""
