"""Secrets are masked by name and by form, and nothing else is."""

import doctest
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from components.settings import load_settings
from components.shared.io import secrets
from components.shared.io.secrets import holds_secret, is_secret, is_secret_name, masked, masked_json

ROOT = Path(__file__).parents[4]
HUB_TOKEN = "hf_" + "aB3" * 11
ACCESS_KEY = "AKIA" + "ABCD2345" * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:hunter2@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("https://me:p%40ss@host/path?q=1", "https://me:***@host/path?q=1"),
        ("https://:only@host", "https://:***@host"),
        ("mysql://me:a@b:c@host/x", "mysql://me:***@host/x"),
        ("postgresql://me:a/b@c@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("http://me:p@ss/w:rd%@host/path", "http://me:***@host/path"),
        ("http://me:12/34@proxy:8080", "http://me:***@proxy:8080"),
        ("postgresql://me:12/34@db/x", "postgresql://me:***@db/x"),
        ("https://me:what?@host/x", "https://me:***@host/x"),
        ("redis://:pw@cache:6379/0", "redis://:***@cache:6379/0"),
        ("https://me:pw@host/x?email=a@b.c", "https://me:***@host/x?email=a@b.c"),
        ("two: http://a:b@c and http://d:e@f", "two: http://a:***@c and http://d:***@f"),
        ("['http://a:b@c','http://d:e@f']", "['http://a:***@c','http://d:***@f']"),
        ("https://x-access-token:abc@github.com/a.git", "https://x-access-token:***@github.com/a.git"),
        (f"https://{'a1' * 12}@git.example/a.git", "https://***@git.example/a.git"),
        ("http://host/x?access_token=abc&v=2", "http://host/x?access_token=***&v=2"),
        ("mssql://host/x?pwd=abc", "mssql://host/x?pwd=***"),
        (
            "https://b.example/k?X-Amz-Algorithm=A&X-Amz-Credential=AK%2F1&X-Amz-Signature=1f&X-Amz-Security-Token=t",
            "https://b.example/k?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***&X-Amz-Security-Token=***",
        ),
        ("https://a.example/c?sv=1&sig=ab%3D&se=2", "https://a.example/c?sv=1&sig=***&se=2"),
        ("https://a.example/?AWSAccessKeyId=AK&Signature=ab%3D", "https://a.example/?AWSAccessKeyId=***&Signature=***"),
        ("https://host/back#access_token=abc&x=1", "https://host/back#access_token=***&x=1"),
        ("WANDB_API_KEY=abc HF_TOKEN=def", "WANDB_API_KEY=*** HF_TOKEN=***"),
        ("AWS_SECRET_ACCESS_KEY: abc", "AWS_SECRET_ACCESS_KEY: ***"),
        ("  token: abc", "  token: ***"),
        ("x={'password': 'a b', 'user': 'me'}", "x={'password': '***', 'user': 'me'}"),
        ('{"hf_token": "abc", "n": 1}', '{"hf_token": "***", "n": 1}'),
        (r'"{\"password\": \"a b\", \"n\": 1}"', r'"{\"password\": \"***\", \"n\": 1}"'),
        ("connect(user='x', password='y')", "connect(user='x', password='***')"),
        ("wrong password: hunter2", "wrong password: ***"),
        ("wrong db_password: swordfish for user x", "wrong db_password: *** for user x"),
        ("refused HF_TOKEN: abc.", "refused HF_TOKEN: ***."),
        ("Server=x;Password=y", "Server=x;Password=***"),
        ("--password hunter2 --token=abc -v", "--password *** --token=*** -v"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("{'Authorization': 'Basic dXNlcjpwdw=='}", "{'Authorization': '***'}"),
        ("sent Bearer abc.def-123", "sent Bearer ***"),
        ("Cookie: a=b; c=d", "Cookie: ***"),
        (f"refused {HUB_TOKEN}.", "refused ***."),
        (f"no such key: {ACCESS_KEY}", "no such key: ***"),
        ("post to https://hooks.slack.com/services/T0/B0/x failed", "post to https://hooks.slack.com/*** failed"),
    ],
    ids=map(str, count()),  # pytest puts the id into a variable of the environment, whose secrets are masked
)
def test_secrets_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///mlflow.db",
        "http://127.0.0.1:5000/#/runs/details/1",
        "http://[::1]:5000/a@b",
        "http://localhost:5000/image@sha256:abc",
        "s3://bucket/folder/a@2x.png",
        "https://host/path/@scope/name",
        "https://host:8080/a@b?email=c@d.e",
        "ssh://git@github.com/a.git",
        "https://me@host/x",
        "/home/me@work/a:b@c.png",
        "max_new_tokens=16, tokens_per_second: 5.2, key=3, author=me",
        "pad_token='<pad>', eos_token: <eos>, image_token_id=42",
        "https://host/?keyword=a&max_tokens=3&author=me",
        "task.question: <image> is a special token: not text",
        "if token := special_token(text): raise",
        "--env HF_TOKEN: not set here.",
        "params.yaml: grpo.api_key: unknown key, did you mean",
        "def read(token: str, password=None)",
        "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
        "hf_transfer and hf_overrides",
    ],
    ids=map(str, count()),
)
def test_other_text_is_unchanged(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("secret", "names"),
    [
        (True, "WANDB_API_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN PGPASSWORD MYSQL_PWD SMTP_PASS AWS_ACCESS_KEY_ID"),
        (True, "AZURE_STORAGE_KEY SLACK_WEBHOOK_URL KF_PIPELINES_COOKIE accessToken client_secret X-Api-Key auth"),
        (False, "max_new_tokens tokens_per_second key keys author image_token_id TOKENIZERS_PARALLELISM pass_rate"),
        (False, "AWS_WEB_IDENTITY_TOKEN_FILE KF_PIPELINES_SA_TOKEN_PATH PWD KEYCLOAK compass"),
    ],
)
def test_names_of_secrets(secret: bool, names: str) -> None:
    assert [name for name in names.split() if is_secret_name(name) != secret] == []


