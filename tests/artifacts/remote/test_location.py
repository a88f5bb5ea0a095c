"""URLs that cannot be locations are refused with a message, and never shown with what may be a secret."""

from __future__ import annotations

import pytest

from factsmith.artifacts.errors import InputError
from factsmith.artifacts.remote.location import Location


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "nothing"),
        ("s3://", "no name of a bucket"),
        ("s3://[", "Invalid IPv6 URL"),
        ("zzz://x", "Protocol not known"),
        ("reference://x", "fo"),
        ("s3://KEY:hidden@bucket/x", "with credentials"),
        ("s3://KEY:hidden@[", "Invalid IPv6 URL"),
        ("https://host/x?token=hidden", "or a query"),
    ],
)
def test_what_is_no_location_is_refused(url: str, said: str):
    with pytest.raises(InputError, match=said) as error:
        Location.open(url)
    assert "hidden" not in str(error.value)


def test_a_folder_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Location.open("data:a b").send(b"c", "d")
    assert (tmp_path / "data:a b" / "d").read_bytes() == b"c"
