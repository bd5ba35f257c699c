"""Pictures and videos with coloured rectangles, and a detector without weights that finds them."""
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from inference.backends import Backend, in_order
from util.model_card import ModelCard

COLOURS = {1: "red", 2: "blue"}


class RectangleFinder(Backend):
    """In each image the box of all red pixels, class 1, and of all blue ones, class 2, whole or cut. shorter: side to
    which images are resized, px; batches: the number of images of each call."""

    def __init__(self, shorter=None, score=0.9):
        self.card = ModelCard({"modelname": "dino", "num_classes": 3}, {1: "red", 2: "Blue thing"}, {1: 0.95})
        self.shorter, self.score, self.batches = shorter, score, []

    def input_size(self, width, height):
        factor = 1 if self.shorter is None else self.shorter / min(width, height)
        return round(height * factor), round(width * factor)

    def detect(self, images, sizes):
        self.batches.append(len(images))
        return [self._detect(image, size) for image, size in zip(images, sizes)]

    def _detect(self, image, size):
        labels, boxes = [], []
        for label, channel in ((1, 0), (2, 2)):
            others = image[[c for c in range(3) if c != channel]]
            rows, columns = ((image[channel] > 150) & (others < 100).all(0)).nonzero().T
            if len(rows):
                labels.append(label)
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        scale = torch.tensor(size) / torch.tensor(image.shape[:0:-1])
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * scale.repeat(2)
        return in_order(torch.full((len(labels),), self.score), torch.tensor(labels, dtype=torch.int64), boxes)


def scene(size=(96, 64), **boxes):
    """A grey picture with rectangles: red=(left, top, right, bottom)."""
    picture = Image.new("RGB", size, "grey")
    for colour, (left, top, right, bottom) in boxes.items():
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), fill=colour)
    return picture


def moving(count):
    """Pictures with a red square that moves to the right by 4 px, and a blue one that stays."""
    return [scene(red=(4 * i % 64, 10, 4 * i % 64 + 20, 30), blue=(70, 40, 90, 60)) for i in range(count)]


def write_video(path, pictures, times=None, rotation=None, sound=False, options=None, gop=None,
                codec="libx264"):
    """times: of the pictures, ms; 100 apart if None. rotation: degrees counter-clockwise, as metadata. gop: pictures
    from one that is complete to the next."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10, options={"g": str(gop)} if gop else {})
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if sound:
            add_sound(container)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = 100 * i if times is None else times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path):
    with av.open(str(path), "w") as container:
        add_sound(container)
    return path


def add_sound(container):
    stream = container.add_stream("aac", rate=8000)
    stream.layout = "mono"
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.rate, frame.pts = 8000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def noise_video(path, count=60, gop=10, codec="libx264"):
    """Of so many bytes that damage hits single pictures; its index comes first."""
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8)) for _ in range(count)]
    pictures = [picture.resize((160, 120)) for picture in pictures]
    return write_video(path, pictures, gop=gop, options={"movflags": "faststart"}, codec=codec)
