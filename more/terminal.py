"""How a script talks to a terminal: flags that are read, and bad input that ends in one line.

All scripts start through fail_in_one_line. Whatever is wrong is raised as a UserError, whose
message names the flag, file or line and how to mend it; it becomes one line on stderr and exit
code 2, without a traceback.

    python ovd.py --no-such-flag    # one such line
"""
import argparse
import logging
import os
import re
import signal
import sys


class UserError(Exception):
    """Bad input. The message is one line that names the flag, file or line, and how to mend it."""


def fail_in_one_line(main):
    """Run a script's main(): what is wrong becomes one line on stderr and exit code 2."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # it was started without
    sys.stdout.reconfigure(errors="replace")  # a terminal without a letter shows "?" for it
    argparse.ArgumentParser.error = refuse  # its own prints every flag first
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    try:
        for flag, value in zip(sys.argv, sys.argv[1:]):
            flag, value = (value[:-1], "") if re.fullmatch("--[a-z-]+=", value) else (flag, value)
            if not value:  # as of a variable of the shell that is not set
                name = flag if flag.startswith("-") else "an argument"
                raise UserError(f"{name} is empty; give a value or leave it out")
        main()
        sys.stdout.flush()
    except (UserError, OSError) as e:
        line = " ".join(str(e).split())
        if isinstance(e, OSError):  # a disk that is full, a name too long, a pipe that was closed
            line = f"{line}; see that there is such a place, and room to write to it"
            sys.stdout = None  # what is left to be said there would fail again
        print("error:", line if len(line) < 900 else f"{line[:400]} ... {line[-400:]}",
              file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)


def refuse(parser, message):
    """What a parser does with flags that it cannot read."""
    raise UserError(message)


def quiet():
    """Leave the screen to this project: of the libraries only errors, and a download's bar."""
    import huggingface_hub
    import transformers  # which takes seconds, and not every script needs it
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()
    for library in ("transformers", "huggingface_hub"):  # bitsandbytes: see more/libraries.py
        logging.getLogger(library).setLevel(logging.ERROR)


def make_parser(description):
    """A parser of flags whose --help shows the docstring `description` as it is written."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return argparse.ArgumentParser(prog=spec and f"python -m {spec.name}", description=description,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def number(kind, low, high):
    """A type for argparse: an int or float between low and high."""
    def convert(text):
        """The number. argparse turns a ValueError into a line that names the flag."""
        value = kind(text)
        if not low <= value <= high:  # as is NaN
            raise argparse.ArgumentTypeError(f"{text} must lie between {low} and {high}")
        return value
    convert.__name__ = kind.__name__  # which that line names, too
    return convert
