"""A check for schemathesis: every error has OpenAI's shape and tells nothing of the server."""

import schemathesis

LEAKS = ("Traceback", 'File "', "site-packages", ".py")


@schemathesis.check
def one_shape(ctx, response, case) -> None:
    if response.status_code >= 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, response.text
        assert not [leak for leak in LEAKS if leak in response.text], response.text
