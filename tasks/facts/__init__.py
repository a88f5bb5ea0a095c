"""The facts to write: records of a dataset, edit requests, and the contexts that they are written in.

In: a file of records, or the embedded world. Out: records in batches, each with its edit request and the prompts that
score it. The ``contexts`` artifact holds the context templates, sampled from the unedited model or given by the user.
"""
