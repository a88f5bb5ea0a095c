"""The tasks, one file each. A file defines a ``TASK``."""
