"""Masks secrets in text and JSON that is printed, logged or stored: by the name before them, and by their form."""

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote

MASK = "***"
SHORTEST = 3  # characters of a secret from the environment that is masked
WHOLE_WORDS = 8  # shorter ones are masked as whole words only: the password `test` is no part of `latest`

# Words of names whose values are secret, wherever in the name they stand: DB_PASSWORD, PGPASSWORD, accessToken.
_SECRET_PARTS = ("password", "passwd", "passphrase", "apikey", "accesskey", "secretkey", "privatekey", "accesstoken")
_SECRET_WORDS = {"pwd", "secret", "token", "credential", "credentials", "jwt", "webhook"}
_SECRET_LAST = {"auth", "authorization", "cookie"}
_SECRET_KEYS = {"access", "account", "api", "encryption", "private", "secret", "signing", "ssh"}  # before `key`
# In the query of a URL also these: signatures of buckets, keys of APIs.
_SECRET_IN_QUERY = {"key", "sig", "signature", "awsaccesskeyid", "googleaccessid"}
# A name that ends so says where the secret is, or what it is called: AWS_WEB_IDENTITY_TOKEN_FILE, token_type_ids.
_NOT_THE_VALUE = {"dir", "file", "folder", "ids", "index", "name", "path", "ref", "type"}
# Tokens of text: pad_token, image_token_id, next_token.
_OF_TEXT = {
    *("added", "audio", "bos", "boi", "cls", "end", "eoi", "eos", "fake", "first", "global", "image", "last", "mask"),
    *("max", "min", "new", "next", "pad", "per", "sep", "special", "start", "tokenizer", "unk", "video"),
}
_HARMLESS = re.compile(r"\*+|true|false|yes|no|on|off|none|null|\d{1,2}", re.IGNORECASE)

