"""Hidden-to-Cache: a large model thinks for a small one, without a word passing between them.

`h2c_hf.modeling` holds the models, `h2c_hf.training` the trainer, `h2c_hf.evaluation` methods and controls, `h2c_hf.atlas` the
embedded world that everything runs on without a download. Nothing is imported here: `h2c --help` need not wait for torch.
"""

__version__ = "0.1.0"
REPOSITORY = "https://github.com/h2c-hf/h2c_hf"
