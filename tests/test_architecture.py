"""Contracts of the architecture: which module may import which, and how large a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = ["artifacts", "tasks", "flows", "api"]
"""Each may import those before it."""

TASK_ROOMS = [
    "tracking",
    "pipeline",
    "decoder",
    "model",
    "engine",
    "chat",
    "corpus",
    "keys",
    "covariance",
    "preservation",
    "facts",
    "values",
    "edit",
    "editors",
    "evaluation",
    "abilities",
    "ask",
    "ledger",
    "deltas",
    "export",
    "locate",
    "planning",
]
"""Rooms of ``tasks``, in the order of the data. Each may import those before it."""

FLOW_ROOMS = ["configuration", "reporting", "html", "flows", "sweeps", "exports", "services", "cli"]
"""Rooms of ``flows``, where ``flows`` stands for the flows themselves. Each may import those before it."""

SERVICES = {"prefect", "mlflow"}
STORE = {
    "store", "catalogue", "rows", "formats", "keys", "manifest", "checksums", "removal", "processes", "remote",
}  # fmt: skip
"""Modules of ``artifacts`` that read or write. All modules may use errors and recipes."""

MAY_USE_THE_STORE = {
    "tasks/pipeline/layers.py",
    "tasks/pipeline/page.py",
    "tasks/pipeline/stage.py",
    "tasks/pipeline/workspace.py",
    "tasks/planning/home.py",
    "tasks/planning/mirror.py",
    "tasks/planning/plan.py",
    "tasks/planning/preflight.py",
    "tasks/planning/run.py",
    "tasks/planning/statistics.py",
}
"""Modules besides stages that may use the store: parts of the stage decorator, and modules that look artifacts up."""

MAY_USE_MLFLOW = {
    "tasks/tracking/tracker.py",
    "tasks/tracking/runs.py",
    "tasks/tracking/dead_runs.py",
    "flows/services/mlflow_ui.py",
}

MOST_ENTRIES = 13
MOST_LINES = 330


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    """The module's name, without ``factsmith.``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` but those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from statements(child)


def imports(path: Path) -> set[str]:
    """Every module, or name in a module, that a file imports, wherever in it."""
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_stage(name: str) -> bool:
    return name == "stage" or name.endswith("_stage")


def task_room(path: Path) -> str | None:
    parts = path.relative_to(ROOT / "tasks").parts
    return parts[0] if len(parts) > 1 else None


