"""Writes a trained detector as a file that runs without this project.

A format is a module of this room with:

SUFFIX: of its files, ".onnx". DTYPES and SAMPLERS: those that it can write, see inference.artifact.Artifact; the first
sampler is the default.
write(graph, artifact, path, calibration): writes `graph` (deploy.graph.DetectionGraph, which deploy.graph.trace turns
into an ExportedProgram) to `path`, atomically, with artifact.to_json() in its metadata under the key
inference.artifact.KEY. calibration: inputs (images, orig_target_sizes) of the graph for int8, else None. Returns the
files that it wrote, `path` first. Raises UserError for what it cannot build, never builds something else instead.
outputs(path): the files that it would write, before anything is written.

FROM_FLOAT32: the dtypes for which `graph` is in float32, and the format makes the rest of it; in the others it computes
in artifact.dtype.
"""
FORMATS = {"onnx": "deploy.onnx", "openvino": "deploy.openvino", "pt2": "deploy.pt2"}
