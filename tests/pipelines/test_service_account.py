"""The accounts and roles for the cluster: valid objects of the API, with the rights that are used and no more."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.support.settings_files import RAW_CLUSTER

ROOT = Path(__file__).parents[2]
README = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")
OBJECTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "pipelines" / "service-account.yaml").read_text(encoding="utf-8"))
)
KINDS = {"ServiceAccount": "V1ServiceAccount", "Role": "V1Role", "RoleBinding": "V1RoleBinding"}
BY_KIND = {each["kind"]: each for each in OBJECTS}


class Answer:
    """What the client's deserializer reads."""

    def __init__(self, content: str) -> None:
        self.data = content


@pytest.mark.parametrize("kind", KINDS)
def test_object_has_only_fields_of_its_kind(kind: str) -> None:
    """The client drops unknown fields when it reads, and raises if a required one is missing."""
    api = client.ApiClient()
    read = api.deserialize(Answer(json.dumps(BY_KIND[kind])), KINDS[kind])
    assert api.sanitize_for_serialization(read) == BY_KIND[kind]


def test_role_is_bound_to_the_account() -> None:
    names = {each["metadata"]["name"] for each in OBJECTS}
    assert len(OBJECTS) == 3
    assert names == {"concord-runner"}
    binding = BY_KIND["RoleBinding"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", "concord-runner")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "concord-runner"}]


def may(verb: str, resource: str, name: str, group: str = "") -> bool:
    """Decides as Kubernetes does: some rule has the verb, the group and the resource, and names the object or none."""
    return any(
        {verb, "*"} & set(rule["verbs"])
        and {group, "*"} & set(rule["apiGroups"])
        and {resource, "*"} & set(rule["resources"])
        and name in rule.get("resourceNames", [name])
        for rule in BY_KIND["Role"]["rules"]
    )


@pytest.mark.parametrize(
    ("allowed", "verb", "resource", "name", "group"),
    [
        (True, "create", "workflowtaskresults", "", "argoproj.io"),
        (True, "patch", "workflowtaskresults", "step", "argoproj.io"),
        (True, "get", "configmaps", "kfp-launcher", ""),
        (True, "get", "secrets", "concord-s3", ""),
        (False, "get", "secrets", "concord-mlflow", ""),
        (False, "list", "secrets", "", ""),
        (False, "get", "configmaps", "other", ""),
        (False, "create", "pods", "", ""),
        (False, "create", "pods/exec", "", ""),
        (False, "create", "jobs", "", "batch"),
        (False, "update", "workflows", "run", "argoproj.io"),
    ],
)
def test_rights(allowed: bool, verb: str, resource: str, name: str, group: str) -> None:
    assert may(verb, resource, name, group) == allowed


def test_its_secret_is_the_artifact_store_s() -> None:
    """In the README's config map for the launcher, and in the cluster file."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"<<'YAML'\n(.*?)\nYAML", README, re.DOTALL)]
    (launcher,) = [block for block in blocks if block["metadata"]["name"] == "kfp-launcher"]
    credentials = yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]["credentials"]
    assert may("get", "secrets", credentials["secretRef"]["secretName"])
    assert credentials["secretRef"]["secretName"] in {secret["name"] for secret in RAW_CLUSTER["secrets"]}


TRAIN_JOBS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "pipelines" / "train-jobs.yaml").read_text(encoding="utf-8"))
)


@pytest.mark.parametrize("item", TRAIN_JOBS, ids=lambda item: item["kind"])
def test_object_for_train_jobs_has_only_fields_of_its_kind(item: dict[str, Any]) -> None:
    api = client.ApiClient()
    assert api.sanitize_for_serialization(api.deserialize(Answer(json.dumps(item)), KINDS[item["kind"]])) == item


def test_a_head_may_do_what_it_does_and_no_more() -> None:
    """tests/e2e/test_nodes.py: its server answers these requests only."""
    role, binding = TRAIN_JOBS
    rights = {(verb, kind) for rule in role["rules"] for kind in rule["resources"] for verb in rule["verbs"]}
    trainjobs = {(verb, "trainjobs") for verb in ("create", "get", "delete")}
    assert rights == {*trainjobs, ("list", "pods"), ("get", "pods/log")}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    accounts = {subject["name"] for subject in binding["subjects"]}
    assert accounts == {"pipeline-runner", BY_KIND["ServiceAccount"]["metadata"]["name"]}
