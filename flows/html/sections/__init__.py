"""The sections of a report. Each module has one: a function from what a run left to a ``Section``."""
