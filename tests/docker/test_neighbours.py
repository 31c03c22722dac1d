"""What a container on the services' network reaches: each service at one port, and nothing without credentials."""

import json
import time

import pytest
from botocore.exceptions import BotoCoreError

from tests.support.containers import container, neighbour, run, services_of
from tests.support.services import s3_client

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

# Prints address -> the ports that accept a connection, below the ephemeral ones.
OPEN_PORTS = """
import json, socket, sys
def accepts(address, port):
    with socket.socket() as tried:
        tried.settimeout(2)
        return tried.connect_ex((address, port)) == 0
print(json.dumps({address: [port for port in range(1, 32768) if accepts(address, port)] for address in sys.argv[1:]}))
"""

# Prints what the S3 server answers to requests without a signature, and to those with the key in argv.
S3_ANSWERS = """
import json, sys, urllib.request
import boto3
from botocore.exceptions import ClientError

def status(method, path, body=None):
    try:
        request = urllib.request.Request(f"http://s3:8333{path}", body, method=method)
        return urllib.request.urlopen(request, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code

def signed(action, **options):
    client = boto3.client("s3", endpoint_url="http://s3:8333", aws_access_key_id=sys.argv[1],
                          aws_secret_access_key=sys.argv[2], region_name="us-east-1")
    try:
        return getattr(client, action)(**options)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]

key = b"Action=CreateAccessKey&UserName=owner&Version=2010-05-08"
print(json.dumps({
    "unsigned": {
        "buckets": status("GET", "/"), "list": status("GET", "/dvc?list-type=2"), "read": status("GET", "/dvc/kept"),
        "write": status("PUT", "/dvc/kept", b"2"), "delete": status("DELETE", "/dvc/kept"),
        "new key": status("POST", "/", key),
    },
    "own": signed("list_objects_v2", Bucket="dvc"),
    "foreign": signed("list_objects_v2", Bucket="mlflow"),
    "wrong": (sys.argv.__setitem__(2, "wrong"), signed("list_objects_v2", Bucket="dvc"))[1],
}))
"""


def test_each_service_is_open_at_one_port(composition: dict[str, str]) -> None:
    found = json.loads(run("docker", "network", "inspect", f"{composition['PROJECT']}_default"))[0]["Containers"]
    addresses = {id[:12]: each["IPv4Address"].split("/")[0] for id, each in found.items()}
    ports = neighbour(composition, OPEN_PORTS, *addresses.values())
    expected = {"postgres": [5432], "gateway": [8333], "mlflow": [5000]}
    ids = {container(composition["PROJECT"], service): service for service in expected}
    assert {ids.get(id, id): ports[address] for id, address in addresses.items()} == expected


def test_s3_answers_no_neighbour_without_its_key(composition: dict[str, str]) -> None:
    services = services_of(composition)
    dvc = s3_client(services.s3_url, services.dvc)
    dvc.put_object(Bucket="dvc", Key="kept", Body=b"1")
    answers = neighbour(composition, S3_ANSWERS, *services.dvc)
    assert answers == {
        "unsigned": {"buckets": 403, "list": 403, "read": 403, "write": 403, "delete": 403, "new key": 405},
        "own": 200, "foreign": 403, "wrong": 403,
    }  # fmt: skip
    assert dvc.get_object(Bucket="dvc", Key="kept")["Body"].read() == b"1"
    dvc.delete_object(Bucket="dvc", Key="kept")


def test_s3_is_reached_again_after_a_restart(composition: dict[str, str]) -> None:
    services = services_of(composition)
    dvc = s3_client(services.s3_url, services.dvc)
    dvc.put_object(Bucket="dvc", Key="kept", Body=b"1")
    run("docker", "restart", "--time", "5", container(composition["PROJECT"], "s3"))
    end = time.monotonic() + 120
    while True:
        try:
            assert dvc.get_object(Bucket="dvc", Key="kept")["Body"].read() == b"1"
            break
        except BotoCoreError:  # no connection
            assert time.monotonic() < end
            time.sleep(0.5)
    dvc.delete_object(Bucket="dvc", Key="kept")
