"""Evaluation: metrics of a model before and after its facts are written.

In: records with their prompts, and edits. Out: tables of scores. ``scores`` artifacts hold the scores of single records
under one set of weights, so a rerun scores only what is new. The ``evaluation`` artifact holds a run's tables. For a
sequence, the ``course`` artifact holds the trajectory: all scores by the number of edits. Each metric family is one
file in ``metrics``. ``held_out`` measures what edits do to other text.
"""