def test_values_are_secret_by_name_or_form() -> None:
    assert is_secret("HTTPS_PROXY", "http://user:pw@proxy")
    assert is_secret("HTTPS_PROXY", "user:pw@proxy:8080")
    assert is_secret("WANDB_API_KEY", "abc")
    assert not is_secret("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert not holds_secret("registry:5000/image@sha256:0a1b")


def test_secrets_of_the_environment_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3t")
    monkeypatch.setenv("WANDB_API_KEY", "a+long/secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2@proxy:8080")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dvc")
    assert masked("s3://dvc/files") == "s3://dvc/files", "a key's id may be the name of its bucket"
    assert masked("401 for user x with s3cr3t") == "401 for user x with ***"
    assert masked("s3cr3ts are a word of their own") == "s3cr3ts are a word of their own"
    assert masked("xa+long/secretx a%2Blong%2Fsecret hunter2") == "x***x *** ***"


def test_json_is_masked_by_name_and_form_and_equal_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    content = {
        "max_test_rows": 3,
        "split": ["test", 0.5, None],
        "from": {"url": 'http://me:geheim@host/x?token=a"}', "api_key": "abc", "token": None},
        "question": "Which number follows the word token= in the image?",
    }
    expected = content | {"from": {"url": "http://me:***@host/x?token=***", "api_key": "***", "token": None}}
    assert masked_json(content) == expected
    assert masked_json(content, environment=True)["split"] == ["***", 0.5, None]


def test_settings_without_secrets_are_unchanged() -> None:
    def keys(tree: Any) -> Iterator[str]:
        for key, value in tree.items() if isinstance(tree, dict) else ():
            yield key
            yield from keys(value)

    for file in (ROOT / "params.yaml", *(ROOT / "pipelines" / "recipes").glob("*.yaml")):
        tree = load_settings(file).tree()
        assert masked_json(tree) == tree
        assert [key for key in keys(tree) if is_secret_name(key)] == []


def test_tracebacks_and_log_records_are_masked() -> None:
    """Of the main thread, of other threads, and of libraries that log an error."""
    code = """
import logging, threading
from components.shared.io import secrets
from components.shared.io.secrets import mask_output
mask_output()
def fail():
    raise OSError("proxy http://me:hunter2@proxy")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
logging.warning("GET %s", "/x?X-Amz-Signature=hunter2")
try:
    fail()
except OSError:
    logging.exception("again")
fail()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "hunter2" not in run.stderr
    assert run.stderr.count("OSError: proxy http://me:***@proxy") == 3
    assert "GET /x?X-Amz-Signature=***" in run.stderr


def test_examples() -> None:
    assert doctest.testmod(secrets) == (0, 2)
