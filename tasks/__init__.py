"""The pipeline, one room per subject, in the order of the data.

A room holds the science of its subject and, in ``stage.py`` or ``*_stage.py``, the Prefect tasks that call it. Only
these stage files may import Prefect or the artifact store. Imports run from later rooms to earlier ones::

    tracking, pipeline                       what every stage needs
    decoder, model                           the language model
    corpus, keys, covariance, preservation   what an edit must preserve
    facts, values, edit                      what an edit writes
    evaluation, export, locate               what becomes of an edited model; where to edit a new one
    planning                                 a run as a whole: its settings, its input, its plan
"""

from factsmith.tasks.pipeline.environment import disable_telemetry

disable_telemetry()  # Every import of Prefect, MLflow or transformers comes through this package first.
