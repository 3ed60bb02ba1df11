"""Deep clustering of images with a Vision Transformer (Shin, Yu, Lee)."""

__version__ = "0.1.0"
