"""The command line: one module for each kind of command.

Commands import what they need when they are called. Most imports are slow, and the environment must be set before
Prefect and MLflow are imported.
"""