# A URL ends at white space, or where another one begins.
_URL = re.compile(
    r"(?<![a-z0-9+.-])(?P<scheme>[a-z][a-z0-9+.-]{0,30})://(?P<rest>\S*?)"
    r"(?=[\s,;\"'()<>\[\]{}|=]+[a-z][a-z0-9+.-]{0,30}://|\s|$)",
    re.IGNORECASE,
)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:@]*)(:\d{0,5})?")
_PROXY = re.compile(r"[\w.-]+:\d+/?")
_DATABASES = {"amqp", "amqps", "mariadb", "mongodb", "mssql", "mysql", "oracle", "postgres", "postgresql", "redis"}
_QUERY = re.compile(r"(?<=[?&#;])(?P<name>[\w.%-]+)=(?P<value>[^&\s]+)")
# `NAME=value`, `"name": "value"`, `name: value`, also in a quoted string: \"name\": \"value\".
_NAMED = re.compile(
    r"(?<![\w?&#;./])(?<!\w-)(?P<name>[A-Za-z_][\w.-]*)(?P<quote>\\*[\"'])?(?P<sign>\s?[=:](?![=/])\s?)"
)
_FLAG = re.compile(r"(?<![\w-])--(?P<name>[a-z][\w-]*)\s+(?=[^\s-])")
# A value is quoted, or ends at white space; a header has its scheme before it, cookies are joined by `; `.
_VALUE = re.compile(
    r"(?P<open>\\*[\"'])(?P<quoted>(?:(?!(?P=open))(?:\\.|.))*)(?P=open)"
    r"|(?P<bare>(?:(?:Bearer|Basic|Digest|Token)\s+)?[^\s\"'](?:\S*;\s)*\S*?)(?=[\"'),;.\]}]*(?:\s|$))"
)
_PLAIN_WORDS = re.compile(r"[a-z]{1,12},? [a-z<]")
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|Token)(\s+)(?=\S*[\d=+/._-])[\w.~+/=-]{6,}")
_FORMS = (
    re.compile(r"\bhf_(?:[A-Za-z0-9]{20,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8,})"),  # Hugging Face
    re.compile(r"\b(?:gh[opsur]_|github_pat_|glpat-|xox[abeprs]-|sk-|npm_|pypi-)[\w-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"),  # access key ids of AWS
    re.compile(r"\bAIza[\w-]{30,}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # JSON web tokens
    re.compile(r"(?<=-----BEGIN )[A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY(?=-----)", re.DOTALL),
    re.compile(r"(?<=hooks\.slack\.com/)(?:services|workflows|triggers)/\S+"),
    re.compile(r"(?<=/api/webhooks/)\S+"),  # Discord
    re.compile(r"(?<=\.webhook\.office\.com/)\S+"),
)
_LIKE_A_TOKEN = re.compile(r"(?=.*\d)[\w.~%-]{16,}")


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether what this names is a secret: a variable of the environment, a key, a header.

    >>> [is_secret_name(name) for name in ("WANDB_API_KEY", "hf_token", "max_new_tokens", "pad_token", "key", "author")]
    [True, True, False, False, False, False]
    """
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    if not words or words[-1] in _NOT_THE_VALUE or name in ("PWD", "OLDPWD"):
        return False
    if name.isupper() and len(words) > 1 and words[-1] in ("key", "pass"):
        return True
    if any(part in word for word in words for part in _SECRET_PARTS) or words[-1] in _SECRET_LAST:
        return True
    if any(first in _SECRET_KEYS and second == "key" for first, second in pairwise(words)):
        return True
    found = _SECRET_WORDS.intersection(words)
    return bool(found - {"token"}) or (bool(found) and not _OF_TEXT.intersection(words))


def is_secret(name: str, value: str) -> bool:
    """Whether a value is a secret or holds one, by its name or by its form; `1` of DISABLE_TOKEN is none."""
    return (is_secret_name(name) and not _HARMLESS.fullmatch(value)) or holds_secret(value)


def holds_secret(value: str) -> bool:
    """Whether a value holds a secret by its form, whatever its name: a password in a URL, an access token."""
    bare = re.fullmatch(r"[^/@\s:]+:\S+@[\w.-]+:\d{1,5}(/\S*)?", value)  # user:password@proxy:8080
    return bool(bare) or _masked_forms(value) != value


def masked(text: str) -> str:
    """`text` with `***` in place of secrets: those of the environment, after a secret's name, and by their form.

    In a URL the password reaches to the last `@` of the authority, since it may hold `@`, `/`, `:` and `%`.

    >>> masked("https://me:a/b@c@host/x?X-Amz-Signature=1f&v=2 with HF_TOKEN=abc")
    'https://me:***@host/x?X-Amz-Signature=***&v=2 with HF_TOKEN=***'
    """
    text = _masked_values(_masked_values(_masked_forms(text), _NAMED), _FLAG)
    for secret in sorted(set(_environment_secrets()), key=len, reverse=True):
        pattern = re.escape(secret)
        text = re.sub(pattern if len(secret) >= WHOLE_WORDS else rf"(?<!\w){pattern}(?!\w)", MASK, text)
    return text


def masked_json(content: Any, environment: bool = False) -> Any:
    """JSON content with `***` in place of secrets in every string: below a secret's name, and by their form.

    Keys are unchanged, and so are words of a sentence: a question may ask for a `token: ...`.

    Args:
        content: mappings, lists and plain values.
        environment: also mask secrets of the environment, where the content is stored. Without, the result is the same
            on every machine and can be compared: a password `test` must not change the name of a split.
    """
    if isinstance(content, Mapping):
        return {
            key: MASK
            if isinstance(value, str) and is_secret_name(str(key)) and not _HARMLESS.fullmatch(value)
            else masked_json(value, environment)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [masked_json(value, environment) for value in content]
    if not isinstance(content, str):
        return content
    return masked(content) if environment else _masked_forms(content)


def mask_output() -> None:
    """Masks secrets in what libraries log and in the tracebacks of this process."""
    sys.excepthook = _print_masked
    threading.excepthook = lambda thread: _print_masked(thread.exc_type, thread.exc_value, None)
    logging.setLogRecordFactory(_MaskedRecord)


def masked_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without secrets."""
    return masked("".join(traceback.format_exception(error)))


def _print_masked(kind: type[BaseException], error: BaseException | None, _: object) -> None:
    if error is not None and not issubclass(kind, SystemExit):
        sys.stderr.write(masked_traceback(error))


class _MaskedRecord(logging.LogRecord):
    """A log record whose message and traceback have no secrets, whichever handler formats it."""

    def getMessage(self) -> str:
        """The message, without secrets."""
        message = masked(super().getMessage())
        if self.exc_info and self.exc_info[1] and not self.exc_text:  # formatters take `exc_text` if it is set
            self.exc_text = masked_traceback(self.exc_info[1]).rstrip("\n")
        return message


def _environment_secrets() -> Iterator[str]:
    """Secrets in the variables of this process, also as URLs write them.

    The id of a key (AWS_ACCESS_KEY_ID) is often a word, such as the name of a bucket; AWS's are masked by their form.
    """
    for name, value in os.environ.items():
        found = [value] if is_secret_name(name) and not name.endswith("_ID") else []
        found += [_password(url) for url in _URL.finditer(value) if _password(url) != _user(url)]
        for secret in found:
            if len(secret) >= SHORTEST and not _HARMLESS.fullmatch(secret):
                yield from (secret, quote(secret, safe=""), unquote(secret))


def _masked_forms(text: str) -> str:
    """The text without what is a secret by its form."""
    text = _URL.sub(_masked_url, text)
    text = _QUERY.sub(_masked_query, text)
    text = _SCHEME.sub(rf"\1\2{MASK}", text)
    for form in _FORMS:
        text = form.sub(MASK, text)
    return text


def _user_info(url: re.Match[str]) -> str:
    """User and password of a URL, which end at the last `@` of its authority; empty if it has none.

    An `@` in the path alone is none. `http://host:80/a@b` may be a host and a path or a user and a password: it is the
    latter where a database's or a proxy's address follows.
    """
    rest = url["rest"]
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in authority:
        before_query = re.split(r"[?#]", rest, maxsplit=1)[0]
        return before_query[: max(before_query.rfind("@"), authority.rfind("@"))]
    user_info, at, host = rest.rpartition("@")
    if not at or ":" not in authority:
        return ""
    is_host = _HOST_AND_PORT.fullmatch(authority) and url["scheme"].partition("+")[0].lower() not in _DATABASES
    return "" if is_host and not _PROXY.fullmatch(host) else user_info


def _user(url: re.Match[str]) -> str:
    return _user_info(url).partition(":")[0]


def _password(url: re.Match[str]) -> str:
    """The password of a URL, or the token in place of a user; empty if it has none."""
    user, colon, password = _user_info(url).partition(":")
    return password if colon else user if _LIKE_A_TOKEN.fullmatch(user) else ""


def _masked_url(url: re.Match[str]) -> str:
    if not _password(url):
        return url[0]
    user_info = _user_info(url)
    shown = f"{_user(url)}:" if ":" in user_info else ""
    return f"{url['scheme']}://{shown}{MASK}{url['rest'][len(user_info) :]}"


def _masked_query(part: re.Match[str]) -> str:
    name = unquote(part["name"])
    words = re.split(r"[^a-z]+", name.lower())
    secret = is_secret_name(name) or _SECRET_IN_QUERY.intersection(words) or words == ["auth"]
    return f"{part['name']}={MASK}" if secret else part[0]


def _masked_values(text: str, named: re.Pattern[str]) -> str:
    """The text without the values that follow the name of a secret."""
    parts, end = [], 0
    for found in named.finditer(text):
        if found.start() < end or not is_secret_name(found["name"]) or _is_prose(found):
            continue
        if not (value := _VALUE.match(text, found.end())):
            continue
        group = "bare" if value["quoted"] is None else "quoted"
        if not _HARMLESS.fullmatch(value[group]):
            parts += [text[end : value.start(group)], MASK]
            end = value.end(group)
    return "".join([*parts, text[end:]])


def _is_prose(found: re.Match[str]) -> bool:
    """Whether a name before a colon belongs to a sentence: it is one word within a line, or plain words follow.

    Never a password: `wrong password: swordfish for user x` has plain words, too.
    """
    fields = found.groupdict()
    if ":" not in fields.get("sign", "") or fields["quote"] or "pass" in fields["name"].lower():
        return False
    line = found.string.rfind("\n", 0, found.start()) + 1
    before = found.string[max(line, found.start() - 100) : found.start()].strip(" \t-")
    one_word = fields["name"].isalpha() and bool(before)
    return one_word or bool(_PLAIN_WORDS.match(found.string, found.end()))
