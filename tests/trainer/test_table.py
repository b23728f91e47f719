from __future__ import annotations

import rows


def test_the_page_says_what_the_tests_show():
    assert rows.PAGE.read_text() == rows.table(), "run `python tests/trainer/rows.py`"
