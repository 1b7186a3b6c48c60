"""Train a model: python train.py experiment=NAME [group=choice ...] [key=value ...]; --help lists what there is."""

import hydra
from omegaconf import DictConfig

from diffusion.apps import cli, config


@hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="train")
def compose_and_train(cfg: DictConfig) -> None:
    with cli.deferred():
        from diffusion.apps.train import train

        train(cfg)


if __name__ == "__main__":
    cli.run(compose_and_train)
