import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from datasets.transforms import val_transforms
from inference.predictor import Predictor, read_image
from models import build_model
from util.config import Config
from util.errors import UserError
from util.options import parse_options

IMAGE = Image.linear_gradient("L").resize((120, 80)).convert("RGB")


@pytest.fixture
def files(tiny_config, tmp_path):
    """files(names, **options): config and checkpoint of a model with random weights."""
    def write(names=None, **options):
        config = tiny_config | options
        Config(config).dump(tmp_path / "config.py")
        state = {"model": build_model(config)[0].state_dict()}
        torch.save(state | ({} if names is None else {"class_names": names}), tmp_path / "weights.pth")
        return tmp_path / "config.py", tmp_path / "weights.pth"

    return write


@pytest.mark.parametrize("names, wanted", [({1: "cell"}, "cell"), (None, "person")])
def test_names_are_the_checkpoints_or_those_of_coco(files, names, wanted):
    predictor = Predictor.from_files(*files(names, num_classes=91, dn_labelbook_size=91))
    assert predictor.class_names[1] == wanted


def test_other_classes_without_names_have_none(files):
    assert Predictor.from_files(*files()).class_names == {}


def test_options_override_the_config(files):
    assert Predictor.from_files(*files(), options=["num_select=5"]).postprocess.num_select == 5


def test_the_model_is_in_evaluation_mode(files):
    assert not any(module.training for module in Predictor.from_files(*files()).model.modules())


def test_files_that_are_missing_or_do_not_fit_are_named(files, tmp_path):
    config, weights = files()
    with pytest.raises(UserError, match="no config file .*none.py"):
        Predictor.from_files(tmp_path / "none.py", weights)
    with pytest.raises(UserError, match="no checkpoint file .*none.pth"):
        Predictor.from_files(config, tmp_path / "none.pth")
    with pytest.raises(UserError, match="does not fit the model"):
        Predictor.from_files(config, weights, options=["num_queries=21"])


def test_an_image_is_prepared_as_in_an_evaluation(files, tiny_config):
    prepared = Predictor.from_files(*files()).prepared(IMAGE)
    target = {"boxes": tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 30, 40]]), format="XYXY", canvas_size=(80, 120)),
              "area": torch.tensor([100.0])}
    wanted, _ = val_transforms(parse_options(tiny_config).data)(IMAGE, target)
    assert torch.equal(prepared, wanted)


def test_detections_are_in_pixels_of_the_image_and_in_the_order_of_their_scores(files):
    predictor = Predictor.from_files(*files())
    found = predictor(IMAGE)
    assert found["boxes"].shape == (20, 4) and len(found["scores"]) == len(found["labels"]) == 20
    assert found["scores"].equal(found["scores"].sort(descending=True).values)
    with torch.no_grad():
        outputs = predictor.model([predictor.prepared(IMAGE)])
    (wanted,) = predictor.postprocess(outputs, torch.tensor([[80, 120]]))
    order = wanted["scores"].argsort(descending=True)
    assert torch.allclose(found["boxes"], wanted["boxes"][order], atol=1e-3)


def test_softmax_detections_are_ordered_too(tiny_sdetr, tmp_path):
    """Their post-processing keeps the order of the queries."""
    config = tiny_sdetr("sdetr_r50")
    config.dump(tmp_path / "config.py")
    torch.manual_seed(0)
    torch.save({"model": build_model(config)[0].state_dict()}, tmp_path / "weights.pth")
    scores = Predictor.from_files(tmp_path / "config.py", tmp_path / "weights.pth")(IMAGE)["scores"]
    assert len(scores) == 10 and scores.equal(scores.sort(descending=True).values)


def test_an_image_that_its_file_calls_turned_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    IMAGE.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (80, 120)


def test_images_of_every_mode_are_read_as_rgb(tmp_path):
    Image.new("L", (5, 6), 90).save(tmp_path / "grey.bmp")
    assert read_image(tmp_path / "grey.bmp").mode == "RGB"


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for name in ("notes.txt", "none.jpg"):
        with pytest.raises(UserError, match=f"cannot read the image .*{name}"):
            read_image(tmp_path / name)
