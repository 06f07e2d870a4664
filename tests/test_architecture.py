"""Rooms import only rooms above them, the library never the workbench, and docs/architecture.md shows what is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    # Top to bottom: a room may import itself and the rooms before it. `rsna_lab` may import all of `rsna_kit`, too.
    "rsna_kit": [
        "runtime",
        "config",
        "competition",
        "dicom",
        "imaging",
        "data",
        "models",
        "training",
        "scoring",
        "session",
        "recipes",
        "cli",
        "__main__",
    ],
    "rsna_lab": ["analysis", "report", "phantom", "recipes", "kaggle", "cli", "__main__"],
}
# Rooms side by side that have nothing to say to each other although the order would allow it.
STRANGERS = {
    *(("scoring", room) for room in ("dicom", "imaging", "data", "models", "training")),
    ("dicom", "competition"),
    ("models", "dicom"),
    ("models", "imaging"),
    ("training", "competition"),
    ("training", "dicom"),
    ("training", "imaging"),
}
HEAVY = {"tensorflow", "keras", "keras_cv", "albumentations", "nvidia", "jax", "torch", "sklearn", "matplotlib"}
# What must work with nothing but numpy, pandas and scipy.
BARE = ["runtime", "config", "competition", "scoring"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "kernels").rglob("*.py"))]


def room_of(path: Path) -> tuple[str, str]:
    package, first = path.relative_to(ROOT).parts[:2]
    return package, first.removesuffix(".py")


def imports(path: Path, top_only: bool = False) -> list[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem != "__init__"], ids=str)
def test_imports_point_up_the_list(path: Path) -> None:
    package, room = room_of(path)
    for name in imports(path):
        if not name.startswith(("rsna_kit.", "rsna_lab.")):
            continue
        target = name.split(".")[:2]
        if target == ["rsna_kit", "__version__"] or (package == "rsna_lab" and target[0] == "rsna_kit"):
            continue
        assert target[0] == package, f"{path}: {package} must not import {name}"
        rooms = PACKAGES[package]
        assert target[1] in rooms, f"{path}: {target[1]} is no room of {package}"
        assert rooms.index(target[1]) <= rooms.index(room), f"{path} ({room}) imports {name}, which lies further down"
        assert (room, target[1]) not in STRANGERS, f"{path}: {room} has no business with {target[1]}"


def test_there_are_no_import_cycles() -> None:
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in MODULES}
    found = {name: imports(path) for name, path in names.items()}
    graph = {n: {m for m in names for i in found[n] if i == m or i.startswith(m + ".")} for n in names}
    graph = {n: {m for m in edges if not m.endswith("__init__") and m != n} for n, edges in graph.items()}
    while leaves := [n for n, edges in graph.items() if not edges]:
        graph = {n: edges - set(leaves) for n, edges in graph.items() if n not in leaves}
    assert not graph, f"import cycle among {sorted(graph)}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.stem == "__init__"], ids=str)
def test_init_files_import_nothing(path: Path) -> None:
    assert imports(path) == []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_heavy_packages_are_imported_inside_functions(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_modules_fit_in_a_head(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= (80 if "kernels" in path.parts else 320), f"{path} has {lines} lines"
    assert path.stem not in {"utils", "helpers", "common", "misc", "types"}


def test_scripts_are_not_imported_by_the_library() -> None:
    for path in MODULES:
        assert not any(name.split(".")[0] in {"scripts", "kernels", "benchmarks", "tests"} for name in imports(path))


@pytest.mark.parametrize("room", BARE)
def test_works_on_bare_numpy_pandas_and_scipy(room: str) -> None:
    """Every module of the room imports while all but numpy, pandas, scipy and the standard library is blocked."""
    place = ROOT / "rsna_kit" / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in files]
    blocked = sorted(HEAVY | {"pydicom", "cv2", "imagecodecs", "dicomsdl", "h5py", "joblib"})
    code = f"import sys\nfor m in {blocked}: sys.modules[m] = None\n" + "\n".join(f"import {m}" for m in modules)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_submission_door_loads_no_framework() -> None:
    code = "import sys, rsna_kit.competition.submission, rsna_kit.recipes.infer, rsna_kit.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY


def test_the_architecture_page_shows_every_room_and_module() -> None:
    """docs/architecture.md lists the rooms in their order and every module, and names nothing that is gone."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rooms = re.findall(r"^### `(\w+/\w+)(?:/|\.py)`", page, flags=re.MULTILINE)
    assert rooms == [f"{package}/{room}" for package in PACKAGES for room in PACKAGES[package][:-1]]
    named = set(re.findall(r"^(?:\| |### )`([\w/]+\.py)`", page, flags=re.MULTILINE))
    for room, modules in re.findall(r"(?ms)^### `(rsna_lab/\w+/)`$.*?^Modules: (.*?)\n\n", page):
        named |= {room + module for module in re.findall(r"`([\w/]+\.py)`", modules)}
    there = {str(p.relative_to(ROOT)) for p in MODULES if not p.stem.startswith("__")}
    assert named == there, f"missing on the page: {there - named}; gone from the house: {named - there}"


def test_the_architecture_page_names_functions_that_exist() -> None:
    """Every `module.name` named on the page can be looked up (without importing heavy packages)."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    made_by = re.findall(r"`(rsna_(?:kit|lab)(?:\.\w+)+)\.(\w+)`", page)
    assert len(made_by) >= 11
    for module, name in made_by:
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{module} is gone"
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{module}.{name} is gone"


def test_the_house_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    size = importlib.import_module("size")
    figures = size.measure()
    assert {name: figures[name] for name, limit in size.LIMITS.items() if figures[name] > limit} == {}
