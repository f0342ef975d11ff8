"""Open a captioner by its name on the command line."""

import re
from urllib.parse import urlsplit

from opensana.errors import ConfigError
from opensana.label.captioner import LOCAL, TABLE, Captioner, Settings


def open_captioner(spec: str, settings: Settings) -> Captioner:
    """The captioner of `hf:FOLDER-OR-HUB-ID`, `http://HOST/v1#MODEL` or `table:FILE#COLUMN`.

    Models and tables are loaded at once.
    """
    check_spec(spec)
    if spec.startswith(TABLE):
        from opensana.label.tables import TableCaptioner

        return TableCaptioner(spec.removeprefix(TABLE))
    if spec.startswith(LOCAL):
        from opensana.label.local import LocalCaptioner

        return LocalCaptioner(spec.removeprefix(LOCAL), settings)
    from opensana.label.endpoint import EndpointCaptioner

    url, _, model = spec.partition("#")
    return EndpointCaptioner(url, model, settings)


def check_spec(spec: str) -> None:
    """ConfigError unless `spec` names a captioner."""
    if spec.startswith(LOCAL) and spec != LOCAL:
        return
    if spec.startswith(TABLE) and all(spec.removeprefix(TABLE).rpartition("#")[::2]):
        return
    try:
        url = urlsplit(spec)
        good = url.scheme in ("http", "https") and url.hostname and url.fragment and not url.query
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{re.sub('//[^/@]*@', '//***@', spec)!r} is no captioner; try hf:FOLDER, "
            "hf:owner/name, "
            "http://127.0.0.1:8000/v1#model-name or table:captions.csv#column"
        )
    if "@" in urlsplit(spec).netloc:
        raise ConfigError("a captioner's address holds a password; put keys in the environment")
