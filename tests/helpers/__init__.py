"""What several test files share: tiny models, small indexes, faults, and the commands."""

import pytest

pytest.register_assert_rewrite("helpers.cli", "helpers.derived_data")
