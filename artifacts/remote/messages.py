"""What libraries say about a location that cannot be used, as a user may see it."""

from __future__ import annotations

import os
import re

from factsmith.artifacts.errors import first_line

__all__ = ["LATER", "message", "plain", "remedy"]

LATER = "check that it can be reached, then run the same command again: what is there already is kept"
"""The remedy for whatever may pass by itself."""

_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
    "hf": "set HF_TOKEN, or run `hf auth login`",
}


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


def remedy(error: Exception, protocol: str) -> str:
    """What to do about an error of a file system of fsspec with this protocol."""
    said = f"{type(error).__name__} {error}"
    if isinstance(error, PermissionError) or re.search("[Cc]redential|\\b40[13]\\b|Unauthorized|Forbidden", said):
        credentials = _CREDENTIALS.get({"s3a": "s3", "gcs": "gs"}.get(protocol, protocol))
        return credentials or "check who may read and write it"
    if isinstance(error, FileNotFoundError):
        return "check the name, or create it first"
    return LATER
