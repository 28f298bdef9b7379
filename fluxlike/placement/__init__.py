"""Floor 3, placement: devices and dtypes."""
