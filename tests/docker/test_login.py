"""MLflow in Compose: every path asks for the login, and a command without it says so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from tests.support.containers import neighbour, run, services_of
from tests.support.repository import ROOT, environment
from tests.support.services import Services

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

README = ROOT / "docker" / "README.md"

# Requests every route of MLflow's server without a login, and prints those that do not ask for one.
OPEN_ROUTES = r"""
import http.client, json, os, re
os.chdir("/tmp")
os.environ |= {"_MLFLOW_SGI_NAME": "uvicorn", "MLFLOW_FLASK_SERVER_SECRET_KEY": "x",
               "MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "long enough to be accepted"}
from mlflow.server import app as flask
from mlflow.server.auth import create_app
native = [(route.path, route.methods) for route in create_app().routes if hasattr(route, "methods")]
routes = native + [(rule.rule, rule.methods) for rule in flask.url_map.iter_rules()]
requests = {(method, re.sub(r"<[^>]*>|\{[^}]*\}", "1", path))
            for path, methods in routes for method in methods - {"HEAD", "OPTIONS"}}
def status(method, path):
    connection = http.client.HTTPConnection("mlflow", 5000, timeout=60)
    connection.request(method, path, "{}", {"Content-Type": "application/json"})
    return connection.getresponse().status
found = {request: status(*request) for request in sorted(requests)}
print(json.dumps({"requests": len(found), "open": [" ".join(each) for each in found if found[each] != 401]}))
"""


def test_every_path_of_mlflow_asks_for_the_login(composition: dict[str, str]) -> None:
    found = neighbour(composition, OPEN_ROUTES)
    assert found["requests"] > 300
    info = [f"GET /{kind}/3.0/mlflow/server-info" for kind in ("ajax-api", "api")]  # of the server's features
    assert found["open"] == [*info, "GET /health", "GET /static-files/1"]


def test_login_is_checked(composition: dict[str, str]) -> None:
    services = services_of(composition)
    assert services.login is not None
    assert services.client().search_experiments()
    for login in ((services.login[0], "wrong"), ("me", services.login[1]), None):
        with pytest.raises(MlflowException, match="401"):
            Services(**{**vars(services), "login": login}).client().search_experiments()


def test_command_without_the_login_says_what_to_do(composition: dict[str, str], tmp_path: Path) -> None:
    services = services_of(composition)
    known = {**services.environment(), "HOME": str(tmp_path)}
    wrong = {**known, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    without = {name: value for name, value in known.items() if not name.startswith("MLFLOW_TRACKING_PASSWORD")}
    expected = "could not open the store: the server refuses the login, or got none. Set MLFLOW_TRACKING_USERNAME and "
    for variables in (without, wrong):
        done = registry_show(variables)
        assert done.returncode == 1
        assert expected in " ".join(done.stderr.split())
    assert "no version in the registry" in " ".join(registry_show(known).stderr.split())


def registry_show(variables: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "components", "registry", "show", "--model", "of-nobody"]
    return subprocess.run(
        command, cwd=ROOT, env=environment(variables), capture_output=True, text=True, check=False, timeout=120
    )


def test_password_is_changed_as_the_readme_says(composition: dict[str, str]) -> None:
    services = services_of(composition)
    assert services.login is not None
    old = services.login[1]
    blocks = re.findall(r"^python - <<'END'\n(.*?)^END$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (script,) = [block for block in blocks if "update_user_password" in block]
    new = changed(composition, script, old)
    try:
        assert Services(**{**vars(services), "login": ("admin", new)}).client().search_experiments()
    finally:
        assert changed(composition, script.replace("secrets.token_hex(16)", repr(old)), new) == old
    assert services.client().search_experiments()


def changed(composition: dict[str, str], script: str, password: str) -> str:
    """Runs the script with the login in its environment; returns the new password, which it prints."""
    variables = {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": password,
    }
    options = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    network, image = f"{composition['PROJECT']}_default", composition["MLFLOW_IMAGE"]
    printed = run("docker", "run", "--rm", "--network", network, *options, image, "python", "-c", script)
    return printed.splitlines()[-1].removeprefix("MLFLOW_ADMIN_PASSWORD=")
