"""The unit of training data: a prompt, the answer to it, and the Sharer's prompt if that is another."""

# A prompt, as messages (or as plain text, for models without a chat template, too), and the assistant's turn
# that follows it; then, if the Sharer reads another prompt, that prompt.
Exchange = tuple[list[dict] | str, str] | tuple[list[dict], str, list[dict]]


class UnusableRecordError(ValueError):
    """A record of which no example can be made; the message is the reason that is counted."""
