"""A ClickHouse server that does not answer."""

import os
import subprocess
import sys
from pathlib import Path


def test_it_is_said_once_and_without_the_password(tmp_path: Path) -> None:
    environment = os.environ | {"VERBATIM_STORE__URL": "http://writer:opensesame@127.0.0.1:1/verbatim"}
    command = [sys.executable, "-m", "appliance", "sessions", "--data", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("verbatim: store at 127.0.0.1:1 does not answer;")
