"""Files of other frameworks: Flux's JLD2, Flax' msgpack and safetensors, Keras' HDF5."""
