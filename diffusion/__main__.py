"""python -m diffusion TASK key=value ...: what is done with a trained run."""

import sys

from diffusion.apps import cli, tasks

if __name__ == "__main__":
    cli.run(lambda: tasks.main(sys.argv[1:]))
