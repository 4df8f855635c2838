"""A process that executes its own program again."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import os, socket, sys, threading
from pathlib import Path
from collector.commands.anew import start_anew

ran, port = Path(sys.argv[1]), int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", port))  # in use, if the first one is still open
held = open(ran, "a")
held.write(f"{os.getpid()}\\n")
held.flush()
if len(ran.read_text().splitlines()) == 1:
    threading.Thread(target=start_anew, args=("a query does not end",)).start()
    threading.Event().wait()
print("the second one, with", *sys.argv[3:])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.slow
def test_it_is_the_same_process_with_the_same_arguments_and_nothing_open(tmp_path: Path) -> None:
    program, ran = tmp_path / "program.py", tmp_path / "ran"
    program.write_text(PROGRAM)
    arguments = [sys.executable, "-X", "dev", str(program), str(ran), str(free_port()), "an argument", "--flag"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == "the second one, with an argument --flag\n"
    first, second = ran.read_text().splitlines()
    assert first == second
    assert "starting anew; everything acknowledged is kept" in done.stderr


@pytest.mark.slow
def test_where_the_program_is_gone_it_ends_with_a_code_for_who_supervises(tmp_path: Path) -> None:
    code = (
        "import sys; from collector.commands.anew import start_anew; sys.executable = '/nonexistent'; start_anew('so')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 70
    assert "cannot be executed again" in done.stderr
