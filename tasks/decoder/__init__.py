"""A language model as knowledge editing sees it: a stack of blocks that can be run, read and edited one by one.

In: a transformers model, its tokenizer, and the layout of its family. Out: a ``Decoder``; hidden states, keys, logits
and texts. This room publishes no artifact. Each architecture family has one file in ``families``.
"""
