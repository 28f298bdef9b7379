"""Files: any tree in safetensors, its structure as JSON, nothing executed on load.

- Ours: `tensors` has `save` and `load`. On the way out, `naming` names the tensors and `description` says
  what else the tree holds (as JSON, `sealed` by a checksum); `writer` makes the bytes, `durable` the file.
  On the way in, `opening`, `reader` and `strict_json` take nothing on trust; `fitting` compares the tree
  expected, and `placing` brings tensors to its devices. `verify` looks whether a file is whole.
- From elsewhere: `checkpoints` has the functions. `locating` finds what is at a path, one of the `sources`
  (`torch_file`, `nested_dicts`); `rename` gives names, `match` pairs them with places, `report` says what
  fits.
"""
