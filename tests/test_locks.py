"""Everything that is installed has a hash or digest: the locks, what `make` accepts, and the images' bases."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.locks import CPU, CUDA, DEV, IMAGE, LOCKS, ROOT, pins

SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_one_version_and_its_hashes(lock: str) -> None:
    locked = pins(lock)
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert len(locked) == text.count("==") - sum(line.count("==") for line in re.findall(" ; .*", text))
    for pin in locked:
        assert pin.version
        assert pin.hashes, f"{pin.requirement} has no hash"
        assert all(SHA256.fullmatch(digest) for digest in pin.hashes)


def test_no_package_is_in_two_locks() -> None:
    names = [pin.requirement.name for lock in (IMAGE, DEV, CUDA) for pin in pins(lock)]
    assert sorted(names) == sorted(set(names))


def test_cpu_lock_is_for_the_same_torch() -> None:
    """It is written by hand, since its builds are in an index of their own: three Pythons, two architectures."""
    (torch,) = [pin for pin in pins(IMAGE) if pin.requirement.name == "torch"]
    (build,) = pins(CPU)
    assert (build.requirement.name, build.version) == ("torch", f"{torch.version}+cpu")
    assert len(build.hashes) == 6
    assert not set(build.hashes) & set(torch.hashes)


def test_cuda_lock_has_what_torch_asks_for_on_linux() -> None:
    names = {pin.requirement.name for pin in pins(CUDA)}
    assert {"triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= names
    assert all("sys_platform == 'linux'" in str(pin.requirement.marker).replace('"', "'") for pin in pins(CUDA))


@pytest.mark.parametrize(("lock", "version"), [(IMAGE, "1.0"), (CPU, "1.0+cpu")])
def test_make_refuses_a_file_with_another_hash_than_the_locked_one(lock: str, version: str, tmp_path: Path) -> None:
    wheel = tmp_path / f"torch-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = f"torch-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    altered = digest[:-1] + f"{(int(digest[-1], 16) + 1) % 16:x}"
    for name in (IMAGE, DEV, CPU, CUDA):
        (tmp_path / name).touch()
    (tmp_path / lock).write_text(f"torch=={version} \\\n    --hash=sha256:{altered}\n")
    shutil.copy(ROOT / "Makefile", tmp_path)
    # The environment is this one, but pip installs into another folder.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] || exec "{sys.executable}" "$@"\nmkdir -p "$4/bin"\ncp "$0" "$4/bin/python"\n'
    )
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_TARGET": str(tmp_path / "installed")}
    command = ["make", "setup", "VENV=venv", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert digest in done.stderr
    assert not list(tmp_path.glob("installed/torch*"))


def test_published_images_are_named_by_digest() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    images = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", service["image"]) for service in services]
    bases = [
        base
        for name in ("Dockerfile", "services.Dockerfile")
        for base in re.findall(r"^ARG BASE=(.*)", (ROOT / "docker" / name).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    published = [image for image in [*images, *bases] if not image.startswith("concord:")]
    assert {image.partition(":")[0] for image in published} == {"postgres", "chrislusf/seaweedfs", "python"}
    assert [image for image in published if not re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image)] == []
