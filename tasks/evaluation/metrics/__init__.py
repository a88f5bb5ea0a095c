"""Families of metrics, found by their name: one file each, with a ``FAMILY``."""
