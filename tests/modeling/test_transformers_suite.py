"""transformers' own tests of any model, from its sdist, pass with the composite. See tests/stock_suite.py."""

import pytest
import stock_suite


pytest.importorskip("parameterized")


@pytest.fixture(scope="session")
def mixins(tmp_path_factory):
    return stock_suite.mixins(stock_suite.fetch(tmp_path_factory.mktemp("transformers")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["rewrite", "message"])
def test_transformers_own_tests_pass_with_the_composite(mixins, form):
    passed, failed = stock_suite.run(stock_suite.case(mixins, form))
    print(f"{len(passed)} pass")
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    assert len(passed) > 50
