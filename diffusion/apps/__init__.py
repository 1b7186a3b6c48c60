"""The bodies of the commands: `python train.py` is apps.train, `python -m diffusion TASK` is apps.TASK."""
