import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading

import pytest

from util.errors import LostProcess, UserError
from util.program import run_program


def ends(error=None, code=None, handlers=()):
    """The exit code of a program that raises this error, or returns this code, and logs to these handlers."""
    def main():
        if error is not None:
            raise error
        return code

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(threading, "excepthook", threading.excepthook)
        patch.setattr(logging.getLogger(), "handlers", list(handlers))
        run_program(main)
    return end.value.code


@pytest.mark.parametrize("error, code, text", [
    (UserError("no file x"), 2, "error: no file x\n"),
    (LostProcess("gone"), 75, "error: gone\n"),
    (UserError("Traceback (most recent call last):\n  File ...\nutil.errors.UserError: no file y\n"), 2,
     "error: no file y\n"),
    (KeyboardInterrupt(), 130, "error: interrupted\n"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
    (PermissionError(errno.EACCES, "Permission denied", "/a/b"), 2, "error: /a/b: Permission denied\n")])
def test_what_the_user_can_put_right_is_one_line(error, code, text, capsys):
    assert ends(error) == code
    assert capsys.readouterr().err == text


def test_the_exit_code_of_main(capsys):
    assert ends(code=3) == 3 and ends(code=None) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ConnectionResetError(errno.ECONNRESET, "reset"), OSError()])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_program(lambda: (_ for _ in ()).throw(error))


def test_a_program_that_logs_says_it_there(caplog):
    assert ends(UserError("no file x"), handlers=[caplog.handler]) == 2
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("ERROR", "no file x")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("error, said", [(OSError(errno.ENOSPC, "full"), False), (OSError("other"), True),
                                         (KeyError("a bug"), True)])
def test_what_the_disk_refuses_a_thread_is_no_traceback(error, said, capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def fail():
        raise error

    def main():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    with pytest.raises(SystemExit):
        run_program(main)
    assert ("Traceback" in capsys.readouterr().err) == said


SCRIPT = textwrap.dedent("""
    import sys
    from util.program import run_program

    def main():
        for _ in range(100_000):
            print("a line")

    run_program(main)
""")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written(buffered):
    code = SCRIPT if buffered else SCRIPT.replace('"a line")', '"a line", flush=True)')
    with open("/dev/full", "wb") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_output_that_nobody_reads():
    running = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout.readline() == b"a line\n"
    running.stdout.close()
    assert running.wait(timeout=60) == 141 and running.stderr.read() == b""
