"""The repository itself: what may be committed, and which room of the package may import which."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "monai_segloss"

# A room imports only rooms above it. A package whose modules are listed one by one takes no other
# module; any other package is one room, whatever it holds.
ROOMS = (
    "version",
    "files",
    "distance",
    "maps",
    "map_files",
    "transforms",
    "losses.base",
    "losses.distribution",
    "losses.region",
    "losses.boundary",
    "losses.compound",
    "losses.deep_supervision",
    "losses.taxonomy",
    "losses",
    "schedule",
    "datasets",
    "precompute",
    "metrics",
    "handlers",
    "report",
    "bundle_parts",
    "bundle",
    "demo",
    "auto3dseg",
    "__main__",
)

MAX_BYTES = 2 * 1024**2

# An absolute path of somebody's machine: not the tail of a longer path or of a URL, and in a
# notebook's or a program's text also right behind an escaped line end.
MACHINE_PATH = re.compile(
    r"(?:(?<![\w.~$)}*/-])|(?<=\\[nrt])|(?<=file://))/(?:work|farm|root|home)/"
)


# What is committed


def tracked_files() -> list[Path]:
    """The files git tracks that are still there; skips the test outside a checkout."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str | None:
    """The text of a file, None if it is not a text file."""
    data = path.read_bytes()
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def test_no_machine_path_is_tracked() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked_files()
        for number, line in enumerate((text_of(path) or "").splitlines(), start=1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "absolute paths of a machine:\n" + "\n".join(found)


@pytest.mark.parametrize("before", ["", " ", '"', "'", "(", "=", ":", r"\n", "file://"])
def test_machine_path_is_recognised(before: str) -> None:
    assert MACHINE_PATH.search(before + "/" + "home/someone/data")


@pytest.mark.parametrize(
    "before", ["https://example.org", "https://example.org:80", "docs", "..", "~", "${HOME}", "src"]
)
def test_url_or_relative_path_is_no_machine_path(before: str) -> None:
    assert not MACHINE_PATH.search(before + "/" + "home/page")


def test_no_large_file_is_tracked() -> None:
    large = {
        str(path.relative_to(ROOT)): size
        for path in tracked_files()
        if (size := path.stat().st_size) > MAX_BYTES
    }
    assert not large, f"tracked files of more than {MAX_BYTES} bytes: {large}"


def unimplemented(path: Path) -> list[int]:
    """The lines of a Python file that raise NotImplementedError."""
    lines = []
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(raised, ast.Name) and raised.id == "NotImplementedError":
                lines.append(node.lineno)
    return lines


def test_nothing_is_left_unimplemented() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in tracked_files()
        if path.suffix == ".py"
        for line in unimplemented(path)
    ]
    assert not found, f"write it, or make it an abstract method: {found}"


def test_unimplemented_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("raise NotImplementedError\nraise NotImplementedError('x')\nraise ValueError\n")
    assert unimplemented(path) == [1, 2]


# Which room imports which


