"""General abilities: what a model can do besides recalling facts, before and after an edit.

In: labelled examples of classification tasks, and edits. Out: accuracy, weighted F1 and MCC. ``predictions`` artifacts
hold the answers to single examples under one set of weights, so a rerun asks only what is new. The ``abilities``
artifact holds all answers of a run. Each task is one file in ``tasks``.
"""
