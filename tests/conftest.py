"""Options and fixtures; everything else that tests share is in tests/helpers/."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.helpers")

from tests.helpers.clusters import ClusterServer, Node, cluster
from tests.helpers.servers import KILL, Server
from tests.helpers.tools import processes_naming

# Settings of the user who runs the tests must reach neither the servers nor their clients.
for name in (
    *("PORT", "HOST", "BOOKINGS_DB", "WORKERS", "ALLOWED_HOSTS"),
    *("PYTEST_ADDOPTS", "http_proxy", "all_proxy", "ALL_PROXY"),
):
    os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutate-seconds",
        type=float,
        default=5,
        help="how long to try mutants of the corpus (default: %(default)s)",
    )
    parser.addoption(
        "--mutate-seed",
        type=int,
        default=1,
        help="seed that selects the mutants and their order (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "both_stores: run the test on SQLite and once more on an rqlite node"
    )
    config.addinivalue_line("markers", "on_rqlite: run the test on an rqlite node alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # None is the parameter of unmarked tests, which thus share the SQLite server.
    for marker, stores in (("both_stores", [None, "rqlite"]), ("on_rqlite", ["rqlite"])):
        if metafunc.definition.get_closest_marker(marker):
            ids = [store or "sqlite" for store in stores]
            metafunc.parametrize("store", stores, ids=ids, indirect=True, scope="module")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the rqlite cases of each module last, so that each store's server starts only once."""
    modules = {path: number for number, path in enumerate(dict.fromkeys(i.path for i in items))}
    items.sort(key=lambda item: (modules[item.path], _store_of(item) == "rqlite"))


def _store_of(item: pytest.Item) -> str | None:
    return item.callspec.params.get("store") if hasattr(item, "callspec") else None


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> str:
    """The store of `server` and `shared_server`: sqlite, or what the test's marker says."""
    return getattr(request, "param", None) or "sqlite"


@pytest.fixture(scope="session")
def rqlite_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One node for all tests marked `both_stores` or `on_rqlite`."""
    with cluster(tmp_path_factory.mktemp("node")) as nodes:
        yield nodes[0]


@pytest.fixture(scope="module")
def shared_server(
    request: pytest.FixtureRequest, store: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that the tests of a module share; each test uses tenants and keys of its own."""
    base = tmp_path_factory.mktemp("shared")
    if store == "sqlite":
        started = Server(base)
    else:
        started = ClusterServer(base, request.getfixturevalue("rqlite_node"))
    with contextlib.closing(started):
        if store == "rqlite":
            started.execute("DELETE FROM bookings", "DELETE FROM cancellations")
        yield started


@pytest.fixture
def server(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> Iterator[Server]:
    """A server for this test alone; on rqlite the shared one. The tables are empty."""
    if store == "rqlite":
        shared = request.getfixturevalue("shared_server")
        shared.execute("DELETE FROM bookings", "DELETE FROM cancellations")
        yield shared
        return
    with contextlib.closing(Server(tmp_path)) as started:
        yield started


@pytest.fixture
def temporary_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files of a command. Processes that still use it are killed."""
    folder = tmp_path / "t"
    folder.mkdir()
    yield folder
    for process in processes_naming(folder) if shutil.which("ps") else ():
        os.kill(process, KILL)
