"""Lightning callbacks: what happens around the training steps."""

from diffusion.callbacks.budget import Budget
from diffusion.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from diffusion.callbacks.ema import EMA
from diffusion.callbacks.evaluation import Evaluation
from diffusion.callbacks.latent_statistics import LatentStatistics
from diffusion.callbacks.learning_rate import LearningRate
from diffusion.callbacks.loss_figure import LossFigure
from diffusion.callbacks.metrics_csv import MetricsCSV
from diffusion.callbacks.metrics_log import MetricsLog
from diffusion.callbacks.post_hoc_ema import PostHocEMA
from diffusion.callbacks.previews import Previews
from diffusion.callbacks.progress import ProgressBar
from diffusion.callbacks.reconstructions import Reconstructions
from diffusion.callbacks.segmentations import Segmentations
from diffusion.callbacks.signals import StopSignals
from diffusion.callbacks.wandb_page import WandbPage

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Budget",
    "Checkpoints",
    "Evaluation",
    "LatentStatistics",
    "LearningRate",
    "LossFigure",
    "MetricsCSV",
    "MetricsLog",
    "PostHocEMA",
    "Previews",
    "ProgressBar",
    "Reconstructions",
    "Segmentations",
    "StopSignals",
    "WandbPage",
]
