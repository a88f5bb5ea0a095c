"""C0 of other tools: from their files into the store, and from the store into their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from factsmith.artifacts.artifact import Artifact
from factsmith.artifacts.errors import InputError
from factsmith.artifacts.manifest import Manifest
from factsmith.artifacts.remote.mirror import StoredArtifacts
from factsmith.artifacts.store import Store
from factsmith.tasks.covariance.imported_stage import import_layer
from factsmith.tasks.covariance.second_moments import (
    Origin,
    SecondMoments,
    read_second_moments,
    write_second_moments,
)
from factsmith.tasks.covariance.stage import load_moments
from factsmith.tasks.decoder.placement import empty_model
from factsmith.tasks.model.checkpoint import Checkpoint
from factsmith.tasks.pipeline.progress import progress
from factsmith.tasks.planning.run import Run

__all__ = ["LayerStatistics", "export_statistics", "import_statistics", "projection_names"]


@dataclass(frozen=True)
class LayerStatistics:
    """C0 of a layer that was imported or exported.

    Attributes:
        layer: the layer.
        tokens: number of keys that C0 covers.
        model: name of the model.
        name: name of the statistics, or the corpus in the path of an exported file.
        address: address of the artifact.
        file: the file.
        new: whether it is new, in the store or in the folder.
    """

    layer: int
    tokens: int
    model: str
    name: str
    address: str
    file: str
    new: bool = True


def projection_names(checkpoint: Checkpoint) -> list[str]:
    """The name of the MLP output projection of each block, as transformers has it."""
    model = empty_model(checkpoint.config)
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(checkpoint.layout.projection(block))] for block in checkpoint.layout.blocks(model)]


# ------------------------------------------------------------------------------------------------------------ import


def import_statistics(
    run: Run, files: Sequence[Path], *, layer: int | None = None, name: str | None = None
) -> list[LayerStatistics]:
    """Import files of second moments for the model of ``run``.

    Args:
        run: a run whose model the files are of.
        files: the files, one for each layer.
        layer: the layer of the only file, in place of that in its name.
        name: the name of the statistics, in place of the corpus in the files' paths.

    Raises:
        InputError: a file cannot be used, is of another model or module, or its layer is not known.
    """
    store, model = run.workspace.store, run.model
    named = _named_layers(run, files, layer)
    for path in named.values():
        if not path.is_file():
            raise InputError(f"{path} does not exist.", expected="a file such as ..._float32_mom2_100000.npz")
    origins = {number: Origin.of(path) for number, path in named.items()}
    if name is None:
        corpora = {origin.corpus or "imported" for origin in origins.values()}
        if len(corpora) > 1:
            raise InputError(
                "These files are of several corpora.", got=", ".join(sorted(corpora)), remedy="import them apart"
            )
        (name,) = corpora
    store.check_writable()
    found = []
    with store.in_use(), progress("import", len(named)) as advance:
        for number, path in sorted(named.items()):

            def read(path: Path = path) -> SecondMoments:
                return read_second_moments(path, model.key_width)

            artifact, new = import_layer(store, model, name, number, path, read, origins[number].samples)
            tokens = int(artifact.summary["tokens"])
            found.append(LayerStatistics(number, tokens, model.name, name, artifact.address, str(path), new))
            advance(1)
    return found


def _named_layers(run: Run, files: Sequence[Path], layer: int | None) -> dict[int, Path]:
    """The file of each layer.

    Raises:
        InputError: a file's layer is not known or not in the model, or two files are of the same one.
    """
    model = run.model
    if not files:
        raise InputError("There is no file to import.", expected="FILE.npz, one for each layer")
    if layer is not None and len(files) > 1:
        raise InputError(
            "--layer is the layer of one file.", got=f"{len(files)} files", remedy="import them one by one"
        )
    named: dict[int, Path] = {}
    names = projection_names(model.checkpoint)
    for path in files:
        origin = Origin.of(path)
        number = origin.layer if layer is None else layer
        if number is None:
            raise InputError(
                f"The layer of {path} is not known.",
                expected="a name such as transformer.h.13.mlp.c_proj_float32_mom2_100000.npz",
                remedy="give --layer",
            )
        if number >= len(names):
            raise InputError(
                f"Model {model.name} has no layer {number}.", got=str(path), expected=f"0 to {len(names) - 1}"
            )
        if layer is None and origin.module != names[number]:
            raise InputError(
                f"{path} is not of the module that is edited.",
                got=origin.module,
                expected=names[number],
                remedy="choose the model that it was made with, or give --layer if only the name is another",
            )
        if number in named:
            raise InputError(f"Two files are of layer {number}.", got=f"{named[number]} and {path}")
        named[number] = path
    return named


# ------------------------------------------------------------------------------------------------------------ export


def export_statistics(
    run: Run, addresses: Sequence[str], out: Path, *, corpus: str, samples: int, model_name: str | None = None
) -> list[LayerStatistics]:
    """Write C0 of some layers as files that the code of ROME, MEMIT and EasyEdit reads.

    Args:
        run: a run whose model C0 is of.
        addresses: artifacts or series of C0, as ``Store.resolve`` takes them.
        out: the folder of statistics of the other tool.
        corpus: the corpus in the path.
        samples: the number of documents in the path and in the file, which that tool asks for.
        model_name: the model in the path; by default as memit has it.

    Raises:
        InputError: there is no such C0, it is of another model, or a file exists already or cannot be written.
    """
    store, model = run.workspace.store, run.model
    names = projection_names(model.checkpoint)
    called = model_name or run.settings.model.path.rstrip("/").replace("/", "_").lstrip("_")
    _check_part(called, "--model-name")
    _check_part(corpus, "--corpus")
    planned: dict[Path, Artifact] = {}
    for artifact in _covariances(store, addresses):
        _check_model(store, artifact, run)
        number = int(artifact.key["layer"])
        path = out / Origin(called, corpus, names[number], samples).path
        if path in planned:
            raise InputError(
                f"Several C0 of layer {number} have that name.",
                got=f"{planned[path].address} and {artifact.address}",
                remedy="name a series, or one artifact",
            )
        if path.exists():
            raise InputError(
                f"{path} exists already.", expected="a new file", remedy="remove it, or give another --out"
            )
        planned[path] = artifact
    found = []
    with store.in_use(), progress("export", len(planned)) as advance:
        for path, artifact in planned.items():
            tensors, tokens = load_moments(artifact, torch.device("cpu")), int(artifact.summary["tokens"])
            with _unwritable(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                moments = SecondMoments(tensors["covariance"], tokens, tensors.get("mean"))
                write_second_moments(path, moments, samples)
            number = int(artifact.key["layer"])
            found.append(LayerStatistics(number, tokens, model.name, corpus, artifact.address, str(path)))
            advance(1)
    return found


def _covariances(store: Store, addresses: Sequence[str]) -> list[Artifact]:
    """The artifacts of C0 that ``addresses`` name, by layer.

    Raises:
        InputError: there are none.
    """
    found: dict[str, Artifact] = {}
    for address in addresses:
        for place in store.resolve(address):
            kind = place.partition("/")[0]
            if kind != "covariance":
                raise InputError(
                    f"{address} is no C0.",
                    got=f"an artifact of the kind {kind}",
                    expected="covariance/..., as `factsmith store ls` shows it, or a run whose method uses C0",
                )
            if (artifact := store.at(place)) is not None:
                found[place] = artifact
    return sorted(found.values(), key=lambda one: int(one.key["layer"]))


def _check_model(store: Store, artifact: Artifact, run: Run) -> None:
    """
    Raises:
        InputError: C0 is of another model.
    """
    width, weights = int(artifact.summary["width"]), _weights(store, artifact.manifest)
    if width != run.model.key_width or weights not in (None, run.model.recipe.digest):
        raise InputError(
            f"{artifact.address} is of another model than {run.model.name}.",
            got=f"keys of {width} numbers",
            expected=f"{run.model.key_width} numbers, and these weights",
            remedy="choose the model that it was made with: model=...",
        )


def _weights(store: Store, manifest: Manifest) -> str | None:
    """The digest of the weights that C0 was made with; ``None`` if that is not known here any more."""
    known = StoredArtifacts(store)
    sources = [store.manifest(address) or known.left_out(address) for address in manifest.lineage[:1]]
    for one in (manifest, *sources):
        if one is not None and "model" in (inputs := one.recipe["series"]["inputs"]):
            return str(inputs["model"])
    return next((address.partition("/")[2] for address in manifest.lineage if address.startswith("model/")), None)


def _check_part(name: str, option: str) -> None:
    """
    Raises:
        InputError: ``name`` cannot be a part of a path.
    """
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise InputError(f"{option} is a part of a path.", got=repr(name), expected="a name without slashes")


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    """
    Raises:
        InputError: ``path`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written.", got=error.strerror or error, remedy="give another --out"
        ) from None
