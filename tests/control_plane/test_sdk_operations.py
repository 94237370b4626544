"""The emulator's page says of each public operation of the SDK whether it is played."""

import warnings

import pytest

from tools import refresh_pages, sdk_operations


@pytest.fixture(scope="module")
def calls(environment):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sdk_operations.try_all()


def test_the_page_says_what_is_played(calls):
    page = refresh_pages.EMULATOR.read_text("utf-8")
    assert refresh_pages.with_table(page, sdk_operations.table(calls)) == page


def test_what_is_refused_is_asked_for_once(calls):
    assert {str(call): call.repeated for call in calls if call.repeated} == {}
