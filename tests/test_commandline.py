"""Exit codes and sentences for what a command raises."""

import errno
import subprocess
import sys

import pytest

from keras_mae import run_flags
from keras_mae.commandline import CommandError, exit_code, user_mistakes
from keras_mae.layers.position_resize import POSITIONS


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (CommandError("a wrong flag"), "ERROR: a wrong flag\n"),
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


def test_only_the_named_kinds_are_mistakes_of_the_user():
    with pytest.raises(CommandError, match="too small"), user_mistakes(KeyError):
        raise KeyError("too small")
    with pytest.raises(ZeroDivisionError), user_mistakes(KeyError):
        raise ZeroDivisionError


PRETRAIN_HELP = ("--mask_ratio: share of the patches removed", "--strategy: ", "--data: ")


@pytest.mark.parametrize(
    "module, text, flags",
    [
        ("tools.verify_shards", "Checks a shard set", ("--shards: ", "--[no]repair: ", "--source: ")),
        ("keras_mae.pretrain", "Pre-trains a masked autoencoder", PRETRAIN_HELP),
    ],
)
def test_help_shows_the_text_and_all_flags_of_a_command(module, text, flags):
    command = [sys.executable, "-m", module, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert shown.lstrip().startswith(text)
    for flag in flags:
        assert flag in shown


COMMANDS = ("pretrain", "pretrain_tokenizer", "finetune", "linear_probe", "evaluate", "knn", "features", "predict")


def test_commands_start_without_tensorflow_and_keras():
    """So that --help, --recipe=list, --print and the check of most mistakes take no seconds."""
    imports = "; ".join(f"import keras_mae.{command}" for command in COMMANDS)
    heavy = "[name for name in ('tensorflow', 'keras', 'jax', 'torch') if name in sys.modules]"
    command = [sys.executable, "-c", f"import sys; {imports}; print({heavy})"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert shown.strip() == "[]"


def test_the_flag_of_positions_has_the_choices_of_the_layer():
    assert run_flags.POSITIONS == POSITIONS
