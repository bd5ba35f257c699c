"""What the tests write to every logger."""
from PIL import Image

CONFIG = {"lr": 1e-4, "run/note": "x", "sizes": [1, 2], **{f"key{i}": i for i in range(150)}}


def write_run(logger, folder, epochs, config=CONFIG):
    picture = folder / "curves.png"
    Image.new("RGB", (20, 10), "red").save(picture)
    logger.config(config)
    for epoch in epochs:
        logger.scalars({"coco/AP": epoch / 10, "train/loss": 3.0}, epoch)
    logger.text("summary", "# Summary\nAP <50>")
    logger.picture("curves", picture)
    logger.close(finished=True)
