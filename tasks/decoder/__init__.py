"""A language model as the science sees it: blocks that can be run one by one, read, and edited.

In: a transformers model, its tokenizer, and the layout of its family. Out: a ``Decoder``; hidden states, keys, logits
and texts. This room keeps no artifact. Each architecture family is one file in ``families``.
"""
