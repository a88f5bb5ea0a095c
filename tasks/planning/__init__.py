"""A run as a whole: its settings, its input, the checks before it begins, and its plan.

In: settings. Out: a ``Run``, whose parts the flows pass to the stages, and the plan of what a run would do and cost.
Nothing here builds an artifact.
"""
