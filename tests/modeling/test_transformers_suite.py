"""transformers' own tests of any model, from its sdist, pass with the composite. See tests/stock_suite.py."""

import os
import subprocess
import sys

import pytest
import stock_suite


pytest.importorskip("parameterized")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stock_suite.fetch(tmp_path_factory.mktemp("transformers"))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rewrite", "message"])
def test_transformers_own_tests_pass_with_the_composite(folder, form):
    """In a process of its own: the tests have markers that this suite does not know."""
    command = [sys.executable, stock_suite.__file__, form]
    done = subprocess.run(
        command, env={**os.environ, "TRANSFORMERS_TESTS": str(folder)}, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert int(done.stdout.split(" pass, 0 fail.")[0].split()[-1]) > 50
