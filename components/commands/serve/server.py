"""MLflow's scoring server on one model, with errors in one sentence and the whole distribution on request.

    python -I server.py MODEL_FOLDER TITLE --host 127.0.0.1 --port 5002 [--scratch FOLDER]

    POST /invocations    images as MLflow's scoring protocol has them; value, low, high, mass and error of each
    POST /distribution   one image; also the probability of every number, with and without the prior
    GET  /model          what is served
    GET  /health, /ping  200 once the model is loaded

This script imports no package of this repository before the model is loaded, so the answers come from the code that is
stored with the version, which may be older than this checkout. The filter of secrets is loaded as a file of its own.
"""

import argparse
import asyncio
import base64
import binascii
import importlib.util
import json
import logging
import re
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 256 * 2**20  # bytes of a request
MAX_SENTENCE = 400  # characters of an error's message
GRACE_SECONDS = 60  # for requests in progress, after a signal to stop
TOO_LARGE = "concord.too_large"  # key of an ASGI scope
SECRETS = Path(__file__).parents[2] / "shared" / "io" / "secrets.py"
STATISTICS = ("value", "low", "high", "mass")
DISTRIBUTION_KEYS = ("image", "question", "balance", "coverage")

# MLflow's messages -> ours, for what is wrong in most requests; the last row takes the reason out of any other.
REASONS = (
    (r"valid JSON formatted string\. Error: '\w+\(\W*(.+?)'?\)'", r"the body is not valid JSON: \1"),
    (
        r"exactly one of the input fields",
        "the body must have exactly one of the keys dataframe_records, dataframe_split, inputs, instances",
    ),
    (r"Failed to convert column (\w+) .*Error: '\w+\('(.*)'\)'", r"\1: this is not base64 (\2)"),
    (r"Model is missing inputs \['(\w+)'", r"the column \1 is missing"),
    (r"^Failed to .* Error: (.*)", r"\1"),
)

logger = logging.getLogger("concord.serve")


class BadRequest(Exception):
    """A request that cannot be answered; the message is the answer."""


def create_app(model: Any, title: str) -> ASGIApp:
    """MLflow's app for a loaded model, with the further routes and with plain errors.

    Args:
        model: from `mlflow.pyfunc.load_model`.
        title: what is served, for people.
    """
    from mlflow.pyfunc import scoring_server

    app: FastAPI = scoring_server.init(model)
    reader = DistributionReader(model)

    @app.post("/distribution")
    async def distribution(request: Request) -> Response:
        """Answers with one image's distribution; see DistributionReader.answer."""
        body = await request.body()
        return _json(await asyncio.to_thread(reader.answer, body))

    @app.get("/model")
    async def served() -> Response:
        """Answers with what is served; see DistributionReader.description."""
        return _json({"title": title, **reader.description()})

    app.middleware("http")(plain_answers)
    return LimitedBody(app, MAX_BODY)


