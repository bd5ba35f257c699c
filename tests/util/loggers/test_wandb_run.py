"""With the real package, offline: the file that `wandb sync` would send."""
import json
import struct

import pytest

from tests.util.loggers.entries import CONFIG, write_run
from util.loggers.protocol import PROJECT, Place
from util.loggers.wandb_run import WandbLogger

BLOCK = 2**15


@pytest.fixture
def offline(monkeypatch):
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "60")


def records(path):
    """Of a .wandb file: a log of LevelDB's format, whose entries are Records."""
    from wandb.proto.wandb_internal_pb2 import Record
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at:at + 7])
        whole += data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def parsed(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def written(path):
    """(config, history, project) of a run. Its service may still be writing: it does so before it ends."""
    import wandb
    wandb.teardown()
    config, history, project = {}, [], None
    for record in records(path):
        if record.WhichOneof("record_type") == "run":
            config |= parsed(record.run.config.update)
            project = record.run.project
        config |= parsed(record.config.update)
        if record.WhichOneof("record_type") == "history":
            history.append(parsed(record.history.item))
    return config, history, project


def test_everything_is_in_the_file(offline, tmp_path):
    write_run(WandbLogger(Place(tmp_path, "abc123", 0)), tmp_path, [0, 1])
    (path,) = tmp_path.glob("wandb/offline-run-*/run-abc123.wandb")
    config, history, project = written(path)
    assert project == PROJECT and {name: config[name] for name in CONFIG} == CONFIG
    assert [(row["epoch"], row["coco/AP"]) for row in history if "coco/AP" in row] == [(0, 0.0), (1, 0.1)]
    kinds = {name: value for row in history for name, value in row.items() if name.endswith("/_type")}
    assert kinds == {"summary/_type": "html-file", "curves/_type": "image-file"}
    (page,) = path.parent.glob("files/media/html/*.html")
    assert "# Summary\nAP &lt;50&gt;" in page.read_text()


def test_a_resumed_run_has_the_same_id(offline, tmp_path):
    write_run(WandbLogger(Place(tmp_path, "abc123", 0)), tmp_path, [0, 1])
    write_run(WandbLogger(Place(tmp_path, "abc123", 1)), tmp_path, [1, 2], CONFIG | {"lr": 0.5})
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    assert {path.name for path in files} == {"run-abc123.wandb"}
    config, history, _ = written(files[-1])
    assert config["lr"] == 0.5 and [row["epoch"] for row in history if "coco/AP" in row] == [1, 2]
