"""One YAML a choice: models, corpora, methods and datasets. `flows/configuration.py` puts them together."""
