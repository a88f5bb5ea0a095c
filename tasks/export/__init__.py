"""Export: an edited model as a checkpoint that other programs can load.

In: an ``edit`` artifact. Out: a Hugging Face checkpoint in a folder of the user's; nothing in the store.
"""
