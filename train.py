"""Train a model: python train.py experiment=NAME [group=choice ...] [key=value ...]; --help lists what there is."""

import sys

import hydra
from omegaconf import DictConfig

from diffusion.apps import cli, config, trials


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="train")
def compose_and_train(cfg: DictConfig) -> None:
    trials.run_composed(cfg)


if __name__ == "__main__":
    if not {"-m", "--multirun"} & {*sys.argv}:  # there a comma stands between the values of a sweep
        sys.argv[1:] = config.readable(sys.argv[1:])
    cli.run(compose_and_train)
