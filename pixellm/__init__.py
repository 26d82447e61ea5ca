"""PixelLM on Ray: ask about a photo, get a sentence and a pixel mask for each thing it names."""

__version__ = "0.1.0"
