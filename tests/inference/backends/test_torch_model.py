import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from datasets.transforms import val_transforms
from inference.backends import in_order, same_size_groups
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


def prepared(backend, image=IMAGE):
    return F.pil_to_tensor(F.resize(image, backend.input_size(*image.size)))


@pytest.mark.parametrize("names, wanted", [({1: "cell"}, "cell"), (None, "person")])
def test_names_are_the_checkpoints_or_those_of_coco(files, names, wanted):
    assert Predictor(*files(names, num_classes=91, dn_labelbook_size=91)).class_names[1] == wanted


def test_other_classes_without_names_have_none(files):
    assert Predictor(*files()).class_names == {}


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


def test_options_override_the_config(files):
    assert Predictor(*files(), options=["num_select=5"]).backend.postprocess.num_select == 5


def test_the_model_is_in_evaluation_mode(files):
    assert not any(module.training for module in Predictor(*files()).backend.model.modules())


def test_files_that_are_missing_or_do_not_fit_are_named(files, tmp_path):
    weights, config = files()
    with pytest.raises(UserError, match="no config file .*none.py"):
        Predictor(weights, tmp_path / "none.py")
    with pytest.raises(UserError, match="no checkpoint file .*none.pth"):
        Predictor(tmp_path / "none.pth", config)
    with pytest.raises(UserError, match="does not fit the model"):
        Predictor(weights, config, options=["num_queries=21"])
    with pytest.raises(UserError, match="--device tpu"):
        Predictor(weights, config, device="tpu")


def test_an_image_is_prepared_as_in_an_evaluation(files, tiny_config):
    backend = open_backend(files()[0], config=files()[1])
    target = {"boxes": tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 30, 40]]), format="XYXY", canvas_size=(80, 120)),
              "area": torch.tensor([100.0])}
    wanted, _ = val_transforms(parse_options(tiny_config).data)(IMAGE, target)
    batch = backend.model_input([prepared(backend)] * 2)
    assert torch.equal(batch.tensors, wanted.expand(2, -1, -1, -1)) and not batch.mask.any()


def test_detections_are_those_of_the_postprocessing_in_the_order_of_their_scores(files):
    backend = open_backend(files()[0], config=files()[1])
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


def test_nms_is_that_of_the_config(files):
    weights, config = files()
    found = open_backend(weights, config=config, options=["nms_iou_threshold=0.3"])
    all_of_them = open_backend(weights, config=config)
    inputs = [prepared(found)], [IMAGE.size]
    (few,), (many,) = found.detect(*inputs), all_of_them.detect(*inputs)
    outputs = {"scores": many["scores"], "labels": many["labels"], "boxes": many["boxes"]}
    assert torch.equal(few["boxes"], in_order(**outputs, nms_iou_threshold=0.3)["boxes"])
    assert len(few["scores"]) < len(many["scores"])


FAMILIES = ["DINO/DINO_4scale", "LiteDINO/r50_h3l1_2p1x3", "DeformableDETR/r50", "DeformableDETR/r50_two_stage",
            "SDETR/detr_r50", "SDETR/sdetr_r50", "SDETR/lite_sdetr_r50"]


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
    for together, alone in zip(predictor(images, 0, batch_size=6), [predictor(image, 0) for image in images]):
        assert torch.allclose(together.scores, alone.scores, atol=1e-4)
        side = max(alone.size)
        clear = (alone.scores[:-1] - alone.scores[1:]).abs() > 1e-5  # equal scores have no order
        clear = torch.cat([clear[:1], clear[1:] & clear[:-1], clear[-1:]])
        assert torch.allclose(together.boxes[clear] / side, alone.boxes[clear] / side, atol=1e-4)


def test_images_are_grouped_by_size():
    images = [torch.zeros(3, *size) for size in ((4, 5), (5, 4), (4, 5))]
    assert same_size_groups(images) == [[0, 2], [1]] and same_size_groups([]) == []


def test_half_precision_is_autocast(files):
    weights, config = files()
    full, half = Predictor(weights, config), Predictor(weights, config, amp=True)
    assert isinstance(half.backend, TorchBackend) and half.backend.dtype == torch.bfloat16 and full.backend.dtype is None
    difference = (full(IMAGE, 0).scores - half(IMAGE, 0).scores).abs().max()
    assert 0 < difference < 0.05 and half(IMAGE, 0).scores.dtype == torch.float32


@pytest.mark.slow
def test_a_compiled_model_finds_the_same(files):
    weights, config = files()
    compiled, plain = Predictor(weights, config, compile=True)(IMAGE, 0), Predictor(weights, config)(IMAGE, 0)
    assert torch.allclose(compiled.scores, plain.scores, atol=1e-4)
