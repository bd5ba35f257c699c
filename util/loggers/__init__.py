"""Where a training is written down beside log.txt: TensorBoard, Weights & Biases, MLflow, Trackio."""
