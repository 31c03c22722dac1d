"""A real Docker engine with an image that holds nothing: the system's own folders are mounted into its containers, and
their `python` is a script of the test, which ends as the test wants."""

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

IMAGE = f"concord-test-empty:{os.getpid()}"  # another test session may be at it
SYSTEM = [path for path in ("/bin", "/lib", "/lib64", "/usr") if Path(path).exists()]

# Leaves whole outputs of any step with one output, as its container would: metrics, and the hash that DVC gives them.
WHOLE = r"""
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
    """A client of the engine, which has IMAGE as long as this lasts; skips the test where there is no engine."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine here")
    import docker

    client = docker.from_env()
    name, tag = IMAGE.split(":")
    nothing = b"\0" * 10240  # a tar without a file
    client.api.import_image_from_data(nothing, repository=name, tag=tag, changes=["ENV PATH=/tools:/bin:/usr/bin"])
    try:
        yield client
    finally:
        client.images.remove(IMAGE, force=True)
        client.close()


def write_python(folder: Path, script: str) -> Path:
    """`folder`/tools, to be mounted at /tools, with a `python` that is this shell script."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    python = tools / "python"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return tools
