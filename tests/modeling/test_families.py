"""Every causal-LM family works as Sharer and as Receiver, or `from_pair` refuses it: tests/families.py."""

import families
import pytest
import transformers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families.FAMILIES)
def test_family_works_or_is_refused_as_the_docs_say(family):
    row = families.row(family)
    print(row)
    documented = families.TABLE.read_text()
    if f"of transformers {transformers.__version__}:" in documented:  # other versions have other families
        assert row in documented.splitlines(), (
            f"docs/families.md differs; run `python tests/families.py`. Now: {row}"
        )
