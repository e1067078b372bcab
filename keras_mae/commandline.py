"""How every command ends: a user's mistake becomes one sentence on stderr and exit code 1, never a traceback.

Other exceptions are faults of this software and keep their traceback. Imports neither Keras nor TensorFlow.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging

# TensorFlow's C++ side reports harmless things as errors; what matters arrives as a Python exception.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class CommandError(ValueError):
    """A command was asked for something that it cannot do; the message says what is wrong and how to fix it."""


@contextlib.contextmanager
def user_mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Marks a part of a command in which an exception of these kinds is the user's mistake.

    Args:
        *kinds: exception classes; none stands for ValueError, for the part that only checks what the user gave.
    """
    kinds = kinds or (ValueError,)
    try:
        yield
    except kinds as error:
        raise CommandError(str(error)) from error


def run(main: Callable[[list[str]], int], define_flags: Callable[[], None], *, takes_words: bool = False) -> None:
    """Defines and parses the flags, runs `main`, and exits with its code.

    Args:
        main: takes the command line's words that are not flags (the program first), returns the exit code.
        define_flags: defines the command's flags; here and not at import, so that importing a command is harmless.
        takes_words: whether `main` has a use for such words; otherwise they are a mistake.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names need not be valid text; printing one must not raise.
        stream.reconfigure(errors="backslashreplace")
    define_flags()
    _show_in_help(define_flags.__module__)
    logging.set_verbosity(logging.WARNING)  # TensorFlow sets INFO; --verbosity=0 brings that back
    app.run(lambda argv: exit_code(main, argv, takes_words=takes_words))


def _show_in_help(module: str) -> None:
    """Lets --help print the command's text and all its flags, wherever they are defined, however it was started.

    absl shows the text of `__main__`, which a console script lacks, and the flags that `__main__` itself defines.
    """
    sys.modules["__main__"].__doc__ = sys.modules[module].__doc__
    for name, defined in flags.FLAGS.flags_by_module_dict().items():
        if name.split(".")[0] in ("keras_mae", "tools"):
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def exit_code(main: Callable[[list[str]], int], argv: list[str], *, takes_words: bool = False) -> int:
    """Runs `main(argv)` and turns what it raises into an exit code: 1 for a user's mistake, 130 for Ctrl-C."""
    try:
        if not takes_words:
            refuse_words(argv)
        return main(argv)
    except BrokenPipeError:  # what reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to finish", file=sys.stderr)
        return 130
    except (CommandError, OSError) as error:
        print(f"ERROR: {_sentence(error)}", file=sys.stderr)
        return 1


def refuse_words(argv: list[str]) -> None:
    """Raises CommandError if the command line has a word that is no flag."""
    if len(argv) > 1:
        raise CommandError(f"unexpected argument {argv[1]!r}; options are written --name=value, see --help")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
