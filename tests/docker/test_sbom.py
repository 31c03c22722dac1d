"""docker/sbom: the CycloneDX list of an image's packages. A stub of docker prints what the image has."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.locks import CPU, IMAGE, ROOT, needed_here, pins


def sbom(folder: Path, installed: list[tuple[str, str, str | None]]) -> "subprocess.CompletedProcess[str]":
    """Runs docker/sbom for an image that has these packages: name, version, licence."""
    (folder / "installed").write_text("".join(f"{json.dumps(package)}\n" for package in installed))
    (folder / "docker").write_text(f'#!/bin/sh\ncat "{folder}/installed"\n')
    (folder / "docker").chmod(0o755)
    command = ["docker/sbom", "concord:cpu", "1" * 40, str(folder / "concord-cpu.cdx.json")]
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_each_package_of_the_image_has_its_identity_and_hashes(tmp_path: Path) -> None:
    """In the form of CycloneDX 1.6: https://cyclonedx.org/docs/1.6/json."""
    locked = {pin.requirement.name: pin for pin in needed_here(IMAGE, CPU)}
    versions = {name: pin.version for name, pin in locked.items()}
    as_installed = {"pyyaml": "PyYAML", "great-expectations": "great_expectations", "zc-lockfile": "zc.lockfile"}
    installed = [(as_installed.get(name, name), version, None) for name, version in versions.items()]
    done = sbom(tmp_path, [*installed[1:], (*installed[0][:2], "Apache-2.0")])
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "concord-cpu.cdx.json").read_text())
    assert (content["bomFormat"], content["specVersion"], content["version"]) == ("CycloneDX", "1.6", 1)
    assert content["metadata"]["component"]["version"] == "1" * 40
    components = {component["name"]: component for component in content["components"]}
    assert {name: component["version"] for name, component in components.items()} == versions
    assert len({component["bom-ref"] for component in components.values()}) == len(components)
    assert components["torch"]["purl"] == f"pkg:pypi/torch@{versions['torch'].replace('+', '%2B')}"
    assert versions["torch"].endswith("+cpu")
    assert components[installed[0][0]]["licenses"] == [{"expression": "Apache-2.0"}]
    assert "licenses" not in components["torch"]
    for name, component in components.items():
        (files,) = component["externalReferences"]
        assert tuple(f"sha256:{entry['content']}" for entry in files["hashes"]) == locked[name].hashes
        assert {entry["alg"] for entry in files["hashes"]} == {"SHA-256"}


@pytest.mark.parametrize(("name", "version"), [("numpy", "0.1"), ("leftpad", "1.0")])
def test_package_that_the_locks_lack_is_an_error(name: str, version: str, tmp_path: Path) -> None:
    assert "leftpad" not in {pin.requirement.name for pin in pins(IMAGE)}
    done = sbom(tmp_path, [(name, version, None)])
    assert done.returncode == 1
    assert f"{name}=={version}: in the image, but not in requirements.lock," in done.stderr
    assert not (tmp_path / "concord-cpu.cdx.json").exists()
