from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that a test runs in this process sets up logging to streams that end with it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
