"""The model: torch and transformers only. Importing it registers PixelLM with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from pixellm.model.configuration_pixellm import PixelLMConfig
from pixellm.model.modeling_pixellm import PixelLMForConditionalGeneration
from pixellm.model.processing_pixellm import PixelLMImageProcessor, PixelLMProcessor

AutoConfig.register(PixelLMConfig.model_type, PixelLMConfig)
AutoModel.register(PixelLMConfig, PixelLMForConditionalGeneration)
AutoImageProcessor.register(PixelLMConfig, slow_image_processor_class=PixelLMImageProcessor)
AutoProcessor.register(PixelLMConfig, PixelLMProcessor)

__all__ = ["PixelLMConfig", "PixelLMForConditionalGeneration", "PixelLMImageProcessor", "PixelLMProcessor"]
