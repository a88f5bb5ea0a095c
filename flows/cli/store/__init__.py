"""Commands on the store: its artifacts, their way to other places, statistics of other tools."""
