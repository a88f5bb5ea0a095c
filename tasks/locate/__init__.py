"""Locating facts in a model: which layers to edit, and which constants to try.

In: facts that the model may know. Out: average indirect effects by layer, and the layers that these propose.
``recall`` artifacts record which facts the model knows. ``effects`` artifacts hold the indirect effects of single
facts, and the ``location`` artifact holds their averages. ``search`` proposes lambda, clamp and learning rate for
`factsmith tune`.
"""
