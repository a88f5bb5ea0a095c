"""The language model: its checkpoint, its fingerprint, and its weights in memory.

In: a folder, an id on the Hugging Face hub, a GGUF file, or the model that ships with Factsmith. Out: a ``Model`` for
the other stages. The ``model`` artifact records the checkpoint's size and that every weight is finite; its digest is
the fingerprint of the weights. The ``checkpoint`` artifact is the model in a GGUF file, dequantised.
"""
