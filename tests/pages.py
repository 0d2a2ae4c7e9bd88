"""Opens a page as a reader would, and notes whatever its browser complains about."""

from contextlib import contextmanager

ALL_DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.dataset.drawn)"


@contextmanager
def opened(browser, path, *, width_px=1200, scheme="light"):
    """The page with all its figures drawn, from its file and without a network; complaints make it fail."""
    context = browser.new_context(viewport={"width": width_px, "height": 900}, color_scheme=scheme, offline=True)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"asked for {request.url}"))  # offline: all but files
    page.goto(path.resolve().as_uri())
    page.wait_for_function(ALL_DRAWN, timeout=20_000)
    yield page
    assert complaints == []
    context.close()
