"""Keys: the inputs of the edited MLP output projections at every token of the corpus.

In: a ``Model`` and a ``TokenStream``. Out: a ``KeyStream`` of every edited layer. Each ``keys`` artifact is a Zarr
shard of one layer, (rows, d_k); a shard serves every smaller token count too.
"""
