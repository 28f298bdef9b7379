"""Files: any tree in safetensors, its structure as JSON, nothing executed on load."""
