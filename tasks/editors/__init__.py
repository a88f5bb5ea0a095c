"""Editors: methods that do not solve the equation. They train weights, or add a memory to the model.

In: edit requests, context templates. Out: an edit of any kind. An ``edit`` artifact holds the edit of a batch, or of a
sequence up to some batch, from which an interrupted sequence continues. ``methods/`` has one file per editor.
"""
