"""Statistics of a model's keys: what methods that solve the equation preserve."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from factsmith.api.files import read_folder, write_folder
from factsmith.api.model import check_model, edited_layers, limits_of, opened
from factsmith.api.progress import bar
from factsmith.api.settings import method_settings
from factsmith.artifacts.errors import InputError
from factsmith.tasks.corpus.blocks import Block, document_blocks
from factsmith.tasks.covariance.moments import ROWS_PER_UPDATE, Moments, grouped
from factsmith.tasks.covariance.packing import packed, unpacked
from factsmith.tasks.covariance.second_moments import Origin, read_second_moments
from factsmith.tasks.decoder.decoder import Decoder
from factsmith.tasks.decoder.text import is_unicode
from factsmith.tasks.keys.block_keys import NonFiniteKeysError, block_keys
from factsmith.tasks.preservation.kind import KeyMoments

__all__ = ["Statistics", "collect_statistics", "import_statistics", "load_statistics"]

_DOCUMENT = "statistics.json"
_FORMAT = "factsmith statistics 1"
_MULTIPLES = 10
"""Keys that are read by default, in multiples of d_k: the dynamic multiplier of a run."""


@dataclass(frozen=True)
class Statistics:
    """C0, the mean and the number of a model's keys over a corpus, for each edited layer.

    Attributes:
        layers: the moments of each layer: ``covariance`` C0 (d_k, d_k) and ``mean`` (d_k,), float64 on the CPU, and
            ``count``, the number of keys.
        model_type: the family of the model.
        blocks: number of its blocks; ``None`` if it is not known.
    """

    layers: Mapping[int, KeyMoments]
    model_type: str
    blocks: int | None = None

    @property
    def count(self) -> int:
        """Number of keys, the same at every layer."""
        return next(iter(self.layers.values())).count

    @property
    def width(self) -> int:
        """d_k."""
        return len(next(iter(self.layers.values())).covariance)

    def save(self, folder: Path | str) -> Path:
        """Write the statistics to a new folder, as safetensors and JSON. They are the same to the bit when loaded.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for layer, moments in self.layers.items():
            if moments.mean is not None:
                tensors[f"{layer}.mean"] = moments.mean
            tensors |= {f"{layer}.{name}": block for name, block in packed(moments.covariance).items()}
        content = {
            "format": _FORMAT,
            "model_type": self.model_type,
            "blocks": self.blocks,
            "count": self.count,
            "layers": sorted(self.layers),
        }
        return write_folder(folder, _DOCUMENT, content, tensors)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """The statistics that ``save`` has written.

        Raises:
            InputError: the folder cannot be read, or does not hold statistics.
        """
        content, tensors = read_folder(folder, _DOCUMENT, _FORMAT, "statistics, which Statistics.save writes")
        layers = {}
        try:
            for layer in map(int, content["layers"]):
                found = {name.removeprefix(f"{layer}."): one for name, one in tensors.items() if _layer(name) == layer}
                mean = found.pop("mean", None)
                layers[layer] = KeyMoments(unpacked(found), mean, int(content["count"]))
            return cls(layers, str(content["model_type"]), content.get("blocks"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder} is damaged.", got=f"{type(error).__name__}: {error}") from None

    def of(self, layer: int, decoder: Decoder) -> KeyMoments:
        """The moments of ``layer`` on the decoder's device.

        Raises:
            InputError: there are none, or they belong to another model.
        """
        if layer not in self.layers:
            raise InputError(
                f"There are no statistics of layer {layer}.",
                got=f"layers {sorted(self.layers)}",
                remedy="collect_statistics(..., layers=[...]) with all edited layers",
            )
        model_type, blocks = decoder.layout.model_type, self.blocks or decoder.block_count
        if (self.model_type, self.width, blocks) != (model_type, decoder.key_width, decoder.block_count):
            raise InputError(
                "The statistics belong to another model.",
                got=f"{self.model_type} with {blocks} blocks and d_k {self.width:,}",
                expected=f"{model_type} with {decoder.block_count} blocks and d_k {decoder.key_width:,}",
                remedy="collect them with this model",
            )
        found = self.layers[layer]
        mean = None if found.mean is None else found.mean.to(decoder.device)
        return KeyMoments(found.covariance.to(decoder.device), mean, found.count)


def _layer(name: str) -> int:
    return int(name.partition(".")[0])


load_statistics = Statistics.load


def import_statistics(files: Mapping[int, Path | str] | Sequence[Path | str], model: Any, tokenizer: Any) -> Statistics:
    """C0 that the code of ROME, MEMIT or EasyEdit has made of a model, from its ``.npz`` files. None is unpickled.

    Args:
        files: a file for each layer: by layer, or as a list if their names say the layer, as in
            ``transformer.h.13.mlp.c_proj_float32_mom2_100000.npz``.
        model: the transformers model that they were made of.
        tokenizer: its fast tokenizer.

    Returns:
        The statistics. Their mean is known only if the files have it, which is unusual. Low-rank methods then need the
        setting ``method.low_rank.centred=False``.

    Raises:
        InputError: a file cannot be read, or belongs to another model; a name says no layer; the files differ in their
            number of tokens.
    """
    check_model(model, tokenizer)
    if not isinstance(files, Mapping):
        files = _by_layer([Path(one) for one in files])
    with opened(model, tokenizer) as decoder:
        numbers = edited_layers(list(files), decoder)
        found = {layer: read_second_moments(Path(files[layer]).expanduser(), decoder.key_width) for layer in numbers}
        counts = {one.count for one in found.values()}
        if len(counts) != 1:
            raise InputError(
                "The files were made from different numbers of tokens.",
                got=", ".join(f"{one.count:,} at layer {layer}" for layer, one in found.items()),
                expected="one number, or at least one file",
            )
        layers = {layer: KeyMoments(one.covariance, one.mean, one.count) for layer, one in found.items()}
        return Statistics(layers, decoder.layout.model_type, decoder.block_count)


def _by_layer(files: Sequence[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for file in files:
        layer = Origin.of(file).layer
        if layer is None or layer in found:
            raise InputError(
                f"The name of {file} says {'no layer' if layer is None else f'layer {layer}, which another file has'}.",
                expected="a name such as transformer.h.13.mlp.c_proj_float32_mom2_100000.npz",
                remedy="give a dict: {13: FILE, ...}",
            )
        found[layer] = file
    return found


class _Documents:
    """Texts in their order, as a source of a corpus. Each is taken once, so they may be a stream."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self._next = 0

    def recipe(self) -> dict[str, Any]:
        return {}

    def document(self, place: int) -> tuple[int, str] | None:
        assert place == self._next, "document_blocks reads each document once, in order"
        text = next(self._texts, None)
        if text is None:
            return None
        if not isinstance(text, str) or not is_unicode(text):
            raise InputError(
                f"Text {place} (counted from 0) is not a text.", got=repr(text)[:200], expected="an iterable of str"
            )
        self._next += 1
        return place, text


def collect_statistics(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    layers: Sequence[int] | None = None,
    tokens: int | None = None,
    method: str = "memit",
    choice: str | None = None,
    block_length: int = 128,
    progress: bool = True,
) -> Statistics:
    """Read the model's keys on a corpus and sum them up.

    One pass over the texts serves all layers, and stops at the last of them. The same tokens give the same statistics
    as a run of Factsmith, and every method that needs statistics can use them. The low-rank methods (``memit-f`` and
    others) need fewer tokens than d_k; ``memit`` needs more, of varied text.

    Args:
        model: a causal language model of transformers, unedited.
        tokenizer: its fast tokenizer.
        texts: documents, in their order. Reading stops when there are enough tokens.
        layers: the layers to edit, counted from 0; ``None`` for those that the choice gives ``method``.
        tokens: number of tokens to read; ``None`` for 10 d_k.
        method: a name in ``conf/method``, or a YAML file. It only decides which layers are the default.
        choice: a name in ``conf/model``, or a YAML file; ``None`` for the one whose path is the model's name.
        block_length: most tokens that the model reads together; a block never spans two documents.
        progress: whether to show a bar on stderr.

    Raises:
        InputError: the model, the texts or an argument cannot be used; there are too few tokens; a key is NaN or
            infinite.
    """
    check_model(model, tokenizer)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise InputError(
            f"The texts are {'one text' if isinstance(texts, str) else 'no texts'}.",
            got=repr(texts)[:200],
            expected="an iterable of documents",
            remedy="put it in a list" if isinstance(texts, str) else None,
        )
    if layers is None:
        layers = method_settings(model, method, layers=None, choice=choice, settings=None).layers
    with opened(model, tokenizer) as decoder:
        numbers = edited_layers(layers, decoder)
        if tokens is not None and (not isinstance(tokens, Integral) or tokens < 1):
            raise InputError("tokens must be a whole number, at least 1.", got=tokens)
        wanted = _MULTIPLES * decoder.key_width if tokens is None else tokens
        if not 2 <= block_length <= decoder.context_length:
            raise InputError(
                f"Blocks of {block_length} tokens cannot be used.", expected=f"2 to {decoder.context_length:,}"
            )
        blocks = document_blocks(_Documents(texts), tokenizer, first=0, length=block_length, per_document=None)
        products = torch.float32 if decoder.device.type == "cuda" else torch.float64
        sums = {layer: Moments(decoder.key_width, decoder.device, products) for layer in numbers}
        with bar("keys", wanted, shown=progress) as advance:
            for group in grouped(_keys(decoder, blocks, numbers, wanted, block_length), ROWS_PER_UPDATE):
                for layer, rows in group.items():
                    sums[layer].update(rows)
                advance(len(group[numbers[0]]))
        found = {layer: KeyMoments(one.covariance.cpu(), one.mean.cpu(), one.count) for layer, one in sums.items()}
        return Statistics(found, decoder.layout.model_type, decoder.block_count)


def _keys(
    decoder: Decoder, blocks: Iterator[Block], layers: Sequence[int], wanted: int, block_length: int
) -> Iterator[dict[int, Tensor]]:
    """The first ``wanted`` keys (n, d_k) of each layer, float32, in the passes that a run would make."""
    most = limits_of(decoder).most_tokens
    read = 0
    while read < wanted:
        unit = [block.tokens for block in itertools.islice(blocks, max(1, most // block_length))]
        if not unit:
            raise InputError(
                "The texts are too short.",
                got=f"{read:,} tokens",
                expected=f"{wanted:,} tokens",
                remedy=f"give more text, or tokens={read}",
            )
        try:
            found = block_keys(decoder, unit, layers, most_tokens=most, device=decoder.device)
        except NonFiniteKeysError as error:
            raise InputError(
                f"Layer {error.layer} gives keys that are NaN or infinite.",
                remedy="load the model in a wider data type: dtype=torch.float32",
            ) from None
        rows = {layer: one[: wanted - read].to(torch.float32) for layer, one in found.items()}
        read += len(rows[layers[0]])
        yield rows
