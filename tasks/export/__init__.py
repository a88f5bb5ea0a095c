"""Export: an edited model, or an edit, in a form that other programs can load.

In: an ``edit`` artifact. Out: files in a folder of the user's; nothing in the store. ``forms`` has one file for each
form.
"""
