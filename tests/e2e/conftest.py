from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All processes of the checkout, once for a file's tests that leave them alive."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running
