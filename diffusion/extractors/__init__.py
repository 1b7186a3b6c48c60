"""Feature extractors: the spaces in which sets of images are compared. The choices of the group `extractor`."""

from diffusion.extractors.base import Extractor, Features, extract
from diffusion.extractors.domain import Domain, DomainClassifier, domain_classifier, embeddings, predictions
from diffusion.extractors.inception import Inception
from diffusion.extractors.pretrained import Timm, Torchvision
from diffusion.extractors.random import Random

__all__ = [
    "Domain",
    "DomainClassifier",
    "Extractor",
    "Features",
    "Inception",
    "Random",
    "Timm",
    "Torchvision",
    "domain_classifier",
    "embeddings",
    "extract",
    "predictions",
]
