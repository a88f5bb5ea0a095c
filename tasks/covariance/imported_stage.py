"""C0 that other tools have made: into the store, and from there into a run, in place of the corpus's keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from factsmith.artifacts.artifact import Artifact, Draft
from factsmith.artifacts.errors import InputError, closest
from factsmith.artifacts.formats import save_tensors
from factsmith.artifacts.recipe import Series
from factsmith.artifacts.store import Store
from factsmith.tasks.corpus.settings import ANY_STATISTICS
from factsmith.tasks.covariance.packing import packed
from factsmith.tasks.covariance.second_moments import SecondMoments
from factsmith.tasks.covariance.stage import TENSORS, Covariances
from factsmith.tasks.model.model import Model
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Workspace

__all__ = ["Imported", "find_imported", "import_layer", "imported", "imported_series"]

_ROLE = "imported"
"""The parameter of a series of imported C0: its name."""


def imported_series(model: str, name: str) -> Series:
    """The series of C0 that was imported as ``name`` for a model, given by the digest of its weights."""
    return Series("covariance", 1, {_ROLE: name}, {"model": model})


@dataclass(frozen=True)
class Imported:
    """Imported C0 of the edited layers.

    Attributes:
        name: the name of the statistics.
        layers: the artifact of each layer.
    """

    name: str
    layers: Mapping[int, Artifact]

    @property
    def count(self) -> int:
        """The tokens that C0 covers, of the layer with the fewest."""
        return min(int(one.summary["tokens"]) for one in self.layers.values())

    @property
    def has_mean(self) -> bool:
        """Whether the mean key of every layer is known too."""
        return all(one.summary["mean"] for one in self.layers.values())

    @property
    def series(self) -> Series:
        """What names C0 of all these layers, in the recipes of what is made from them."""
        return Series("covariance", 1, {"layers": {str(n): one.digest for n, one in sorted(self.layers.items())}})


def import_layer(
    store: Store,
    model: Model,
    name: str,
    layer: int,
    path: Path,
    read: Callable[[], SecondMoments],
    samples: int | None,
) -> tuple[Artifact, bool]:
    """Put C0 of a layer into the store. Returns its artifact, and whether it is new.

    Args:
        store: the store.
        model: the model that it was made with.
        name: the name of the statistics.
        layer: the layer.
        path: the file.
        read: reads it.
        samples: number of documents, if it is known.

    Raises:
        InputError: the store has another C0 of that layer under the same name.
    """
    series = imported_series(model.recipe.digest, name)
    recipe = series.member(layer=layer, sha256=store.checksums.sha256(path))
    for one in store.members(series):
        if one.key["layer"] == layer and one.digest != recipe.digest:
            raise InputError(
                f"Layer {layer} of {name!r} has been imported from another file.",
                got=f"{path}, and earlier {one.summary['file']}",
                remedy=f"give --name, or remove the earlier one: factsmith store rm {one.address[:23]}",
            )

    def build(draft: Draft) -> None:
        moments = read()
        mean = {} if moments.mean is None else {"mean": moments.mean}
        save_tensors(draft.path / TENSORS, {**mean, **packed(moments.covariance)})
        draft.summary = {
            "layer": layer,
            "tokens": moments.count,
            "width": len(moments.covariance),
            "mean": moments.mean is not None,
            "imported": name,
            "file": path.name,
            "samples": samples,
        }

    return store.get_or_build(recipe, build)


def find_imported(store: Store, model: Model, layers: Sequence[int], wanted: str) -> Imported:
    """The imported C0 of some layers of a model.

    Args:
        store: the store.
        model: the model.
        layers: the edited layers.
        wanted: the name of the statistics, or ``ANY_STATISTICS`` for the only ones of this model.

    Raises:
        InputError: there are none, or more than one; or a layer is missing, which is named.
    """
    names = {
        str(manifest.recipe["series"]["parameters"][_ROLE])
        for manifest in filter(None, store.manifests("covariance").values())
        if manifest.recipe["series"]["inputs"] == {"model": model.recipe.digest}
        and _ROLE in manifest.recipe["series"]["parameters"]
    }
    if not names:
        raise InputError(
            f"No statistics have been imported for model {model.name}.",
            got=f"corpus.statistics={wanted}",
            remedy="import them with `factsmith import-stats FILE.npz... model=...`, or fetch what somebody else has "
            "imported with `factsmith store pull`",
        )
    if wanted == ANY_STATISTICS and len(names) > 1:
        raise InputError(
            f"Several statistics have been imported for model {model.name}.",
            got=", ".join(sorted(names)),
            remedy="set corpus.statistics to one of them",
        )
    name = names.pop() if wanted == ANY_STATISTICS else wanted
    if name not in names and wanted != ANY_STATISTICS:
        raise InputError(
            f"No statistics {wanted!r} have been imported for model {model.name}.",
            got=f"corpus.statistics={wanted}",
            remedy=closest(wanted, names),
        )
    found = {int(one.key["layer"]): one for one in store.members(imported_series(model.recipe.digest, name))}
    if missing := [layer for layer in layers if layer not in found]:
        raise InputError(
            f"The statistics {name!r} of model {model.name} lack {_layers(missing)}.",
            got=_layers(sorted(found)),
            expected=_layers(layers),
            remedy="import these too, or set method.layers to some that are there",
        )
    return Imported(name, {layer: found[layer] for layer in layers})


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(map(str, layers))}"


@stage("covariance")
def imported(workspace: Workspace, model: Model, found: Imported) -> Outcome[Covariances]:
    """The imported C0 of every edited layer of ``model``."""
    address = imported_series(model.recipe.digest, found.name).address
    size = sum(artifact.manifest.size for artifact in found.layers.values())
    return Outcome(
        Covariances(found.series, found.layers),
        address,
        False,
        {"tokens": found.count, "bytes": size},
        {"imported": found.name},
    )
