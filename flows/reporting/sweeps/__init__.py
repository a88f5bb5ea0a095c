"""The results of a sweep: ``results`` has the tables and plots of all sweeps, ``sequences`` those of sequences."""
