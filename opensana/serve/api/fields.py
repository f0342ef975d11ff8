"""Errors name a field as the client's API does, whatever it is called inside."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opensana.errors import RequestError
from opensana.serve.errors import ApiError, from_request


@contextmanager
def client_names(names: Mapping[str, str]) -> Iterator[None]:
    """Raise RequestErrors as ApiErrors, and both with an API's names for fields of an Order.

    The name is changed in `param` and at the beginning of the message.
    """
    try:
        yield
    except (RequestError, ApiError) as error:
        wrong = error if isinstance(error, ApiError) else from_request(error)
        name = names.get(wrong.param or "")
        if name is None:
            raise wrong from None
        message = wrong.message
        if message.startswith(f"{wrong.param} "):
            message = name + message.removeprefix(str(wrong.param))
        raise ApiError(
            wrong.status, message, code=wrong.code, param=name, headers=wrong.headers
        ) from None
