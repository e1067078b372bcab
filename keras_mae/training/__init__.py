"""Training with `model.fit`: devices, optimizer, schedule, checkpoints, logs and saved models (TensorFlow)."""
