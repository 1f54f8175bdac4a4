"""BLIP for medical images: pre-training, fine-tuning, bootstrapping of captions, and a look inside the model."""

__version__ = "0.1.0"
