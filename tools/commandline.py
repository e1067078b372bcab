"""How every command ends: a user's mistake becomes one sentence on stderr and exit code 1, never a traceback.

Other exceptions are faults of this software, and keep their traceback.
"""

import sys
from collections.abc import Callable

from absl import app, flags

from pipeline.manifest import ManifestError
from pipeline.sources import SourceError


class CommandError(ValueError):
    """A command was asked for something that it cannot do; the message says why and what to do."""


USER_ERRORS = (CommandError, ManifestError, SourceError, OSError)


def run(main: Callable[[list[str]], int]) -> None:
    """Parses the flags, runs `main`, and exits with its code.

    Args:
        main: takes the command line's words that are not flags (the program first), returns the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # File names need not be valid text; printing one must not raise.
        stream.reconfigure(errors="backslashreplace")
    module = sys.modules[main.__module__]
    if module.__name__ != "__main__":
        # Started by an installed script: --help shall show what `python -m` shows.
        sys.modules["__main__"].__doc__ = module.__doc__
        for flag in flags.FLAGS.flags_by_module_dict().get(module.__name__, ()):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(lambda argv: exit_code(main, argv))


def exit_code(main: Callable[[list[str]], int], argv: list[str]) -> int:
    """Runs `main(argv)` and turns what it raises into an exit code: 1 for mistakes, 130 for Ctrl-C."""
    try:
        if len(argv) > 1:
            raise CommandError(
                f"unexpected argument {argv[1]!r}; options are written --name=value, see --help"
            )
        return main(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        print(f"ERROR: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
