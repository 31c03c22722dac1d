"""What holds for every test."""

import os

from hypothesis import settings

# No deadline: a busy machine is no fault. In CI the same examples every time: a red run means that the change is red.
settings.register_profile("concord", deadline=None, derandomize="CI" in os.environ, print_blob=True)
settings.load_profile("concord")
