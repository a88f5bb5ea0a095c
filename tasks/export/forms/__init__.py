"""Forms of an export, one file each. Each defines a ``FORM``."""
