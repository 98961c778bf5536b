"""The bridge, the composite of Sharer, bridge and Receiver, and their processor.

Importing this package registers them: `AutoModelForCausalLM.from_pretrained(bridge)` and the other Auto
classes then use these classes, without `trust_remote_code`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

from .configuration_h2c import H2CBridgeConfig
from .conversation_h2c import H2CConversation
from .modeling_h2c import H2CForCausalLM
from .modeling_h2c_bridge import H2CBridgeModel
from .pipeline_h2c import H2CTextGenerationPipeline
from .prefixes_h2c import H2CPrefixCache
from .processing_h2c import H2CProcessor


AutoConfig.register(H2CBridgeConfig.model_type, H2CBridgeConfig)
AutoModel.register(H2CBridgeConfig, H2CBridgeModel)
AutoModelForCausalLM.register(H2CBridgeConfig, H2CForCausalLM)
AutoProcessor.register(H2CBridgeConfig, H2CProcessor)

__all__ = [
    "H2CBridgeConfig",
    "H2CBridgeModel",
    "H2CConversation",
    "H2CForCausalLM",
    "H2CPrefixCache",
    "H2CProcessor",
    "H2CTextGenerationPipeline",
]
