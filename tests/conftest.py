"""What holds for every test."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.services import Services

# No deadline: a busy machine is no fault. In CI the same examples every time: a red run means that the change is red.
settings.register_profile("concord", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("concord")


@pytest.fixture(autouse=True, scope="module")
def import_path_kept() -> Iterator[None]:
    """MLflow puts the code of a model that it loads on the import path; new processes would take its copy for ours."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Services]":
    """PostgreSQL, SeaweedFS and MLflow's server, started once for all tests. What a test writes there, others see."""
    from tests.services import services

    try:
        with services(tmp_path_factory.mktemp("services")) as running:
            yield running
    except FileNotFoundError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(str(error))
