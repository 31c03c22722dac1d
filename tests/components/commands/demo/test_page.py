"""The demo's page in a real browser, on a real scoring server."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.commands.demo.command import main, write_test_images
from components.commands.demo.page import image_files
from components.commands.demo.scoring_client import ScoringClient, ServerError
from components.errors import ConcordError
from components.shared.model.number_reader import NumberReader
from components.shared.rows.rows import read_rows
from tests.support.browser import Browser, browser
from tests.support.gray_world import GrayWorld, gray
from tests.support.missing import without
from tests.support.served import answers, free_port, register_version, serving

ROOT = Path(__file__).parents[4]
PYTHON = ROOT / ".venv-demo" / "bin" / "python"
BALANCE = 0.0


@dataclass(frozen=True)
class Page:
    """The page in a browser.

    Attributes:
        root: a folder for images.
        reader: the served model, as the page should show it.
    """

    browser: Browser
    url: str
    root: Path
    reader: NumberReader

    def value(self) -> str:
        """The number on the page."""
        return self.browser.text("#value")

    def until_value(self, value: float) -> None:
        """Waits until the page shows a number."""
        self.browser.until(lambda: self.value() == f"{value:g}")

    def upload(self, path: Path) -> None:
        """Puts a file into the page's field, after removing an earlier one."""
        if self.browser.script("return document.querySelector('#upload input[type=file]') === null"):
            self.browser.click("#upload button[aria-label='Clear']")
            self.browser.until(
                lambda: self.browser.script("return !!document.querySelector('#upload input[type=file]')")
            )
        self.browser.type("#upload input[type=file]", str(path))

    def set_balance(self, balance: float) -> None:
        """Moves the slider, as a hand does."""
        self.browser.script(
            "const slider = document.querySelector('#balance input[type=range]');"
            "Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(slider, arguments[0]);"
            "slider.dispatchEvent(new Event('input', {bubbles: true}));",
            str(balance),
        )


@pytest.fixture(scope="module")
def page(gray: GrayWorld, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Page]:
    if not PYTHON.exists():
        without("no .venv-demo here: `make demo` creates it")
    root = tmp_path_factory.mktemp("demo")
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    (root / "params.yaml").write_bytes(gray.params.read_bytes())
    (root / "images").mkdir()
    write_test_images(gray.ingest, root / "images")
    settings = gray.settings.reader(BALANCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.delenv("MLFLOW_RUN_ID", raising=False)
        register_version(gray.settings, gray.grpo, settings)
    with browser(root) as window, serving(root, {}) as server:
        port = free_port()
        command = [
            str(PYTHON), "-m", "components.commands.demo.page", "--server", server.url, "--port", str(port),
            "--images", str(root / "images"),
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)})
        try:
            url = f"http://127.0.0.1:{port}"
            window.until(lambda: process.poll() is not None or answers(url))
            window.requested()  # the browser's own start page
            window.open(url)
            window.until(lambda: window.text("#message"))
            yield Page(window, url, root, NumberReader.load(gray.grpo, settings))
        finally:
            process.terminate()
            process.wait()


def test_an_upload_changes_the_number(page: Page) -> None:
    for brightness in (20, 80):
        path = page.root / f"{brightness}.png"
        path.write_bytes(gray(brightness, 7))
        page.upload(path)
        page.until_value(brightness)
    assert page.browser.text("#reading .chart .label") == "80"
    assert page.browser.script("return document.querySelector('#picture img').naturalWidth") == 16


def test_the_slider_changes_the_answer(page: Page) -> None:
    """The answer to an image between two labels depends on the prior, because the brighter label is rarer."""
    path, shown = page.root / "between.png", {}
    for brightness in range(41, 80):
        image = gray(brightness, 7)
        expected = {balance: number_read(page.reader, image, balance) for balance in (0.0, 1.2)}
        if expected[0.0] != expected[1.2]:
            break
    path.write_bytes(image)
    page.upload(path)
    for balance, value in expected.items():
        page.set_balance(balance)
        page.until_value(value)
        shown[balance] = page.browser.script("return document.querySelector('.chart .posterior').getAttribute('d')")
    assert shown[0.0] != shown[1.2], "the distribution is drawn with the balance"
    page.set_balance(BALANCE)


def number_read(reader: NumberReader, image: bytes, balance: float) -> float:
    """What is read off an image."""
    import pyarrow as pa

    rows = pa.record_batch({"id": ["0"], "image": [{"bytes": image}], "question": [reader.task.question]})
    ((_, read),) = reader.answering(balance).read([rows], 1)
    return float(read.value[0])


def test_a_text_file_gives_a_message(page: Page) -> None:
    path = page.root / "notes.txt"
    path.write_text("no image")
    page.upload(path)
    page.browser.until(lambda: "not an image in a known format" in page.browser.text("#message"))
    assert page.value() == ""


def test_a_picked_image_is_read(page: Page) -> None:
    for number, path in enumerate(image_files(page.root / "images"), 1):
        page.browser.click(f"#gallery button[aria-label^='Thumbnail {number} ']")
        page.until_value(float(path.stem.removeprefix("true ")))


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    page.browser.open(page.url)
    page.browser.until(lambda: page.browser.text("#message"))
    elsewhere = [url for url in page.browser.requested() if not url.startswith((page.url, "chrome:"))]
    assert elsewhere == []
    with urllib.request.urlopen(page.url, timeout=10) as answer:
        assert answer.headers["content-security-policy"].startswith("default-src 'self' ")


def test_test_images_span_the_range(gray: GrayWorld, tmp_path: Path) -> None:
    write_test_images(gray.ingest, tmp_path)
    files = image_files(tmp_path)
    assert [path.name for path in files] == ["true 20.png", "true 40.png", "true 60.png", "true 80.png"]
    stored = {row["image"]["bytes"] for batch in read_rows(gray.ingest, "test") for row in batch.to_pylist()}
    assert {path.read_bytes() for path in files} <= stored


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("true 100.png", "true 9.jpg", "true 18.webp", "notes.txt", "b.png"):
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["b.png", "true 9.jpg", "true 18.webp", "true 100.png"]


def test_what_is_missing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConcordError, match="`make demo` creates"):
        main(["--python", str(tmp_path / "python")])
    (tmp_path / "python").touch()
    with pytest.raises(ConcordError, match="Give a folder of images with --images"):
        main(["--python", str(tmp_path / "python"), "--images", str(tmp_path / "none")])
    port = free_port()
    with pytest.raises(ServerError, match=f"no scoring server answers at http://127.0.0.1:{port} .*make serve"):
        ScoringClient(f"http://127.0.0.1:{port}/").model()
