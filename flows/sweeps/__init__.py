"""Sweeps: their cells, checked before any of them runs, and run in this process or in several."""
