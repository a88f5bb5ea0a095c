"""One YAML file for each choice of model, corpus, method, dataset and experiment. Read by ``flows/configuration``."""
