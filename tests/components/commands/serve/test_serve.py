"""A real server on a registered model: good and bad requests from many clients, and its end."""

import base64
import concurrent.futures
import doctest
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from components.commands.serve.command import located
from components.errors import ConcordError
from components.shared.model.number_reader import NumberReader
from components.shared.rows.rows import read_rows
from tests.support.gray_world import GrayWorld
from tests.support.served import Server, half_sent, register_version, serving

NO_IMAGE = base64.b64encode(b"no image").decode()
BALANCE = 0.25


@dataclass(frozen=True)
class World:
    """A registered model, its server, and what NumberReader reads off the test images.

    Attributes:
        images: base64 of the test images.
        answers: value, low, high and mass of each.
        reader: with which they were read.
    """

    gray: GrayWorld
    root: Path
    server: Server
    images: list[str]
    answers: list[dict[str, float]]
    reader: NumberReader

    def records(self, *numbers: int | None) -> list[dict[str, str]]:
        """Rows of a request; None stands for one that is no image."""
        return [{"image": NO_IMAGE if number is None else self.images[number]} for number in numbers]


@pytest.fixture(scope="module")
def store(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A folder with params.yaml and an MLflow store that has a champion."""
    root = tmp_path_factory.mktemp("served")
    shutil.copy(empty_database, root / "mlflow.db")
    shutil.copy(gray.params, root / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        assert register_version(gray.settings, gray.grpo, gray.settings.reader(BALANCE)) == "1"
        yield root


@pytest.fixture(scope="module")
def world(gray: GrayWorld, store: Path) -> Iterator[World]:
    rows = pa.Table.from_batches(read_rows(gray.ingest, "test")).to_pylist()
    reader = NumberReader.load(gray.grpo, gray.settings.reader(BALANCE))
    answers: list[dict[str, float]] = []
    for _, read in reader.read(read_rows(gray.ingest, "test"), len(rows)):
        columns = zip(read.value, read.low, read.high, read.mass, strict=True)
        answers += [dict(zip(("value", "low", "high", "mass"), map(float, row), strict=True)) for row in columns]
    images = [base64.b64encode(row["image"]["bytes"]).decode() for row in rows]
    with serving(store, {}) as server:
        yield World(gray, store, server, images, answers, reader)


def test_200_requests_of_8_clients_get_the_answers_of_evaluate(world: World) -> None:
    """Every fourth request has nothing but bad images, every third a bad one among good ones."""

    def request(number: int) -> None:
        chosen: list[int | None] = list(random.Random(number).choices(range(len(world.images)), k=1 + number % 5))
        if number % 4 == 0:
            chosen = [None] * len(chosen)
        elif number % 3 == 0:
            chosen.insert(number % (len(chosen) + 1), None)
        status, answer = world.server.post("/invocations", {"dataframe_records": world.records(*chosen)})
        if number % 4 == 0:
            assert (status, answer.keys()) == (400, {"error_code", "message"})
            assert answer["message"].startswith("no image can be read; the first: not an image in a known format")
            return
        assert status == 200, answer
        for chosen_image, found in zip(chosen, answer["predictions"], strict=True):
            if chosen_image is None:
                assert "not an image in a known format" in found.pop("error")
                assert found == {"value": None, "low": None, "high": None, "mass": None}
            else:
                assert found.pop("error") is None
                assert found == pytest.approx(world.answers[chosen_image], abs=1e-4)

    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        for done in [clients.submit(request, number) for number in range(200)]:
            done.result()


def test_answers_are_in_the_order_of_the_images(world: World) -> None:
    content = {"index": [7, 3], "columns": ["image"], "data": [[world.images[-1]], [world.images[0]]]}
    status, answer = world.server.post("/invocations", {"dataframe_split": content})
    assert status == 200
    assert [row["value"] for row in answer["predictions"]] == [world.answers[-1]["value"], world.answers[0]["value"]]


def test_parameters_change_the_answer(world: World) -> None:
    content = {"dataframe_records": world.records(0), "params": {"balance": 1.0, "coverage": 0.5}}
    status, answer = world.server.post("/invocations", content)
    reader = world.reader.answering(1.0, 0.5)
    (_, expected), *_ = reader.read(read_rows(world.gray.ingest, "test"), len(world.images))
    assert status == 200
    assert [answer["predictions"][0][name] for name in ("value", "low", "high")] == [
        expected.value[0], expected.low[0], expected.high[0],
    ]  # fmt: skip


def test_distribution_is_the_one_that_the_answer_is_read_from(world: World) -> None:
    assert world.reader.rule is not None
    for balance in (None, 0.0, 1.0):
        status, answer = world.server.post("/distribution", {"image": world.images[0], "balance": balance})
        assert status == 200, answer
        used = BALANCE if balance is None else balance
        assert answer["balance"] == used
        content = {"dataframe_records": world.records(0), "params": {"balance": used}}
        (read,) = world.server.post("/invocations", content)[1]["predictions"]
        assert {name: answer[name] for name in ("value", "low", "high", "mass")} == pytest.approx(
            {name: read[name] for name in ("value", "low", "high", "mass")}, abs=1e-4
        )
        assert answer["values"] == world.reader.rule.validation.values.tolist()
        for name in ("model", "posterior", "prior"):
            assert len(answer[name]) == len(answer["values"])
            assert sum(answer[name]) == pytest.approx(1)
        if balance == 0.0:
            assert answer["posterior"] == pytest.approx(answer["model"])


def test_what_is_served(world: World) -> None:
    status, answer = world.server.get("/model")
    task = world.gray.settings.task
    assert status == 200
    assert answer == {
        "title": f"{world.gray.settings.registered_model} version 1", "question": task.question, "unit": task.unit,
        "low": task.low, "high": task.high, "statistic": "median", "balance": BALANCE, "coverage": 0.9,
    }  # fmt: skip
    assert world.server.get("/ping")[0] == world.server.get("/health")[0] == 200


IMAGE = {"image": "AAAA"}
BAD_REQUESTS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{image", "the body is not valid JSON: Expecting property name"),
    "no UTF-8": (b"\xff{}", "the body is not valid JSON: "),
    "empty": (b"", "the body is not valid JSON: Expecting value"),
    "a list": ([1], "the body must have exactly one of the keys dataframe_records, "),
    "no images": ({"images": 1}, "the body must have exactly one of the keys dataframe_records, "),
    "no rows": ({"dataframe_records": []}, "the column image is missing"),
    "another column": ({"dataframe_records": [{"picture": "AAAA"}]}, "the column image is missing"),
    "bad base64": ({"dataframe_records": [{"image": "abc"}]}, "image: this is not base64 (Incorrect padding)"),
    "a number": ({"dataframe_records": [{"image": 5}]}, "image: this is not base64 ("),
    "null": ({"dataframe_records": [{"image": None}]}, ""),
    "no image": ({"dataframe_records": [IMAGE]}, "no image can be read; the first: not an image in a known format"),
    "balance": ({"dataframe_records": [IMAGE], "params": {"balance": 9.0}}, "balance: 9 is not within 0 and 1.2."),
    "a text as balance": ({"dataframe_records": [IMAGE], "params": {"balance": "x"}}, ""),
    "no parameters": ({"dataframe_records": [IMAGE], "params": 5}, ""),
}
BAD_DISTRIBUTIONS: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{image", "the body must be JSON"),
    "a list": ([1], "the body must be JSON"),
    "no image": ({"balance": 1}, "the body must be JSON"),
    "bad base64": ({"image": "%"}, "image: this is not base64"),
    "empty": ({"image": ""}, "the image cannot be read: empty (0 bytes)"),
    "a text": ({"image": NO_IMAGE}, "the image cannot be read: not an image in a known format"),
    "balance": (IMAGE | {"balance": 9}, "balance: 9 is not within 0 and 1.2."),
    "coverage": (IMAGE | {"coverage": 0.1}, "coverage: 0.1 is not within 0.5 and 0.999."),
    "a text as balance": (IMAGE | {"balance": "x"}, "balance: this is not a number in range"),
    "no number": (IMAGE | {"balance": float("nan")}, "balance: this is not a number in range"),
    "a huge number": (IMAGE | {"balance": 10**400}, "balance: this is not a number in range"),
    "question": (IMAGE | {"question": 5}, "question: this is not text"),
    "a special token": (IMAGE | {"question": "<image> What?"}, "question: <image> is a special token of the model"),
    "another key": (IMAGE | {"blance": 1}, "'blance': unknown key, known keys: image, question, balance, coverage"),
}
REQUESTS = [("/invocations", name, *case) for name, case in BAD_REQUESTS.items()]
REQUESTS += [("/distribution", name, *case) for name, case in BAD_DISTRIBUTIONS.items()]


@pytest.mark.parametrize(("path", "name", "content", "message"), REQUESTS, ids=[f"{r[0]}-{r[1]}" for r in REQUESTS])
def test_bad_request_is_answered_with_one_sentence(
    world: World, path: str, name: str, content: Any, message: str
) -> None:
    status, answer = world.server.post(path, content)
    assert status == 400, answer
    assert answer.keys() == {"error_code", "message"}
    assert answer["message"].startswith(message)
    assert 0 < len(answer["message"]) <= 400
    assert "\n" not in answer["message"]


def test_other_answers_have_one_sentence_too(world: World) -> None:
    good = {"dataframe_records": world.records(0)}
    for path, content, kind, status in (
        ("/invocations", good, "text/plain", 415),
        ("/invocations", b"image\n\"abc", "text/csv", 400),
        ("/invocations", b"no Parquet", "application/vnd.apache.parquet", 400),
        ("/nothing", good, "application/json", 404),
        ("/ping", good, "application/json", 405),
    ):  # fmt: skip
        found, answer = world.server.post(path, content, kind)
        assert (found, answer.keys()) == (status, {"error_code", "message"})
    assert world.server.get("/invocations")[0] == 405


def test_a_body_that_is_too_large_is_refused(world: World) -> None:
    port = int(world.server.url.rpartition(":")[2])
    block = b"x" * 2**20
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(300):
            try:
                client.sendall(b"100000\r\n" + block + b"\r\n")
            except OSError:  # it no longer listens
                break
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"send fewer images at once" in answer


def test_log_says_what_was_refused_and_shows_no_stack_trace(world: World) -> None:
    world.server.post("/invocations", {"dataframe_records": world.records(None)})
    log = world.server.log.read_text()
    assert "serving at http://127.0.0.1:" in log
    assert "WARNING 400: no image can be read" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_server_after_the_request_in_progress(
    store: Path, world: World, number: signal.Signals
) -> None:
    with serving(store, {}) as server:
        finish = half_sent(server.url, {"dataframe_records": world.records(0, 1)})
        server.process.send_signal(number)
        time.sleep(1)
        assert server.process.poll() is None
        status, answer = finish()
        assert status == 200
        assert [row["value"] for row in answer["predictions"]] == [row["value"] for row in world.answers[:2]]
        assert server.process.wait(60) == 0
        assert server.log.read_text().endswith("stopped\n")


def test_model_in_a_folder_is_served(store: Path, world: World) -> None:
    (package,) = (path.parent for path in store.glob("mlruns/**/MLmodel"))
    shutil.copytree(package, store / "baked")
    with serving(store, {"CONCORD_MODEL": "baked", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}) as server:
        assert server.get("/model")[1]["title"] == f"{world.gray.settings.registered_model} version 1"
        status, answer = server.post("/invocations", {"dataframe_records": world.records(0)})
    assert status == 200
    assert answer["predictions"][0]["value"] == world.answers[0]["value"]


def test_models_are_found_by_version_and_alias(store: Path, gray: GrayWorld) -> None:
    name = gray.settings.registered_model
    expected = f"models:/{name}/1", f"{name} version 1"
    assert located(name) == located(f"{name}/1") == located(f"{name}@champion") == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("unknown", "unknown: no version in the registry at sqlite:"),
        ("{name}@none", "{name}: no version has the alias none. Name a version"),
        ("{name}/9", "{name}: no version 9 in the registry"),
        ("{name}/new", "--model {name}/new: no such folder, and not a registered model"),
        ("/", "/: no version is in this folder"),
    ],
)
def test_unknown_model_is_reported(store: Path, gray: GrayWorld, model: str, message: str) -> None:
    name = gray.settings.registered_model
    with pytest.raises(ConcordError) as caught:
        located(model.format(name=name))
    assert message.format(name=name) in str(caught.value)


def server_command(location: str, port: int) -> list[str]:
    """The server's own command line, as `components serve` calls it."""
    script = Path(__file__).parents[4] / "components" / "commands" / "serve" / "server.py"
    return [sys.executable, "-I", str(script), location, "a title", "--host", "127.0.0.1", "--port", str(port)]


def test_port_in_use_is_reported_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        done = subprocess.run(server_command("no model", port), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error cannot listen at 127.0.0.1:{port}: " in done.stderr


def test_model_that_cannot_be_fetched_is_reported(store: Path) -> None:
    done = subprocess.run(server_command("models:/gone/9", 0), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error a title: it cannot be loaded from models:/gone/9: ")
    assert "Traceback" not in done.stderr


def test_the_server_repeats_no_password_of_the_registry() -> None:
    unreachable = {"MLFLOW_TRACKING_URI": "http://me:hun/ter2@127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    command = server_command("models:/gone/9", 0)
    done = subprocess.run(command, env=os.environ | unreachable, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be loaded from models:/gone/9: " in done.stderr
    assert "ter2" not in done.stderr


def test_examples() -> None:
    found = importlib.util.find_spec("components.commands.serve.server")
    assert found is not None
    assert doctest.testmod(importlib.import_module(found.name)).attempted == 1
