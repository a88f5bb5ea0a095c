"""Exports of the edits of earlier runs."""
