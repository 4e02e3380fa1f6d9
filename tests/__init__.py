"""The tests, in the folders of the package; at the top, what holds for all of it.

What they share is in `tests.support`, and fixtures are in conftest.py. `tests.apps` has WSGI
applications.
"""

import pytest

# So that a failed assertion in tests.support shows the values that it compared, as in a test.
pytest.register_assert_rewrite("tests.support")
