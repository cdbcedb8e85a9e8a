import base64
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from sepc_tf.analysis.page import WIDEST, Page, jpeg_bytes, png_bytes

pytestmark = pytest.mark.same_on_both_stacks


def test_text_is_escaped_and_pictures_are_inside():
    page = Page("a < b", "of & <script>")
    page.numbers({"AP<": "1.0"})
    page.section("One", "x < y")
    page.table(["class"], [["<b>cat</b>"]])
    png, jpeg = png_bytes(Figure()), jpeg_bytes(np.zeros([10, 20, 3], np.uint8))
    page.figure(png, 'says "so"')
    page.photograph(jpeg, "<i>")
    html = page.html()
    assert not re.search(r"<script|<b>cat|<i>", html)
    assert "&lt;b&gt;cat&lt;/b&gt;" in html and 'alt="says &quot;so&quot;"' in html
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', html)
    assert [(kind, base64.b64decode(text)) for kind, text in found] == [
        ("png", png),
        ("jpeg", jpeg),
    ]
    assert html.count('href="#section-1"') == html.count('id="section-1"') == 1


def test_wide_pictures_are_made_as_wide_as_the_page():
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(jpeg_bytes(np.zeros([100, 2 * WIDEST, 3], np.uint8))))
    assert picture.size == (WIDEST, 50)
