"""The covariance C0 of the keys, and how well it is known.

In: stored keys, keys as the model gives them, or files of second moments that other tools have written. Out: C0, mean
and count of every edited layer. A ``covariance`` artifact holds one layer's moments. ``leverage`` artifacts measure C0
on keys that it does not cover, ``spectrum`` artifacts hold its eigenvalues, and ``accumulation`` artifacts are
checkpoints of sums over keys that are not kept.
"""
