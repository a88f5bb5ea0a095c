"""One file for each architecture family that can be edited."""
