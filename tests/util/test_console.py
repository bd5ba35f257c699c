import io
import os
import subprocess
import sys

import pytest

from util.console import escape_unknown_letters


def test_unknown_letters_are_escaped_and_known_ones_stay(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    escape_unknown_letters()
    for stream in streams:
        stream.write("é 猫 √")
        stream.flush()
        assert stream.buffer.getvalue() == b"\xe9 \\u732b \\u221a"


def test_a_stream_of_another_kind_is_left(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    escape_unknown_letters()
    print("猫")
    assert sys.stdout.getvalue() == "猫\n"


@pytest.mark.parametrize("program", [["main.py", "-c", "猫.py", "--coco_path", "x"],
                                     ["tools/detect.py", "猫.jpg", "-c", "x", "--resume", "x"]])
def test_a_message_ends_no_program_whose_output_has_another_code_page(program):
    done = subprocess.run([sys.executable, *program, "--device", "cpu"], capture_output=True, timeout=120,
                          env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    output = done.stdout + done.stderr
    assert b"error: " in output and b"\\u732b" in output and b"Traceback" not in output
