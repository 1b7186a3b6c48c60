"""Sources of images: one LightningDataModule per file. Nothing here imports `diffusion`."""
