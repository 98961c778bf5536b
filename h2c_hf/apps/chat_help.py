"""The commands of the terminal chat."""

HELP = """\
/compare QUESTION   Receiver, text-to-text and H2C side by side, without the conversation
/sharer TEXT        a passage that only the Sharer reads, before your next message
/clear              forget the conversation
/help               this list
/quit               end (or exit, quit, Ctrl-D); Ctrl-C stops an answer"""
