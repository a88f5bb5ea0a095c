"""What processes know of each other, on one machine and on several that share a folder: locks and signs of life."""
