"""Output to the console, or to the file or pipe that takes its place."""
import io
import sys


def escape_unknown_letters() -> None:
    """Letters that the code page of stdout or stderr lacks are written as \\u1234 from now on, instead of ending the
    program: redirected output has the code page of the system, which is not UTF-8 everywhere."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook or a test
            stream.reconfigure(errors="backslashreplace")
