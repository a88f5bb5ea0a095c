"""Datasets: records to edit with, and the prompts that score the edit. One file a suite, found by its name."""
