from dataclasses import replace

import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from datasets.transforms import normalized, val_transforms
from inference.backends import in_order, same_size_groups, torch_model
from inference.backends.torch_model import TorchBackend, open_backend
from inference.predictor import Predictor
from models import build_model
from util.config import Config, load_config
from util.errors import UserError
from util.options import parse_options

IMAGE = Image.linear_gradient("L").resize((120, 80)).convert("RGB")
SMALL = {"pretrained_backbone": False, "backbone": "resnet18", "hidden_dim": 32, "nheads": 2, "dim_feedforward": 64,
         "enc_layers": 2, "dec_layers": 2, "num_queries": 20, "data_aug_scales": [64, 96], "data_aug_max_size": 160,
         "num_classes": 7, "dropout": 0.0}


@pytest.fixture
def files(tiny_config, tmp_path):
    """files(names, **options): weights and config of a model with random weights."""
    def write(names=None, config=None, **options):
        config = Config((tiny_config if config is None else config) | options)
        config.dump(tmp_path / "config.py")
        torch.manual_seed(0)
        state = {"model": build_model(config)[0].state_dict()}
        torch.save(state | ({} if names is None else {"class_names": names}), tmp_path / "weights.pth")
        return tmp_path / "weights.pth", tmp_path / "config.py"

    return write


@pytest.fixture(scope="module")
def backend(tiny_dino, tmp_path_factory):
    """Of a model with random weights, for tests that only call it."""
    folder, config = tmp_path_factory.mktemp("model"), tiny_dino()
    config.dump(folder / "config.py")
    torch.manual_seed(0)
    torch.save({"model": build_model(config)[0].state_dict()}, folder / "weights.pth")
    return open_backend(folder / "weights.pth", config=folder / "config.py")


def prepared(backend, image=IMAGE):
    return F.pil_to_tensor(F.resize(image, backend.input_size(*image.size)))


@pytest.mark.parametrize("names, wanted", [({1: "cell"}, "cell"), (None, "person")])
def test_names_are_the_checkpoints_or_those_of_coco(files, names, wanted):
    assert Predictor(*files(names, num_classes=91, dn_labelbook_size=91)).class_names[1] == wanted


def test_other_classes_without_names_have_none(backend):
    assert backend.card.class_names == {}


def test_names_beyond_the_classes_are_told(files):
    with pytest.raises(UserError, match="weights.pth: .*category id 7.*below 7"):
        Predictor(*files({7: "cell"}))


def test_a_checkpoint_of_a_training_is_enough(trained, config_file):
    """Its config and class names are in it; a config beside it wins."""
    path = trained / "checkpoint.pth"
    backend = open_backend(path)
    assert backend.card.fault() == "" and backend.card.class_names
    assert backend.card.config["num_queries"] == 20 and backend.options.to_dict() == backend.card.config
    assert open_backend(path, options=["num_select=5"]).postprocess.num_select == 5
    assert open_backend(path, config={**backend.card.config, "num_select": 6}).postprocess.num_select == 6
    assert open_backend(path, config=config_file).card.class_names == backend.card.class_names


def test_a_config_in_a_checkpoint_that_makes_no_model_is_told(trained, tmp_path):
    content = torch.load(trained / "checkpoint.pth", weights_only=True)
    content["config"]["hidden_dim"] = "__import__('os').abort()"
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="hidden_dim"):
        open_backend(tmp_path / "weights.pth")


def test_the_model_is_in_evaluation_mode(backend):
    assert not any(module.training for module in backend.model.modules())


def test_files_that_are_missing_or_do_not_fit_are_named(files, tmp_path):
    weights, config = files()
    with pytest.raises(UserError, match="no config file .*none.py"):
        Predictor(weights, tmp_path / "none.py")
    with pytest.raises(UserError, match="no checkpoint file .*none.pth"):
        Predictor(tmp_path / "none.pth", config)
    with pytest.raises(UserError, match="does not fit the model"):
        Predictor(weights, config, options=["num_queries=21"])
    with pytest.raises(UserError, match="--device 'tpu'"):
        Predictor(weights, config, device="tpu")


def test_an_image_is_prepared_as_in_an_evaluation(backend, tiny_config):
    target = {"boxes": tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 30, 40]]), format="XYXY", canvas_size=(80, 120)),
              "area": torch.tensor([100.0])}
    wanted, _ = val_transforms(parse_options(tiny_config).data)(IMAGE, target)
    batch = backend.model_input([prepared(backend)] * 2)
    assert torch.equal(batch.tensors, normalized(wanted).expand(2, -1, -1, -1)) and batch.mask is None


def test_detections_are_those_of_the_postprocessing_in_the_order_of_their_scores(backend):
    (found,) = backend.detect([prepared(backend)], [IMAGE.size])
    assert found["boxes"].shape == (20, 4) and found["labels"].dtype == torch.int64
    assert found["scores"].equal(found["scores"].sort(descending=True).values)
    with torch.no_grad():
        outputs = backend.model(backend.model_input([prepared(backend)]))
    (wanted,) = backend.postprocess(outputs, torch.tensor([[80, 120]]))
    assert all(torch.allclose(found[name].float(), wanted[name].float(), atol=1e-3) for name in wanted)


