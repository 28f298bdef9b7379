"""Logs that a run writes as it goes: TensorBoard, CSV and JSON lines."""
