"""Correct facts inside a language model: a cached, logged pipeline for locate-then-edit knowledge editing.

The packages ``artifacts``, ``tasks``, ``flows`` and ``conf`` stand at the top of the repository. This folder links to
them, so that Python, type checkers and editors find them under the name they are imported by.
"""
