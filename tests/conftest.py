"""What many tests share: a tiny synthetic set, and a Lite-DINO that is small enough to train in seconds."""
import contextlib
import functools
import hashlib
import importlib
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import main as program
from datasets.synthetic import CLASSES, generate
from deploy import FORMATS
from deploy.graph import DetectionGraph
from inference.artifact import Artifact
from inference.backends.torch_model import open_backend
from models import build_model
from tests.browser import BrowserPage, chromium
from tests.inference.detectors import spread_scores
from util.config import load_config

torch.set_num_threads(1)  # the models are tiny, and several test processes share the cores

TINY = {
    "pretrained_backbone": False, "backbone": "resnet18", "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64,
    "enc_layers": 2, "num_expansion": 1, "enc_scale": 2, "num_feature_levels": 3, "return_interm_indices": [2, 3],
    "enc_n_points": 2, "dec_layers": 2, "dec_n_points": 2, "num_queries": 20, "dn_number": 4, "num_select": 20,
    "num_classes": 7, "dn_labelbook_size": 7, "data_aug_scales": [64, 96], "data_aug_max_size": 128,
    "data_aug_scales2_resize": [64, 80], "data_aug_scales2_crop": [48, 64], "batch_size": 2, "epochs": 2, "lr_drop": 1,
}

# The same for the models of config/SDETR, over their own keys.
TINY_SDETR = {name: value for name, value in TINY.items() if name.startswith(("data_aug", "pretrained", "num_classes"))}
TINY_SDETR |= {"backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 64, "num_queries": 10, "dropout": 0.0,
               "num_select": 10, "epochs": 2, "lr_drop": 1}


@pytest.fixture(scope="session")
def coco_root(tmp_path_factory):
    """Folder with 8 train and 8 val images of about 96 px, among them one without objects and one with a crowd."""
    root = tmp_path_factory.mktemp("coco") / "set"
    generate(root, train=8, val=8, seed=1, size=96)
    return root


@pytest.fixture(scope="session")
def tiny_dino():
    """tiny_dino(**options): a Lite-DINO with about 11 M backbone and 0.1 M other parameters."""
    return lambda **options: load_config("config/DINO/DINO_4scale.py", TINY | options)


@pytest.fixture
def tiny_config(tiny_dino):
    torch.manual_seed(0)
    return tiny_dino()


@pytest.fixture(scope="session")
def tiny_sdetr():
    """tiny_sdetr(name, **options): small config of config/SDETR/<name>.py."""
    return lambda name, **options: load_config(f"config/SDETR/{name}.py", TINY_SDETR | options)


@pytest.fixture(scope="session")
def config_file(tiny_dino, tmp_path_factory):
    """That Lite-DINO on two of the backbone's stages: checkpoints of 10 MB."""
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    tiny_dino(return_interm_indices=[1], num_feature_levels=2).dump(path)
    return path


@contextlib.contextmanager
def calling(config_file, coco_root):
    """A function that calls main.py in this process and returns the exit code. The pictures of a summary would take
    most of the time."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*flags, options=(), data=coco_root, summary=False, config=config_file):
        argv = ["-c", str(config)] if config else []
        argv += ["--device", "cpu", "--num_workers", "0", *map(str, flags)]
        argv += ["--coco_path", str(data)] if data else []
        argv += ["--options", *options] if options else []
        with pytest.MonkeyPatch.context() as patch:
            if not summary:
                patch.setattr("reports.summary.write_summary", empty_summary)
            return program.main(program.parse_args(argv))

    def empty_summary(folder, *_):
        (Path(folder) / "summary.md").touch()
        return ""

    try:
        yield call
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def call(config_file, coco_root):
    """call(*flags): main.py in this process."""
    with calling(config_file, coco_root) as call:
        yield call


@pytest.fixture(scope="session")
def train_once(config_file, coco_root, tmp_path_factory):
    """train_once(*options): the folder of such a training, for all tests that only read it."""
    @functools.cache
    def train_once(*options):
        folder = tmp_path_factory.mktemp("trained") / "run"
        with calling(config_file, coco_root) as call:
            assert call("--output_dir", folder, "--note", "first try", options=options) == 0
        return folder

    return train_once


@pytest.fixture
def trained(train_once):
    """The folder of a training of two epochs, for tests that only read it."""
    return train_once()


@pytest.fixture
def free_port():
    """A port on which nothing listens: one written into a test may be another program's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")  # not longer: while it runs, asyncio.run is impossible in other tests
def browser():
    """Headless Chromium, as Playwright's Browser."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser_page(browser):
    """A new page of 1280 x 900 px, with what goes wrong on it; see tests/browser.py."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(10_000)  # ms
    yield BrowserPage(context.new_page())
    context.close()


@pytest.fixture(scope="session")
def tiny_weights(tiny_dino, tmp_path_factory):
    """Config file and weights of a tiny Lite-DINO with random weights and class names."""
    folder = tmp_path_factory.mktemp("weights")
    config = tiny_dino(return_interm_indices=[1], num_feature_levels=2, nms_iou_threshold=0.8)
    config.dump(folder / "tiny.py")
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES, 1))
    model = build_model(config)[0]
    spread_scores(model)
    torch.save({"model": model.state_dict(), "class_names": names}, folder / "tiny.pth")
    return folder / "tiny.py", folder / "tiny.pth"


@pytest.fixture(scope="session")
def tiny_backend(tiny_weights):
    """That detector in PyTorch."""
    config, weights = tiny_weights
    return open_backend(weights, config=config)


@pytest.fixture(scope="session")
def exported(tiny_backend, tmp_path_factory):
    """exported(format, **changes): the path of that detector as a file, for tests that only read it. changes: of
    the Artifact's fields. All processes of a test run share the files: tracing takes long."""
    processes = "PYTEST_XDIST_WORKER" in os.environ  # each has a folder of its own in that of the run
    folder = tmp_path_factory.getbasetemp().parent if processes else tmp_path_factory.getbasetemp()

    def exported(format, **changes):
        module = importlib.import_module(FORMATS[format])
        how = {"size": (64, 96), "batch": 1, "uint8": False, "dtype": "float32", "sampler": module.SAMPLERS[0],
               "shorter_side": 64, "longest_side": 128, "nms_iou_threshold": 0.8}
        artifact = Artifact(tiny_backend.card, **how | changes)
        name = hashlib.sha256(artifact.to_json().encode()).hexdigest()
        path = folder / f"exported-{name}{module.SUFFIX}"
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                graph = DetectionGraph(tiny_backend.model, tiny_backend.postprocess, getattr(torch, artifact.dtype))
                module.write(graph, artifact, path, None)
        return path

    return exported
