"""Preservation operators: what an edit must preserve, as an operator that applies A^-1.

In: covariances, stored keys, or nothing but settings. Out: a factor of every edited layer, and its operator. A
``factor`` artifact holds one layer's Cholesky factor, low-rank model, null-space basis or weight; a ``directions``
artifact holds a layer's principal directions. Each kind of preservation is one file.
"""
