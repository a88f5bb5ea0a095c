"""Export: an edited model for whoever serves it.

In: an ``edit`` artifact. Out: a Hugging Face checkpoint in a folder of the user's; nothing in the store.
"""
