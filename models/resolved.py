"""Options that a config may give in several forms, in the one form that the builders need."""
from util.errors import UserError
from util.options import DataOptions


def num_classes(data: DataOptions) -> int:
    if isinstance(data.num_classes, int):
        return data.num_classes
    raise UserError("num_classes='auto' takes the classes from a data set: pass --coco_path, or set a number")


def layer_count(key: str, value: int | list[int]) -> int:
    """The number of layers of a model, or stage, that has one encoder and one decoder."""
    if isinstance(value, int):
        return value
    raise UserError(f"{key}={value!r} must be a number here: only the stages of stacked models have one each")


def per_stage(key: str, value: int | list[int], num_stages: int) -> list[int]:
    """One value per stage; a single one is for all of them."""
    values = value if isinstance(value, list) else [value]
    if len(values) not in (1, num_stages):
        raise UserError(f"{key}={value!r} must be a number, or a list with one for each of the {num_stages} stages")
    return values if len(values) == num_stages else values * num_stages
