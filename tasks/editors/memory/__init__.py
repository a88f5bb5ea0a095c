"""Editors with a memory: the weights stay as they are, and a module beside one of them answers for some prompts.

Whether it answers is decided once for each prompt, at its last token. The tokens that follow belong to the same
request.
"""
