"""The tests. What they share is in `tests.support`; fixtures are in conftest.py."""

import pytest

# So that a failed assertion in tests.support shows the values that it compared, as in a test.
pytest.register_assert_rewrite("tests.support")
