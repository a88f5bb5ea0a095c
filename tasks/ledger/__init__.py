"""The ledger: which facts were written into a model, edit by edit.

In: edits, the runs that made them, and the ledger of the model that they edited. Out: one ledger for each edited model,
which runs keep in MLflow and exports as ``ledger.json``.
"""
