"""The source: standard library only, no import cycles, and which module imports what."""

from __future__ import annotations

import ast
import re
import sys

import pytest

from tests.helpers.servers import ROOT

PACKAGE = ROOT / "bookings"
# Every module of the product by name. A package has the name of its folder.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).replace(".__init__", ""): path
    for path in (ROOT / "run.py", *sorted(PACKAGE.rglob("*.py")))
}
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


def imports_of(module: str) -> set[str]:
    """Return the modules that a module imports anywhere, including inside functions."""
    path = MODULES[module]
    package = path.parent.relative_to(ROOT).parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                found.add(submodule if submodule in MODULES else origin)
    return found


def is_below(module: str, *packages: str) -> bool:
    """Return whether the module is one of these or is in one of these packages."""
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("module", MODULES)
def test_only_standard_library_is_imported(module: str) -> None:
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:
        pytest.skip("this Python does not list its standard library")
    assert {name.partition(".")[0] for name in imports_of(module)} <= {*standard, "bookings"}


def test_imports_have_no_cycle() -> None:
    remaining = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    while remaining:
        leaves = {name for name, imports in remaining.items() if not imports & remaining.keys()}
        assert leaves, f"each of these imports another one: {sorted(remaining)}"
        remaining = {name: found for name, found in remaining.items() if name not in leaves}


@pytest.mark.parametrize(
    ("importers", "forbidden"),
    [
        (["bookings.api"], ["bookings.server", "sqlite3", "socket"]),
        (
            ["bookings.stores"],
            [f"bookings.{name}" for name in ("server", "api", "fields", "values", "problems")],
        ),
        (
            ["bookings.fields", "bookings.values", "bookings.strict_json"],
            ["bookings.stores", "sqlite3"],
        ),
        (["bookings.server"], ["bookings.fields", "bookings.values", "sqlite3"]),
        (["bookings.problems"], ["bookings"]),
    ],
    ids=lambda names: " ".join(names).replace("bookings.", ""),
)
def test_module_does_not_import(importers: list[str], forbidden: list[str]) -> None:
    modules = [module for module in MODULES if is_below(module, *importers)]
    assert len(modules) >= len(importers)
    found = {(m, name) for m in modules for name in imports_of(m) if is_below(name, *forbidden)}
    assert found == set()


def test_http1_imports_problems_and_no_socket() -> None:
    imports = imports_of("bookings.server.http1")
    assert {name for name in imports if is_below(name, "bookings")} == {"bookings.problems"}
    assert not any(is_below(name, "socket", "select", "ssl") for name in imports)


@pytest.mark.parametrize(
    ("library", "importers"),
    [
        (
            "sqlite3",
            {
                *("prove_parts", "stores.connections", "stores.creation", "stores.files"),
                *("stores.rqlite_restore", "stores.decisions", "stores.restoration"),
                *("stores.schema", "stores.snapshot", "stores.sqlite"),
            },
        ),
        (
            "socket",
            {f"server.{n}" for n in ("connection", "server", "unix_socket", "worker", "workers")},
        ),
        ("socketserver", set()),
        ("http", {"prove_parts", "server.http1", "server.server", "stores.rqlite_client"}),
        (
            "json",
            {
                *("api", "prove_parts", "show", "strict_json"),
                *("stores.rqlite_restore", "stores.rqlite_client"),
            },
        ),
    ],
)
def test_library_is_imported_only_by(library: str, importers: set[str]) -> None:
    found = {name for name in MODULES if any(is_below(i, library) for i in imports_of(name))}
    assert found == {f"bookings.{name}" for name in importers}


@pytest.mark.parametrize("package", PACKAGES)
def test_docstring_of_package_lists_its_modules(package: str) -> None:
    docstring = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))) or ""
    described = set(re.findall(r"^    (\w+)/?  ", docstring, re.MULTILINE))
    inside = {name for name in MODULES if name.rpartition(".")[0] == package}
    assert described <= {name.rpartition(".")[2] for name in inside}
    for name in inside:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", docstring), name


def test_modules_of_request_path_import_only_from_below() -> None:
    """The order is that of the list in the docstring of the package."""
    docstring = ast.get_docstring(ast.parse(MODULES["bookings"].read_text(encoding="utf-8"))) or ""
    order = [f"bookings.{name}" for name in re.findall(r"^    (\w+)/?  ", docstring, re.MULTILINE)]
    assert len(order) >= 7
    for number, importer in enumerate(order):
        for module in (name for name in MODULES if is_below(name, importer)):
            above = [name for name in imports_of(module) if is_below(name, *order[:number])]
            assert above == [], module


def test_every_module_starts_with_docstring() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), module
