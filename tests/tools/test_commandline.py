"""Exit codes and sentences for what a command raises."""

import errno

import pytest

from pipeline.manifest import ManifestError
from tools.commandline import CommandError, exit_code


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (CommandError("a wrong flag"), "ERROR: a wrong flag\n"),
        (ManifestError("no manifest"), "ERROR: no manifest\n"),
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "ERROR: /a/b: Permission denied\n"),
        (OSError(errno.ENOSPC, "No space left on device"), "ERROR: No space left on device\n"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence_and_exit_code_1(capsys, error, sentence):
    assert exit_code(raising(error), ["program"]) == 1
    assert capsys.readouterr().err == sentence


def test_ctrl_c_is_exit_code_130(capsys):
    assert exit_code(raising(KeyboardInterrupt()), ["program"]) == 130


def test_faults_of_the_software_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(raising(ZeroDivisionError()), ["program"])


def test_the_code_of_main_is_passed_on():
    assert exit_code(lambda argv: 3, ["program"]) == 3
