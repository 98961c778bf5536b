"""Drafts: the Sharer writes a few tokens after its prompt, and the bridge reads these as well.

A bridge carries the text that the Sharer has read. An answer that the Sharer must work out, in two steps, is
in its hidden states only once it is written. A draft of k tokens costs k Sharer steps, on the cache of its
prompt: no token is read twice.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from .inputs_h2c import check_prompt, execution_device
from .passes_h2c import without_hooks_for_good


class Draft(NamedTuple):
    """A Sharer's prompts, each with the draft that it wrote after it, left-padded: inputs of
    `H2CForCausalLM.forward` and `generate`.

    Attributes:
        sharer_input_ids, sharer_attention_mask: (batch, length), prompt and draft; an end token is no part of
            the draft.
        sharer_hidden_states: S + 1 tensors (batch, length, sharer_hidden_size), as `H2CForCausalLM.read`
            returns them.
        lengths: (batch,), tokens of each draft.
    """

    sharer_input_ids: torch.Tensor
    sharer_attention_mask: torch.Tensor
    sharer_hidden_states: tuple[torch.Tensor, ...]
    lengths: torch.Tensor


@torch.no_grad()
def write_draft(
    sharer: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    max_new_tokens: int,
    **kwargs,
) -> Draft:
    """Let the Sharer write up to `max_new_tokens` tokens after its prompts, and keep all hidden states.

    Args:
        input_ids, attention_mask: (batch, length), left-padded.
        kwargs: of the Sharer's `generate`; by default it decodes greedily.

    Raises:
        ValueError: for a prompt that is empty, padded on the right or too long with its draft, or beams.
    """
    check_prompt("sharer_", input_ids, attention_mask, sharer, least=1, more=max_new_tokens)
    if kwargs.get("num_beams", 1) != 1 or kwargs.get("num_return_sequences", 1) != 1:
        raise ValueError(
            "A draft is asked for with beams or several sequences; expected one sequence for each prompt."
        )
    device = execution_device(sharer)
    input_ids = input_ids.to(device)
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(device)
    # One token more: the last token of the draft is read in the step that writes the next one.
    settings = {"do_sample": False, **kwargs, "max_new_tokens": max_new_tokens + 1}
    written = without_hooks_for_good(sharer).generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        output_hidden_states=True,
        return_dict_in_generate=True,
        **settings,
    )
    prompt, read = input_ids.shape[1], written.sequences.shape[1] - 1
    states = tuple(torch.cat(parts, 1) for parts in zip(*written.hidden_states, strict=True))
    ids = written.sequences[:, :read]
    going_on = ~torch.isin(ids[:, prompt:], end_tokens(sharer, kwargs).to(device))
    drafted = going_on.long().cumprod(1)  # up to the end token; padding comes after it
    mask = torch.cat([attention_mask, drafted.to(attention_mask)], 1)
    # Padding to the left, and no more of it than is needed.
    order = mask.argsort(dim=1, stable=True)[:, read - int(mask.sum(1).max()) :]
    states = tuple(
        state.gather(1, order[..., None].expand(-1, -1, state.shape[-1]).to(state.device)) for state in states
    )
    return Draft(ids.gather(1, order), mask.gather(1, order), states, drafted.sum(1))


def end_tokens(sharer: PreTrainedModel, arguments: dict) -> torch.Tensor:
    """Return the ids of the tokens with which a text of the Sharer ends."""
    configs = [arguments.get("generation_config"), sharer.generation_config]
    ends = [arguments.get("eos_token_id"), *(getattr(config, "eos_token_id", None) for config in configs)]
    ends = next((end for end in ends if end is not None), [])
    return torch.tensor([ends] if isinstance(ends, int) else list(ends), dtype=torch.long)


__all__ = ["Draft", "write_draft"]