class Import(NamedTuple):
    """One import of the package inside the package, modules named without the package's name."""

    source: str
    line: int
    target: str  # "" is the package's root
    name: str | None  # the name taken from the target, None where the target itself is imported


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules_of(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name inside it; the root's __init__ is exempt."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            modules[name] = path
    return modules


def imports_of(module: str, modules: dict[str, Path], package: str) -> Iterator[Import]:
    """What a module imports from its own package, wherever in the module the import stands."""
    prefix = package + "."
    # The package that a relative import starts from: the module itself if it is a package.
    here = [package, *module.split(".")]
    if modules[module].name != "__init__.py":
        here.pop()
    for node in ast.walk(parse(modules[module])):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == package or alias.name.startswith(prefix):
                    target = alias.name.removeprefix(package).removeprefix(".")
                    yield Import(module, node.lineno, target, None)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            full = ".".join([*base, *([node.module] if node.module else [])])
            if full != package and not full.startswith(prefix):
                continue
            origin = full.removeprefix(package).removeprefix(".")
            for alias in node.names:
                inside = f"{origin}.{alias.name}".removeprefix(".")
                if inside in modules:
                    yield Import(module, node.lineno, inside, None)
                else:
                    yield Import(module, node.lineno, origin, alias.name)


def room_of(module: str) -> str | None:
    """The room a module belongs to, None if the list of rooms does not know it."""
    if module in ROOMS:
        return module
    head = module.split(".")[0]
    listed_one_by_one = any(room.startswith(head + ".") for room in ROOMS)
    return head if head in ROOMS and not listed_one_by_one else None


def unknown_modules(package: Path) -> list[str]:
    return [module for module in modules_of(package) if room_of(module) is None]


def wrong_imports(package: Path) -> list[str]:
    """Each import of the package's root, or of a room that is not above the importing one."""
    modules = modules_of(package)
    wrong = []
    for module in modules:
        room = room_of(module)
        for found in imports_of(module, modules, package.name):
            where = f"{module}, line {found.line}"
            if not found.target:
                if found.name != "__version__":
                    wrong.append(f"{where}: imports the package's root; name the room instead")
                continue
            target = room_of(found.target)
            if room is None or target is None or target == room:
                continue  # unknown modules fail a test of their own
            if ROOMS.index(target) > ROOMS.index(room):
                wrong.append(f"{where}: {room} imports {target}, which is below it")
    return wrong


def import_cycle(package: Path) -> list[str] | None:
    """A chain of modules that import one another in a circle, None if there is none."""
    modules = modules_of(package)
    graph = {
        module: sorted(
            {found.target for found in imports_of(module, modules, package.name)} & modules.keys()
        )
        for module in modules
    }
    done: set[str] = set()

    def visit(module: str, chain: list[str]) -> list[str] | None:
        if module in chain:
            return [*chain[chain.index(module) :], module]
        if module in done:
            return None
        for target in graph[module]:
            if cycle := visit(target, [*chain, module]):
                return cycle
        done.add(module)
        return None

    for module in graph:
        if cycle := visit(module, []):
            return cycle
    return None


def test_every_module_has_a_room() -> None:
    unknown = unknown_modules(ROOT / PACKAGE)
    assert not unknown, (
        f"{unknown}: in no room. Add each to ROOMS in tests/test_repository.py, and to the list in "
        "CONTRIBUTING.md, below everything it imports"
    )


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = wrong_imports(ROOT / PACKAGE)
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_one_another() -> None:
    cycle = import_cycle(ROOT / PACKAGE)
    assert cycle is None, " -> ".join(cycle or [])


def test_contributing_lists_the_same_rooms() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.search(r"<!-- rooms -->(.*?)<!-- /rooms -->", text, flags=re.DOTALL)
    assert rooms is not None
    assert tuple(re.findall(r"`([\w.]+)`", rooms.group(1))) == ROOMS


def make_package(root: Path, files: dict[str, str]) -> Path:
    package = root / "toy"
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("maps.py", "from toy import distance"),
        ("maps.py", "from toy.distance import x"),
        ("maps.py", "import toy.distance as d"),
        ("maps.py", "from . import distance"),
        ("maps.py", "from toy import __version__"),
        ("maps.py", "import numpy, toyota"),
        ("losses/__init__.py", "from toy.losses.taxonomy import x"),
        ("losses/__init__.py", "from .base import x"),
        ("losses/region.py", "from toy.losses import base"),
        ("losses/region.py", "from ..maps import x"),
        ("datasets/toy.py", "from toy.losses import Loss"),
    ],
)
def test_import_from_above_passes(module: str, text: str, tmp_path: Path) -> None:
    files = {"distance.py": "", "losses/__init__.py": "", "losses/base.py": "", module: text}
    package = make_package(tmp_path, files)
    assert wrong_imports(package) == []
    assert unknown_modules(package) == []
    assert import_cycle(package) is None


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("distance.py", "from toy import maps"),
        ("distance.py", "from toy.maps import x"),
        ("distance.py", "def f():\n    import toy.maps"),
        ("distance.py", "from . import maps"),
        ("distance.py", "from .losses.base import x"),
        ("maps.py", "from toy import PublicName"),
        ("maps.py", "import toy"),
        ("maps.py", "from . import PublicName"),
        ("losses/base.py", "from toy.losses import Loss"),
        ("losses/base.py", "from . import Loss"),
        ("losses/region.py", "from .compound import x"),
        ("losses/region.py", "from ..schedule import x"),
    ],
)
def test_import_from_below_or_of_the_root_is_found(module: str, text: str, tmp_path: Path) -> None:
    package = make_package(
        tmp_path, {"maps.py": "", "losses/__init__.py": "", "losses/compound.py": "", module: text}
    )
    assert len(wrong_imports(package)) == 1


def test_unknown_module_and_cycle_are_found(tmp_path: Path) -> None:
    package = make_package(
        tmp_path,
        {
            "losses/other.py": "",
            "somewhere/x.py": "",
            "auto3dseg/a.py": "from .b import x",
            "auto3dseg/b.py": "from toy.auto3dseg import a",
        },
    )
    assert unknown_modules(package) == ["losses.other", "somewhere.x"]
    assert import_cycle(package) == ["auto3dseg.a", "auto3dseg.b", "auto3dseg.a"]
