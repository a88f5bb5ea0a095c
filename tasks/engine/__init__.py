"""The Ray engine: workers on many machines, each with the model, that do a share of a stage's work.

In: the runtime settings, the model and the store of a run. Out: a ``Pool``, which does this for each of these, in
parallel, like ``pipeline.turns`` on the devices of one machine. What workers make is in the store; only addresses
travel.
"""
