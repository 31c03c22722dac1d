"""A real Docker engine with an empty image, for tests of containers.

The system's own folders are mounted into the containers, and their `python` is a shell script that a test provides.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker import DockerClient

IMAGE = f"concord-test-empty:{os.getpid()}"  # another test session may run at the same time
SYSTEM = [path for path in ("/bin", "/lib", "/lib64", "/usr") if Path(path).exists()]

# Writes complete outputs for any step with one output, as its container would: metrics, and their DVC hash.
COMPLETE_OUTPUTS = r"""
while [ "$1" != --out ]; do shift; done; out=$2; cd "$(dirname "$out")" && mkdir -p out
printf '{"rows": 3}' > out/metrics.json
hash=$(md5sum out/metrics.json | cut -c 1-32)
hash=$(printf '[{"md5": "%s", "relpath": "metrics.json"}]' "$hash" | md5sum | cut -c 1-32).dir
printf '{"artifacts": {"out": {"artifacts": [{"name": "out", "uri": "%s", "metadata": {"dvc_hash": "%s"}}]},
  "metrics": {"artifacts": [{"name": "metrics", "uri": "m", "metadata": {"rows": 3}}]}}}' "$out" "$hash" \
  > executor_output.json
"""


@contextmanager
def empty_image() -> Iterator["DockerClient"]:
    """Creates IMAGE and yields a client of the engine; skips the test if there is no engine."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine here")
    import docker

    client = docker.from_env()
    name, tag = IMAGE.split(":")
    empty_tar = b"\0" * 10240
    client.api.import_image_from_data(empty_tar, repository=name, tag=tag, changes=["ENV PATH=/tools:/bin:/usr/bin"])
    try:
        yield client
    finally:
        client.images.remove(IMAGE, force=True)
        client.close()


def write_python(folder: Path, script: str) -> Path:
    """Writes this shell script to `folder`/tools/python, and returns the folder to mount at /tools."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    python = tools / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return tools
