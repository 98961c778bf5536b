from .configuration_h2c import H2CBridgeConfig
from .conversation_h2c import H2CConversation
from .modeling_h2c import H2CForCausalLM
from .modeling_h2c_bridge import H2CBridgeModel
from .pipeline_h2c import H2CTextGenerationPipeline
from .prefixes_h2c import H2CPrefixCache
from .processing_h2c import H2CProcessor


__all__ = [
    "H2CBridgeConfig",
    "H2CBridgeModel",
    "H2CConversation",
    "H2CForCausalLM",
    "H2CPrefixCache",
    "H2CProcessor",
    "H2CTextGenerationPipeline",
]
