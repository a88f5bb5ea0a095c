"""Delta files: the change of a model's weights as a file that can be applied, stacked and undone.

In: an edit and the model that it was made for, or delta files and a model. Out: a folder with the change, or a model
with other weights.
"""
