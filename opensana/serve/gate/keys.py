"""Keys: who may ask. A key is a Bearer token and, for browsers and A1111's clients, a password."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from opensana.errors import ConfigError

SHORTEST = 16
NAME = re.compile(r"[\w.-]{1,64}")


@dataclass(frozen=True)
class Key:
    """Who asks; only the name is ever written down."""

    name: str


LOCAL = Key("local")
"""Everybody, where there are no keys."""


class Keys:
    """The keys of a server, as their digests."""

    def __init__(self, secrets: Iterable[tuple[str, str]]) -> None:
        self._digests = [(Key(name), _digest(secret.encode())) for name, secret in secrets]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def find(self, authorization: bytes) -> Key | None:
        """The key of an `Authorization` header; every key is compared, in constant time."""
        secret = _digest(_secret(authorization))
        found = None
        for key, digest in self._digests:
            if hmac.compare_digest(secret, digest):
                found = key
        return found


NO_KEYS = Keys(())


def read_keys(path: Path) -> Keys:
    """Lines of `name:key`; # begins a comment."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"the keys in {path} cannot be read: {error.strerror}") from error
    except UnicodeError:
        raise ConfigError(
            f"the keys in {path} cannot be read: it is no text in UTF-8; write lines of name:key"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, secret = (part.strip() for part in line.partition(":"))
        where = f"{path}, line {number}"
        if not colon or not NAME.fullmatch(name):
            raise ConfigError(f"{where}: write name:key, the name of letters, digits, . _ -")
        if len(secret) < SHORTEST:
            raise ConfigError(f"{where}: a key has at least {SHORTEST} characters")
        if name in found or secret in found.values():
            raise ConfigError(f"{where}: the name or the key is there already")
        found[name] = secret
    if not found:
        raise ConfigError(f"{path} holds no key; write a line of name:key")
    return Keys(found.items())


def _secret(authorization: bytes) -> bytes:
    scheme, _, rest = authorization.strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return b""


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


async def _caller(http: Request) -> Key:  # a plain function would be given a thread each time
    return http.scope["key"]


Caller = Annotated[Key, Depends(_caller)]
"""The key of the request, for handlers; `guard.py` has found it."""
