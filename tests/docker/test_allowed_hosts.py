"""Which host names MLflow of docker/compose.yaml answers to, by MLflow's own rule."""

from pathlib import Path

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

ROOT = Path(__file__).parents[2]


def allowed_hosts() -> list[str]:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
    setting = compose["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"]
    return setting.removeprefix("${MLFLOW_ALLOWED_HOSTS:-").removesuffix("}").split(",")


@pytest.mark.parametrize(
    "host",
    [
        "localhost:5000", "127.0.0.1:5000", "mlflow:5000", "host.docker.internal:5000",
        "172.17.0.1:5000", "172.18.0.12:5000", "172.31.255.254:15000", "172.20.10.3:80",
    ],
)  # fmt: skip
def test_names_and_addresses_of_this_machine_and_its_containers_are_answered(host: str) -> None:
    assert is_allowed_host_header(allowed_hosts(), host)


@pytest.mark.parametrize(
    "host",
    [
        "172.evil.example", "172.evil.example:5000", "172.17.0.1.evil.example:5000", "172.17.0.evil.example:5000",
        "172.17.evil.example:5000", "172.17.0.1evil:5000", "evil.example:5000",
    ],
)  # fmt: skip
def test_a_name_that_only_looks_like_an_address_is_refused(host: str) -> None:
    """A page on such a name could point it at this machine (DNS rebinding), and read and change the registry."""
    assert not is_allowed_host_header(allowed_hosts(), host)
