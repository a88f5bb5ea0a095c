"""One module per editor, named after it. Each defines an ``EDITOR``."""
