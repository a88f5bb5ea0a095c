"""Dataset formats: edit requests and the prompts that score the edits. One module per format, found by its name."""
