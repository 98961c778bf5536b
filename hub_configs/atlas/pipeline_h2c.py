"""`pipeline("text-generation", model=REPO, trust_remote_code=True)`: stock, with both models' inputs.

For objects:
`pipeline("text-generation", model=model, processor=processor, pipeline_class=H2CTextGenerationPipeline)`.
(transformers looks for a custom pipeline only if `model` is a repo.)
"""

from transformers import TextGenerationPipeline
from transformers.utils.chat_template_utils import Chat

from .processing_h2c import padding_id


class H2CTextGenerationPipeline(TextGenerationPipeline):
    """`TextGenerationPipeline` for a bridge; options that cut a prompt are refused.

    A hand-off, in which the Sharer reads a text that the Receiver does not see, is
    `{"conversation": messages, "sharer_conversation": messages}` in place of a conversation.
    """

    _load_processor = True
    _load_tokenizer = False

    def __init__(self, *args, processor, **kwargs):
        # The Receiver's tokenizer pads batches and decodes; it may have no pad token (Llama 3).
        tokenizer = processor.tokenizer
        tokenizer.pad_token_id = padding_id(tokenizer)
        # Left in by `pipeline()`, which has used it; it would go on to `generate`.
        kwargs.pop("local_files_only", None)
        super().__init__(*args, **{**kwargs, "processor": processor})

    def check_model_type(self, supported_models):
        super().check_model_type(["H2CForCausalLM"])  # transformers' list holds its own models alone

    def preprocess(
        self,
        prompt_text: str | Chat | dict,
        prefix: str = "",
        add_special_tokens: bool = True,
        continue_final_message: bool | None = None,
        tokenizer_encode_kwargs: dict | None = None,
        tools: list | None = None,
        documents: list | None = None,
        truncation: bool | str | None = None,
        handle_long_generation: str | None = None,
        **generate_kwargs,
    ) -> dict:
        """The inputs of both models, (1, length) each, and `prompt_text`, which goes before the answer."""
        if truncation or handle_long_generation:
            raise ValueError(
                f"Got {truncation=}, {handle_long_generation=}; expected neither: a prompt for two models is "
                "not cut."
            )
        sharer_conversation = None
        if isinstance(prompt_text, dict):
            if prompt_text.keys() != {"conversation", "sharer_conversation"}:
                raise ValueError(
                    f"Got an input with {', '.join(map(str, prompt_text))}; expected conversation and "
                    "sharer_conversation."
                )
            sharer_conversation = prompt_text["sharer_conversation"]
            prompt_text = Chat(prompt_text["conversation"])
        options = tokenizer_encode_kwargs or {}
        if not isinstance(prompt_text, Chat):
            inputs = self.processor(prefix + prompt_text, add_special_tokens=add_special_tokens, **options)
            return {**inputs, "prompt_text": prompt_text}
        if continue_final_message is None:  # as in the stock pipeline
            continue_final_message = prompt_text.messages[-1]["role"] == "assistant"
        inputs = self.processor.apply_chat_template(
            prompt_text.messages, sharer_conversation, add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message, tools=tools, documents=documents, **options,
        )  # fmt: skip
        return {**inputs, "prompt_text": prompt_text}

    def _forward(self, model_inputs: dict, **generate_kwargs):
        sharer_inputs = {
            name: model_inputs.pop(name) for name in ("sharer_input_ids", "sharer_attention_mask")
        }
        return super()._forward(model_inputs, **sharer_inputs, **generate_kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """As `save_pretrained` of model and processor: a repo from which the pipeline loads again."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["H2CTextGenerationPipeline"]
