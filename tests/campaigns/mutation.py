"""Random changes of the bytes of a file, or of the JSON in it."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

__all__ = ["changed_bytes", "changed_json", "changed_safetensors"]

_ODD = [
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**40, 2**63, -(2**63), 10**400, 0.5, 1e-300, 1e308, float("nan"),
    float("inf"), "", " ", "0", "1", "a", "null", "../x", "/etc/passwd", "a\u0000b", "\ud800", "\u202e", "😀", "{}",
    "{} {}", "F32", "BF16", "I64", "float32", "gpt2", "llama", "x" * 10_000, [], {}, [[]], [0], [1, 2, 3], [-1],
    ["a"], {"a": 1}, [2**40, 2**40], [[[[[[]]]]]],
]  # fmt: skip
"""Values that readers are seldom tried with."""

_NUMBERS = [bytes(8), b"\xff" * 8, b"\x7f" + b"\xff" * 7, (2**40).to_bytes(8, "little"), (2**31).to_bytes(4, "little")]


def changed_bytes(content: bytes, random: Random) -> bytes:
    """``content`` with one to three places changed: bits, bytes, lengths; or cut."""
    found = bytearray(content)
    for _ in range(random.randint(1, 3)):
        if not found:
            break
        # Headers, where most can go wrong, are short.
        place = random.randrange(min(len(found), random.choice([64, 1024, len(found)])))
        end = place + random.choice([1, 2, 8, 100])
        match random.randrange(7):
            case 0:
                found[place] ^= 1 << random.randrange(8)
            case 1:
                found[place] = random.randrange(256)
            case 2:
                found[place:place] = random.randbytes(end - place)
            case 3:
                found[place:place] = found[place:end]
            case 4:
                found[place : place + 8] = random.choice(_NUMBERS)
            case 5:
                del found[place:end]
            case 6:
                del found[place:]
    return bytes(found)


def changed_json(content: Any, random: Random) -> Any:
    """``content`` with one to three of its values replaced by odd ones, left out, repeated, or exchanged."""
    found = copy.deepcopy(content)
    for _ in range(random.randint(1, 3)):
        holders = [one for one in _nodes(found) if isinstance(one, dict | list) and one]
        if not holders:
            return random.choice(_ODD)
        holder = random.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key, other = random.choice(keys), random.choice(keys)
        match random.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key], holder[other] = holder[other], holder[key]
            case 2 if isinstance(holder, dict):
                holder[random.choice(["", "x", f"{key}s", str(key).upper(), "__class__"])] = holder[key]
            case 3 if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case _:
                holder[key] = copy.deepcopy(random.choice(_ODD))
    return found


def _nodes(content: Any) -> list[Any]:
    """``content`` and all that it holds, without going below the first thousand."""
    found = [content]
    for one in found:
        if len(found) > 1000:
            break
        found += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return found


def changed_safetensors(content: bytes, random: Random) -> bytes:
    """A safetensors file whose JSON header was changed, and whose length of the header fits it."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(changed_json(json.loads(content[8 : 8 + length]), random)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]
