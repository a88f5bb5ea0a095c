"""The folders mean what they say: imports run one way, and the science needs no services."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["artifacts", "tasks", "flows"]
"""Each may import those before it."""

SCIENCE = ["decoder"]
SERVICES = {"prefect", "mlflow"}
STORE = {"store", "rows", "formats", "keys", "manifest", "checksums", "locks", "removal"}
"""Modules of ``artifacts`` that read or write. Errors and digests are for everybody."""


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path in modules(layer):
        for name in imports(path):
            for other in above:
                assert not name.startswith(f"factsmith.{other}"), f"{path} imports {name}"
            assert name.split(".")[0] not in {*LAYERS, "conf"}, f"{path} imports {name}, not factsmith.{name}"


@pytest.mark.parametrize("package", SCIENCE)
def test_the_science_needs_no_service_and_no_store(package):
    for path in modules(f"tasks/{package}"):
        for name in imports(path):
            assert name.split(".")[0] not in SERVICES, f"{path} imports {name}"
            parts = name.split(".")
            assert parts[:2] != ["factsmith", "artifacts"] or not STORE & set(parts[2:]), f"{path} imports {name}"
            if parts[:2] == ["factsmith", "tasks"] and len(parts) > 2:
                assert parts[2] in {*SCIENCE, "settings"}, f"{path} imports the stage {name}"


@pytest.mark.parametrize("layer", ["artifacts"])
def test_the_store_needs_no_service(layer):
    for path in modules(layer):
        assert not {name.split(".")[0] for name in imports(path)} & SERVICES, path


def test_every_package_is_installed():
    """Setuptools finds the packages below ``src``, where each top-level folder has its link; a folder needs a face."""
    for folder in [*LAYERS, "conf"]:
        link = ROOT / "src" / "factsmith" / folder
        assert link.is_symlink(), link
        assert link.resolve() == ROOT / folder
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


def test_nothing_unsafe_is_called():
    for folder in [*LAYERS, "benchmarks"]:
        for path in modules(folder):
            text = path.read_text()
            for word in ("import pickle", "torch.load(", "trust_remote_code=True", "0.0.0.0"):
                assert word not in text, f"{path}: {word}"


def test_modules_stay_small():
    for folder in LAYERS:
        for path in modules(folder):
            assert len(path.read_text().splitlines()) <= 330, path
