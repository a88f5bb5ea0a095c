"""The Python API: edit a transformers model that is in memory, without a run, a store or a server.

``factsmith.edit`` and the other names of ``factsmith.__init__`` are loaded from here when they are first used. The
layer puts the science of ``tasks`` together as a run does, so an edit is the same as that of a run with the same
settings.
"""
