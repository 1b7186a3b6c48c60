"""Tasks: what a generative model is used for. Functions of objects and tensors; the commands are in apps."""
