"""Load a model with a memory, which ``factsmith edit --out`` has written, for use with transformers.

    from factsmith.tasks.editors.load import load_edited

    model = load_edited("edited")
    tokenizer = AutoTokenizer.from_pretrained("edited/base")

``model`` is a model of transformers. Its ``forward`` and ``generate`` ask the memory at the last token of each prompt,
and what follows keeps the decision. ``memory/calls.py`` says how they know where a prompt ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from safetensors.torch import load_file

from factsmith.artifacts.errors import InputError
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.layout import HFModel
from factsmith.tasks.edit.edit import OTHER_EDIT, OTHER_TENSORS, Edit
from factsmith.tasks.editors.editor import edit_kind
from factsmith.tasks.model.checkpoint import open_checkpoint

__all__ = ["BASE", "SAID", "load_edited", "prompt_ends", "read_memory"]

BASE = "base"
"""The folder of the unedited model and its tokenizer in that of a model with a memory."""

SAID = (
    f"a checkpoint cannot hold its memory: load it with factsmith.tasks.editors.load.load_edited; {BASE}/ is unedited"
)
"""How to load such a model, in messages."""

_DECODER = "_factsmith_decoder"
_OPENED = "_factsmith_opened"


def load_edited(
    folder: Path | str,
    *,
    device: str = "cpu",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> HFModel:
    """The transformers model in ``folder``, with its memory.

    Args:
        folder: a folder that ``factsmith edit --out`` has written with a method that adds a memory.
        device: the device of the weights.
        dtype: data type of the weights; auto for that of the run that made the edit.

    Raises:
        InputError: the folder has no memory, or it cannot be read.
    """
    folder = Path(folder).expanduser()
    edit = read_memory(folder)
    checkpoint = open_checkpoint(folder / BASE)
    dtype = checkpoint.own_dtype if dtype == "auto" else dtype  # type: ignore[assignment]
    decoder = checkpoint.load(checkpoint.load_tokenizer(), dtype=dtype, device=device)
    opened = ExitStack()
    opened.enter_context(edit.applied(decoder))
    model = decoder.model
    vars(model).update({_DECODER: decoder, _OPENED: opened, "save_pretrained": _refuse_to_save})
    return model


def read_memory(folder: Path) -> Edit:
    """The edit with a memory that ``factsmith edit --out`` has written to ``folder``.

    Raises:
        InputError: the folder has no memory, or it cannot be read.
    """
    try:
        stored = json.loads((folder / OTHER_EDIT).read_text(encoding="utf-8"))
        tensors = load_file(folder / OTHER_TENSORS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder} has no readable memory.",
            got=f"{type(error).__name__}: {error}",
            expected=f"{OTHER_EDIT}, {OTHER_TENSORS} and {BASE}/, which `factsmith edit --out` writes",
            remedy="load any other model with from_pretrained",
        ) from None
    return edit_kind(stored["kind"]).read(tensors, stored["values"])


@contextmanager
def prompt_ends(model: HFModel, ends: Sequence[int]) -> Iterator[None]:
    """While open, the prompts of each pass of ``model`` end where ``ends`` says, for example to score a target.

    Args:
        model: a model that ``load_edited`` has loaded.
        ends: index of the last token of each row's prompt.
    """
    decoder: Decoder = vars(model)[_DECODER]
    with decoder.prompted(ends):
        yield


def _refuse_to_save(*_: object, **__: object) -> NoReturn:
    raise ValueError("save_pretrained would lose the memory of this model; copy its folder instead")