def test_softmax_detections_are_ordered_too(tiny_sdetr, files):
    """Their post-processing keeps the order of the queries."""
    scores = Predictor(*files(config=tiny_sdetr("sdetr_r50")))(IMAGE, 0).scores
    assert len(scores) == 10 and scores.equal(scores.sort(descending=True).values)


def test_nms_is_that_of_the_config(backend):
    inputs = [prepared(backend)], [IMAGE.size]
    few = replace(backend, postprocess=replace(backend.postprocess, nms_iou_threshold=0.05))
    (many,), (found,) = backend.detect(*inputs), few.detect(*inputs)
    assert all(torch.equal(found[name], value) for name, value in in_order(**many, nms_iou_threshold=0.05).items())


def test_nms_is_class_wise_and_keeps_the_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.2, 0.9, 0.5, 0.6]), torch.tensor([1, 1, 2, 1])
    found = in_order(scores, labels, boxes, 0.5)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.6, 0.5]) and found["labels"].tolist() == [1, 1, 2]
    assert in_order(scores, labels, boxes)["scores"].tolist() == pytest.approx([0.9, 0.6, 0.5, 0.2])


FAMILIES = ["LiteDINO/r50_h3l1_2p1x3", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "DINO/baseline_4scale", "DeformableDETR/r50", "DeformableDETR/r50_two_stage", "SDETR/detr_r50", "SDETR/sdetr_r50",
    "SDETR/lite_sdetr_r50"))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_different_sizes_gives_what_single_images_give(files, tiny_sdetr, name):
    if name.startswith("SDETR"):
        config = tiny_sdetr(name.removeprefix("SDETR/"), dropout=0.0)
    else:
        config = load_config(f"config/{name}.py", SMALL | (
            {"dn_labelbook_size": 7} if "DINO" in name else {}) | ({"enc_layers": 6} if "Lite" in name else {}))
    predictor = Predictor(*files(config=config))
    noise = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, height, width), generator=noise, dtype=torch.uint8)
              for height, width in ((80, 120), (120, 80), (80, 120), (64, 64), (37, 150), (120, 80))]
    results = predictor(images, 0, batch_size=6)
    assert len(results) == 6
    for together, alone in zip(results, [predictor(image, 0) for image in images]):
        assert torch.allclose(together.scores, alone.scores, atol=1e-4)
        side = max(alone.size)
        clear = (alone.scores[:-1] - alone.scores[1:]).abs() > 1e-5  # equal scores have no order
        clear = torch.cat([clear[:1], clear[1:] & clear[:-1], clear[-1:]])
        assert torch.allclose(together.boxes[clear] / side, alone.boxes[clear] / side, atol=1e-4)


def test_images_are_grouped_by_size():
    images = [torch.zeros(3, *size) for size in ((4, 5), (5, 4), (4, 5))]
    assert same_size_groups(images) == [[0, 2], [1]] and same_size_groups([]) == []


@pytest.mark.parametrize("how, dtype", [({"amp": True}, torch.bfloat16), ({"dtype": "bfloat16"}, torch.bfloat16),
                                        ({"dtype": "float16"}, torch.float16)])
def test_half_precision_is_that_of_the_weights(backend, files, how, dtype):
    full, half = Predictor(backend), Predictor(*files(), **how)
    assert isinstance(half.backend, TorchBackend)
    assert half.backend.model.half_dtype == dtype and full.backend.model.half_dtype is None
    assert half.backend.model.backbone[0].body.conv1.weight.dtype == dtype
    difference = (full(IMAGE, 0).scores - half(IMAGE, 0).scores).abs().max()
    assert 0 < difference < 0.05 and half(IMAGE, 0).scores.dtype == torch.float32


@pytest.mark.parametrize("fastest", [torch.bfloat16, None])
def test_the_fastest_precision_is_found_out(files, monkeypatch, fastest):
    monkeypatch.setattr(torch_model, "fastest_dtype", lambda device: fastest)
    assert Predictor(*files(), dtype="auto").backend.model.half_dtype == fastest


def test_full_precision_can_be_demanded(files):
    assert Predictor(*files(), amp=True, dtype="float32").backend.model.half_dtype is None
    with pytest.raises(UserError, match="dtype='float8' must be one of auto, float32, float16, bfloat16"):
        Predictor(*files(), dtype="float8")


@pytest.mark.slow
def test_compiled_it_finds_the_same(files):
    weights, config = files()
    images = [torch.randint(0, 256, (3, 128, 192), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)]
    compiled, plain = (open_backend(weights, config=config, compile=compile).detect(images, [(192, 128)])[0]
                       for compile in (True, False))
    for name in ("scores", "labels", "boxes"):
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-3)
