"""Runs in MLflow: writing the log of this run, and reading those of earlier runs.

In: settings, scores, tables and figures. Out: runs and their files in MLflow. Only this room imports mlflow, apart from
the page of `factsmith ui`.
"""
