"""What a person runs or schedules: the flows, the command line, and how settings are put together."""
