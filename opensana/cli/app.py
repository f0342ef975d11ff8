"""`main`: parse the command line, run the command, turn errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 asked for wrongly, 130 interrupted with Ctrl-C.
"""

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import tyro

from opensana import __version__
from opensana.cli.command import Command, emit, say, say_warnings, survive_any_encoding
from opensana.cli.convert import Convert
from opensana.cli.cost import Cost
from opensana.cli.data import DATA_COMMANDS, data
from opensana.cli.encode import Encode
from opensana.cli.evaluate import Evaluate
from opensana.cli.generate import Generate
from opensana.cli.info import Info
from opensana.cli.label import Label
from opensana.cli.preview import Preview
from opensana.cli.quantize import Quantize
from opensana.cli.reconstruct import Reconstruct
from opensana.cli.report import Report
from opensana.cli.runs import Runs
from opensana.cli.serve import Serve
from opensana.cli.train import Train
from opensana.errors import ConfigError, OpensanaError, RequestError

# A function is a group: its commands are the choices of its argument.
COMMANDS: dict[str, Callable[..., Command]] = {
    "generate": Generate,
    "serve": Serve,
    "info": Info,
    "label": Label,
    "encode": Encode,
    "train": Train,
    "runs": Runs,
    "evaluate": Evaluate,
    "reconstruct": Reconstruct,
    "report": Report,
    "preview": Preview,
    "convert": Convert,
    "quantize": Quantize,
    "cost": Cost,
    "data": data,
}
DESCRIPTION = (
    f"opensana {__version__}: draws pictures from text with the Sana system, and trains it. "
    'Start with: opensana generate "a red apple"'
)
MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


def names() -> list[str]:
    """Every command as it is typed."""
    groups = {"data": DATA_COMMANDS}
    return [name for word in COMMANDS for name in groups.get(word, [word])]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code (`--help` and unknown flags exit themselves)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    survive_any_encoding()
    try:
        if arguments == ["--version"]:
            emit(f"opensana {__version__}")
        else:
            parse(arguments).run()
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        return _failed(error, debug="--debug" in arguments)
    return 0


def program() -> NoReturn:
    """`main` as a process of its own.

    With no thread left running it ends at once: to free a model and a tokenizer piece by piece
    takes a third of a second that nobody has use for.
    """
    say_warnings()
    code = main()
    if threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:  # it was closed before the start
            sys.stdout.flush()
    except OSError as error:
        say(f"cannot write to stdout: {error}")
        code = 1
    os._exit(code)


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe; exits with 2 and a hint when there is none."""
    command = tyro.extras.subcommand_cli_from_dict(
        dict(COMMANDS), prog="opensana", description=DESCRIPTION, args=arguments, config=MARKERS
    )
    defaults = command.defaults()
    if defaults is None:
        return command
    return tyro.cli(
        type(command),
        prog=f"opensana {arguments[0]}",
        default=defaults,
        args=arguments[1:],
        config=MARKERS,
    )


def _failed(error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, OpensanaError):
        say(_one_line(str(error)))
        return 2 if isinstance(error, RequestError | ConfigError) else 1
    hint = "" if debug else "; add --debug to see where"
    say(_one_line(f"{type(error).__name__}: {error}{hint}"))
    return 1


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _reader_left() -> int:
    # As in `opensana ... | head -1`. Python flushes stdout once more on exit: let that succeed.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
