"""What libraries say about a location that cannot be used, as a user may see it."""

from __future__ import annotations

import os
import re

from factsmith.artifacts.errors import first_line

__all__ = ["message", "plain"]


def message(error: Exception) -> str:
    """The class and the first line of an error, without the class where the message says it."""
    if isinstance(error, OSError) and error.strerror and not str(error.errno or "").startswith("-"):
        return f"{type(error).__name__}: {error.strerror}"
    return f"{type(error).__name__}: {first_line(error)}"


def plain(text: str) -> str:
    """``text`` without what may be a secret: the user and the query of URLs, and values of the environment."""
    text = re.sub(r"(\w://)[^/\s@]*@", r"\1", text)
    text = re.sub(r"(\w://[^\s?\"']*)\?[^\s\"']*", r"\1", text)
    secret = re.compile("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL")
    values = [value for name, value in os.environ.items() if secret.search(name.upper()) and len(value) >= 8]
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, "***")
    return text
