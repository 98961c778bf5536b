import pytest
from pairs import randomize
from vllm_engine import ATLAS, ENVIRONMENT, PYTHON, Pair

from h2c_hf.atlas.questions import atlas_questions
from h2c_hf.modeling import H2CForCausalLM
from h2c_hf.prompts import FORMS


@pytest.fixture(scope="session")
def vllm_environment():
    if not PYTHON.exists():
        pytest.skip(
            f"there is no vLLM environment at {ENVIRONMENT}: make one with scripts/serve_env, or set "
            "H2C_VLLM_ENV"
        )


@pytest.fixture(scope="session")
def questions():
    """64 Atlas questions in words."""
    prompt, _ = FORMS["open"]
    return [prompt(question) for question in atlas_questions("test")[:64]]


@pytest.fixture(scope="session")
def atlas_pair(vllm_environment, atlas):
    """The bridge that ships: the rewriting form."""
    return Pair(str(ATLAS), *atlas)


@pytest.fixture(scope="session")
def message_pair(vllm_environment, atlas, tmp_path_factory):
    """The Atlas models with a bridge of the message form, with random weights."""
    shipped, processor = atlas
    model = H2CForCausalLM.from_pair(shipped.sharer, shipped.receiver, bridge_form="message").eval()
    randomize(model.bridge, 3)
    for role in ("sharer", "receiver"):
        setattr(model.config, f"{role}_model_id", str(ATLAS / role))
    folder = tmp_path_factory.mktemp("message")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Pair(str(folder), model, processor)


@pytest.fixture(params=["atlas_pair", "message_pair"])
def pair(request):
    """Each of the two forms."""
    return request.getfixturevalue(request.param)
