"""Repositories on the Hugging Face hub, both models and datasets."""
