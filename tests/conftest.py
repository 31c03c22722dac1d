"""Fixtures and settings of all tests."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.missing import without

# A test process a core: threads of their own would only stand in each other's way. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from tests.support.services import Services

# No deadline: machines may be busy. CI uses the same examples in every run, so a failure is caused by the change.
settings.register_profile("concord", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("concord")


@pytest.fixture(autouse=True, scope="module")
def signals_not_ignored() -> None:
    """Lets the tests' processes be stopped where the tests themselves run in the background, which ignores signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="module")
def import_path_kept() -> Iterator[None]:
    """Restores the import path: MLflow adds the code of each model that it loads, which new processes would import."""
    before = list(sys.path)
    yield
    sys.path[:] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the longest tests first, so that no process starts one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Services]":
    """PostgreSQL, SeaweedFS and MLflow's server, once per process. Tests share what they write there."""
    from tests.support.services import services

    try:
        with services(tmp_path_factory.mktemp("services")) as running:
            yield running
    except FileNotFoundError as error:
        without(str(error))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def image(shared_folder: Path) -> str:
    """The tag of the project's cpu image, built once for all processes; needs a Docker engine."""
    from tests.support import containers

    if containers.engine() is None:
        without("no Docker engine answers: docker/engine installs and starts one")
    return containers.image(shared_folder)


@pytest.fixture(scope="session")
def composition(image: str, shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The services of docker/compose.yaml in containers, once per process; the environment for docker/services."""
    from tests.support.containers import composed

    with composed(tmp_path_factory.mktemp("composed"), shared_folder) as environment:
        yield environment


@pytest.fixture
def composed(composition: dict[str, str]) -> "Services":
    """The same, as tests use them."""
    from tests.support.containers import services_of

    return services_of(composition)
