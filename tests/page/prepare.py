"""Prepare the tests of the page: install Chromium, and build the images of the boxes with Cockpit."""

from __future__ import annotations

import sys

from tests.boxes import image, requirements
from tests.boxes.system import BoxError
from tests.page.browser import BROWSER
from tests.page.login import COCKPIT

if __name__ == "__main__":
    try:
        requirements.ensure(BROWSER)
        for debian in (12, 13):
            image.image(debian, COCKPIT)
    except BoxError as error:
        sys.exit(f"the tests of the page: {error}")
