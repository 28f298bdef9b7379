"""Floor 3, placement: devices and meshes of them, dtypes, and the layouts of other frameworks."""