class DistributionReader:
    """Reads the whole distribution of one image from the registered model (components/register/served_model.py).

    The model's signature has the answer and its interval alone; the distribution comes from the reader inside it.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.unwrap_python_model()
        self._log_probabilities = lru_cache(maxsize=16)(self._read)  # a slider asks for the same image again

    def _rule(self) -> Any:
        """The model's answer rule.

        Raises:
            BadRequest: it has none.
        """
        if not hasattr(self._model, "log_probabilities"):
            raise BadRequest("this version was registered by another release of Concord; only /invocations answers")
        if self._model.reader.rule is None:
            raise BadRequest("this model answers with its text (answer.from), which has no distribution")
        return self._model.reader.rule

    def description(self) -> dict[str, Any]:
        """What is read: question, unit and range; and the parameters' defaults.

        Raises:
            BadRequest: the model has no distribution.
        """
        rule, task = self._rule(), self._model.settings.task
        return {
            "question": task.question, "unit": task.unit, "low": task.low, "high": task.high,
            "statistic": rule.statistic, "balance": rule.balance.value, "coverage": rule.coverage,
        }  # fmt: skip

    def answer(self, body: bytes) -> dict[str, Any]:
        """The answer to a request.

        Args:
            body: JSON `{"image": BASE64, "question": TEXT, "balance": NUMBER, "coverage": NUMBER}`; all but the image
                may be missing or null.

        Returns:
            value, low, high, mass: as /invocations has them. balance: the one used. values `(N,)`: the task's numbers.
            model `(N,)`: the probability of each as the model gives it; posterior `(N,)`: with the balance applied, the
            distribution that the answer is read from; prior `(N,)`: of the training data. Each has sum 1.

        Raises:
            BadRequest: the body is not such JSON, a value is out of range, or the image cannot be read.
        """
        from components.errors import ConcordError  # the class of the stored code

        image, question, known = _request_fields(body)
        self._rule()
        try:
            rule = self._model.reader.answering(**known).rule
        except ConcordError as error:
            raise BadRequest(str(error)) from None
        log_p = self._log_probabilities(image, question)
        readings = rule.read(log_p)
        return {
            **{name: float(getattr(readings, name)[0]) for name in STATISTICS},
            "balance": rule.balance.value,
            "values": rule.validation.values.tolist(),
            "model": (np.exp(log_p[0]) / np.exp(log_p[0]).sum()).tolist(),
            "posterior": rule.distribution(log_p)[0].tolist(),
            "prior": np.exp(rule.validation.log_prior).tolist(),
        }

    def _read(self, image: bytes, question: str | None) -> Any:
        """Log-probabilities `(1, N)` of the task's numbers."""
        from mlflow.exceptions import MlflowException

        try:
            return self._model.log_probabilities(image, question)
        except MlflowException as error:
            raise BadRequest(error.message) from None


