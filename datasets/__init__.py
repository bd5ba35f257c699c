"""Data sets, their loaders, transforms and the COCO evaluation. Knows nothing of models."""
