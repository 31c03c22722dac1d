"""What holds for every test."""

import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline: a busy machine is no fault. In CI the same examples every time: a red run means that the change is red.
settings.register_profile("concord", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("concord")


@pytest.fixture(autouse=True, scope="module")
def import_path_kept() -> Iterator[None]:
    """MLflow puts the code of a model that it loads on the import path; new processes would take its copy for ours."""
    before = list(sys.path)
    yield
    sys.path[:] = before
