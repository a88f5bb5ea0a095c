"""The corpus: text whose keys an edit must preserve, as exact blocks of tokens.

In: a file, a dataset on the Hugging Face hub, or the text of the embedded world. Out: a ``TokenStream``. Each
``tokens`` artifact is a shard of that stream, one row per block; a longer stream only adds shards.
"""
