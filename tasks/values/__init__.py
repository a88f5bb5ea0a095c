"""Value vectors: the block output at a subject's last token that makes the model state the new object.

In: a ``Model``, edit requests and context templates. Out: one vector of width d_model for each fact. A ``values``
artifact holds the vectors of up to 128 facts, each found by the digest of its fact.
"""