def _request_fields(body: bytes) -> tuple[bytes, str | None, dict[str, float]]:
    """Image, question and parameters of a request for a distribution."""
    try:
        fields = json.loads(body)
        if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
            raise ValueError
    except (ValueError, UnicodeDecodeError):
        raise BadRequest('the body must be JSON: {"image": "BASE64", "balance": 0.5}') from None
    if unknown := fields.keys() - set(DISTRIBUTION_KEYS):
        raise BadRequest(f"{min(unknown)!r}: unknown key, known keys: {', '.join(DISTRIBUTION_KEYS)}")
    try:
        image = base64.b64decode(fields["image"], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("image: this is not base64") from None
    question = fields.get("question")
    if question is not None and not isinstance(question, str):
        raise BadRequest("question: this is not text")
    known = {name: fields[name] for name in ("balance", "coverage") if fields.get(name) is not None}
    for name, value in known.items():
        if type(value) not in (int, float) or not abs(value) < 1e9:  # NaN compares as false
            raise BadRequest(f"{name}: this is not a number in range")
    return image, question, known


async def plain_answers(request: Request, respond: Callable[[Request], Awaitable[Response]]) -> Response:
    """Middleware: valid JSON with null for unknown numbers, and errors as one sentence without a stack trace.

    An error's body has the keys `error_code` and `message`, as MLflow's clients expect. What is left out is logged.
    """
    if request.method == "POST" and "content-type" not in request.headers:
        return _error(415, "the header Content-Type is missing; it should be application/json")
    try:
        answer = await respond(request)
        body = b"".join([chunk async for chunk in answer.body_iterator])  # type: ignore[attr-defined]
    except BadRequest as error:
        return _error(400, str(error))
    except Exception:
        if TOO_LARGE in request.scope:
            return _error(413, f"the body has more than {MAX_BODY:,} bytes; send fewer images at once")
        logger.exception("%s failed", request.url.path)
        return _error(500, "the server failed; its log has the reason")
    if answer.status_code >= 400:
        return _plain_error(answer.status_code, body)
    if b"NaN" in body or b"Infinity" in body:  # not JSON, but Python's encoder writes them
        body = json.dumps(json.loads(body, parse_constant=lambda _: None)).encode()
    return Response(body, answer.status_code, media_type=answer.headers.get("content-type"))


def _plain_error(status: int, body: bytes) -> Response:
    """MLflow's error answer, with the reason in one sentence."""
    text = body.decode("utf-8", "replace")
    try:
        fields = json.loads(text)
        message, trace = str(fields["message"]), fields.get("stack_trace")
    except (ValueError, KeyError, TypeError):  # plain text; or FastAPI's own answer to an unknown path
        return _error(status, {404: "no such path", 405: "no such method"}.get(status, sentence(text)))
    if trace and message.startswith("Encountered an unexpected error"):  # while computing: no fault of the request
        logger.error("%s", trace)
        return _error(500, "the model failed on this request; the server's log has the reason")
    return _error(status, sentence(message))


def sentence(message: str) -> str:
    r"""The reason within a message of MLflow, which also repeats the request's data and advice on old versions.

    >>> sentence("Failed to predict data ...\nError: no image can be read")
    'no image can be read'
    """
    message = " ".join(message.split())
    for pattern, ours in REASONS:
        if found := re.search(pattern, message):
            message = found.expand(ours)
            break
    return message if len(message) <= MAX_SENTENCE else message[: MAX_SENTENCE - 1] + "…"


def _json(content: Any) -> Response:
    return Response(json.dumps(content), media_type="application/json")


def _error(status: int, message: str) -> Response:
    code = "BAD_REQUEST" if status < 500 else "INTERNAL_ERROR"
    logger.warning("%d: %s", status, message)
    return Response(json.dumps({"error_code": code, "message": message}), status, media_type="application/json")


class LimitedBody:
    """Middleware that stops reading a request's body after `limit` bytes."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.limit:
                scope[TOO_LARGE] = True
                raise OSError("request body too large")
            return message

        await self.app(scope, limited, send)


class Server(uvicorn.Server):
    """Says when it is ready, and computes one request at a time, because reading changes the model's modules."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the port."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        await super().startup(sockets)
        if sockets and self.started:
            host, port = sockets[0].getsockname()[:2]
            print(welcome(f"http://{f'[{host}]' if ':' in host else host}:{port}"), file=sys.stderr, flush=True)


def welcome(url: str) -> str:
    """The message of a server that is ready, with a request to try."""
    return (
        f"serving at {url}; Ctrl-C stops it. Try:\n"
        f"""  printf '{{"dataframe_records": [{{"image": "%s"}}]}}' "$(base64 < IMAGE.png | tr -d '\\n')" |\n"""
        f"    curl -sS {url}/invocations -H 'Content-Type: application/json' --data-binary @-"
    )


def load(location: str, title: str) -> Any:
    """The model in a folder.

    Raises:
        SystemExit: its files cannot be read.
    """
    import mlflow

    try:
        return mlflow.pyfunc.load_model(location)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        reason = secrets().masked(sentence(str(error)))
        raise SystemExit(f"error {title}: it cannot be loaded from {location}: {reason}") from None


def secrets() -> Any:
    """The module that masks secrets, under a name of its own: the stored code may have another one."""
    spec = importlib.util.spec_from_file_location("concord_secrets", SECRETS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bound(host: str, port: int) -> socket.socket:
    """A socket on this address that does not listen yet, so that a used port is reported before the model is loaded."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    found = socket.socket(family, kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(address)
    return found


def main(words: Sequence[str]) -> int:
    """Serves until a signal ends it; exit code 0, or 1 after a reported error."""
    top = argparse.ArgumentParser(prog="server.py")
    top.add_argument("model")
    top.add_argument("title")
    top.add_argument("--host", required=True)
    top.add_argument("--port", type=int, required=True)
    top.add_argument("--scratch", type=Path, help="folder to delete at the end")
    args = top.parse_args(words)
    signal.signal(signal.SIGTERM, _stop)  # as process 1 of a container, there is no default action
    secrets().mask_output()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    try:
        return serve(args)
    finally:
        if args.scratch:
            shutil.rmtree(args.scratch, ignore_errors=True)


def serve(args: argparse.Namespace) -> int:
    """Loads the model and answers requests; returns the exit code."""
    try:
        listener = bound(args.host, args.port)
    except (OSError, OverflowError) as error:
        print(f"error cannot listen at {args.host}:{args.port}: {error}. Name another with --port.", file=sys.stderr)
        return 1
    app = create_app(load(args.model, args.title), args.title)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)
    Server(config).run(sockets=[listener])
    print("stopped", file=sys.stderr)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the process while the model is loaded."""
    raise SystemExit(128 + number)


def _stopped(number: int, frame: FrameType | None) -> None:
    """Does nothing: uvicorn raises the signal that ended it once more, after the last request."""


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
