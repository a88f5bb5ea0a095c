"""What a person runs or schedules: the Prefect flows, the command line, the configuration and the reports.

Imports run downwards::

    cli                                       the command line
    services                                  schedules, the servers of Prefect and MLflow
    sweeps                                    many runs, one after the other or at once
    tune, run, evaluate, edit, ...            the flows
    reporting                                 tables, figures and reports
    configuration                             from arguments to settings
"""

import logging

logging.getLogger("factsmith").setLevel(logging.INFO)  # Whoever starts a run decides where messages go.
