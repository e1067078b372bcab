"""A command of a study ends with the study, however that ends; test_ablate.py has the rest."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a promise on Linux only")
def test_a_command_does_not_outlive_a_study_that_is_killed():
    code = f"from tools.study_steps import run_step; run_step(['-c', {SLEEPER!r}])"
    study = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with study.stdout as output:
        command = int(next(line for line in output if line.strip().isdigit()))
        assert is_running(command)
        study.send_signal(signal.SIGKILL)
        study.wait(60)
    deadline = time.monotonic() + 60
    while is_running(command):
        assert time.monotonic() < deadline
        time.sleep(0.01)
