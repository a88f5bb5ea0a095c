"""Hand over an edited model as a Hugging Face checkpoint."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from factsmith.artifacts.formats import load_json, save_json
from factsmith.artifacts.store import Artifact
from factsmith.tasks.edit.batch import applied
from factsmith.tasks.edit.stage import read_deltas
from factsmith.tasks.pipeline.resource_errors import shortages
from factsmith.tasks.pipeline.stage import Outcome, stage
from factsmith.tasks.pipeline.workspace import Bench

__all__ = ["export"]


@stage("export")
def export(bench: Bench, edit: Artifact, out: Path) -> Outcome[Path]:
    """Write the model with ``edit`` in it to ``out``; seen there only when it is whole.

    ``factsmith.json`` beside the weights says which edit it is and which facts it holds.
    """
    out = out.absolute()
    staging = out.with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    with shortages("Stage export", out.parent, bench.settings.runtime):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with applied(bench.decoder, read_deltas(edit)):
                bench.decoder.save(staging)
            bench.decoder.tokenizer.save_pretrained(staging)
            save_json(
                staging / "factsmith.json",
                {"edit": edit.address, "facts": load_json(edit.path / "requests.json")},
            )
            if out.exists():
                out.rmdir()
            staging.rename(out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    return Outcome(out, edit.address, True, {"bytes": size}, {"out": str(out)})
