import os

from h2c_hf.apps.demo import main


# The arguments of `h2c demo`: none is Atlas, which needs no download.
main(os.environ.get("H2C_DEMO", "").split())
