"""Repositories on the Hugging Face hub, whatever they hold."""
