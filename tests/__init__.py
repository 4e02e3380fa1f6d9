"""The tests. Folders mirror those of todo_api; modules at the top test all of it.

`tests.support` has the code that tests share, conftest.py has the fixtures, and `tests.apps` has
WSGI applications.
"""

import pytest

# A failed assertion in tests.support shows the compared values, as in a test module.
pytest.register_assert_rewrite("tests.support")
