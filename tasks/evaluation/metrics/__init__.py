"""Metric families. Each module defines one as ``FAMILY``, and it is found by its name."""