def flow_room(name: str) -> str:
    """The room of ``flows.x.y``; the modules of the flows themselves make up one room."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOW_ROOMS else "flows"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_one_way(layer):
    above = LAYERS[LAYERS.index(layer) + 1 :]
    for path in files(layer):
        for name in imports(path):
            for other in above:
                assert not name.startswith(f"factsmith.{other}"), f"{path} imports {name}"
            assert name.split(".")[0] not in {*LAYERS, "conf"}, f"{path} imports {name}, not factsmith.{name}"


def test_every_room_is_in_the_order():
    assert {path.name for path in (ROOT / "tasks").iterdir() if (path / "__init__.py").is_file()} == set(TASK_ROOMS)
    rooms = {path.name for path in (ROOT / "flows").iterdir() if (path / "__init__.py").is_file()}
    assert rooms == set(FLOW_ROOMS) - {"flows"}


@pytest.mark.parametrize("room", TASK_ROOMS)
def test_task_rooms_import_one_way(room):
    allowed = TASK_ROOMS[: TASK_ROOMS.index(room) + 1]
    for path in files(f"tasks/{room}"):
        for name in imports(path):
            parts = name.split(".")
            if parts[:2] == ["factsmith", "tasks"] and len(parts) > 2:
                assert parts[2] in allowed, f"{path} imports {name}"


def test_flow_rooms_import_one_way():
    for path in files("flows"):
        room = flow_room(name_of(path))
        for name in imports(path):
            if name.startswith("factsmith.flows."):
                other = flow_room(name.removeprefix("factsmith."))
                assert FLOW_ROOMS.index(other) <= FLOW_ROOMS.index(room), f"{path} imports {name}"


def test_there_are_no_circles():
    names = {name_of(path): path for layer in LAYERS for path in files(layer)}
    graph = {
        name: {
            module.removeprefix("factsmith.")
            for module in imports(path)
            if module.removeprefix("factsmith.") in names and module.removeprefix("factsmith.") != name
        }
        for name, path in names.items()
    }
    while leaves := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"modules that import each other, or that such modules need: {sorted(graph)}"


@pytest.mark.parametrize("room", TASK_ROOMS)
def test_only_stages_use_prefect_and_the_store(room):
    for path in files(f"tasks/{room}"):
        place = path.relative_to(ROOT).as_posix()
        if is_stage(path.stem) or place in MAY_USE_THE_STORE:
            continue
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] != "prefect", f"{place} imports {name}"
            if parts[:2] == ["factsmith", "artifacts"]:
                lazily_loaded = room == "tracking"  # reads tables that MLflow keeps
                assert lazily_loaded or not STORE & set(parts[2:3]), f"{place} imports {name}"
            if room != "planning" and len(parts) > 3:
                assert not is_stage(parts[3]), f"{place} imports the stage {name}"


def test_mlflow_has_one_room():
    for layer in LAYERS:
        for path in files(layer):
            if path.relative_to(ROOT).as_posix() not in MAY_USE_MLFLOW:
                assert "mlflow" not in {name.split(".")[0] for name in imports(path)}, path


def test_the_store_needs_no_service():
    for path in files("artifacts"):
        assert not {name.split(".")[0] for name in imports(path)} & SERVICES, path


def test_the_python_api_needs_no_service():
    """Nothing that the API imports, directly or not, is a stage, a store, Prefect or MLflow."""
    modules = {name_of(path): path for layer in LAYERS for path in files(layer)}
    reached, waiting = set(), [name for name in modules if name.split(".")[0] == "api"]
    while waiting:
        name = waiting.pop()
        for imported in imports(modules[name]):
            assert imported.split(".")[0] not in SERVICES, f"{name} imports {imported}"
            module = imported.removeprefix("factsmith.")
            if module in modules and module not in reached:
                assert not is_stage(module.rpartition(".")[2]), f"{name} imports the stage {module}"
                assert module != "artifacts.store", f"{name} imports the store"
                assert not module.startswith("flows.") or module.startswith("flows.configuration"), module
                reached.add(module)
                waiting.append(module)
    assert "tasks.edit.batch" in reached


@pytest.mark.parametrize("room", TASK_ROOMS)
def test_a_room_says_what_comes_in_and_what_goes_out(room):
    text = ast.get_docstring(ast.parse((ROOT / "tasks" / room / "__init__.py").read_text()))
    assert text, room
    assert "In: " in text, room
    assert "Out: " in text, room


def test_rooms_and_modules_stay_small():
    for layer in LAYERS:
        for path in files(layer):
            assert len(path.read_text().splitlines()) <= MOST_LINES, path
        for init in (ROOT / layer).rglob("__init__.py"):
            ordered = (
                TASK_ROOMS + FLOW_ROOMS if init.parent.parent == ROOT else []
            )  # The rooms of a layer have an order.
            entries = [
                path
                for path in init.parent.iterdir()
                if path.suffix == ".py" or ((path / "__init__.py").exists() and path.name not in ordered)
            ]
            assert len(entries) - 1 <= MOST_ENTRIES, f"{init.parent}: {len(entries) - 1} entries"


def test_every_package_is_installed():
    """Setuptools finds packages below ``src``: each top-level folder needs its link, and each package its face."""
    for folder in [*LAYERS, "conf"]:
        link = ROOT / "src" / "factsmith" / folder
        assert link.is_symlink(), link
        assert link.resolve() == ROOT / folder
        for path in files(folder):
            assert (path.parent / "__init__.py").is_file(), path


def test_nothing_unsafe_is_called():
    for folder in [*LAYERS, "benchmarks"]:
        for path in files(folder):
            text = path.read_text()
            for word in ("import pickle", "torch.load(", "trust_remote_code=True", "0.0.0.0"):
                assert word not in text, f"{path}: {word}"
