"""The page: an image, the number that is read off it, its interval, and the distribution behind it.

    python -m components.commands.demo.page --server http://127.0.0.1:5002 --images FOLDER --port 5003

It runs in an environment of its own (requirements-demo.txt), which has neither torch nor MLflow, so it imports nothing
of this repository beyond this package. It speaks to the scoring server alone; CONTENT_POLICY keeps the browser from
loading anything from elsewhere.
"""

import argparse
import base64
import html
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.commands.demo.chart import chart
from components.commands.demo.scoring_client import ScoringClient, ServerError

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_IMAGES = 24
MAX_BALANCE = 1.2  # of the server's parameter
CONTENT_POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'"
HINT = "Drop an image into the field on the left, or pick one."


def page(client: ScoringClient, served: Mapping[str, Any], images: Sequence[Path]) -> Any:
    """The page's layout and what its parts do.

    Args:
        served: answer of the server's /model.
        images: to pick from.
    """
    import gradio as gr

    unit = str(served["unit"])

    def show(path: str | None, balance: float) -> tuple[str, str]:
        """Picture and reading of an image file."""
        if path is None:
            return "", message(HINT)
        return answered(client, Path(path), balance, unit)

    def pick(event: gr.SelectData, balance: float) -> tuple[None, str, str, str]:
        path = str(images[event.index])
        return None, path, *show(path, balance)

    def upload(path: str | None, balance: float) -> tuple[str | None, str, str]:
        return path, *show(path, balance)

    with gr.Blocks(title="Concord", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
        gr.HTML(header(served))
        chosen = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=340):
                file = gr.File(label="Image", type="filepath", height=130, elem_id="upload")
                picture = gr.HTML(elem_id="picture")
                if images:
                    gallery = gr.Gallery(
                        [(str(path), path.stem) for path in images], label="Pick one", columns=4, height="auto",
                        allow_preview=False, interactive=False, buttons=[], elem_id="gallery",
                    )  # fmt: skip
            with gr.Column(scale=5, min_width=420):
                reading = gr.HTML(message(HINT), elem_id="reading")
                balance = gr.Slider(
                    0, MAX_BALANCE, value=served["balance"], step=0.05, label="Balance", elem_id="balance",
                    info="The part of the training prior that is divided out: 0 none, 1 all of it.",
                )  # fmt: skip
        options: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        file.upload(upload, [file, balance], [chosen, picture, reading], **options)
        file.clear(upload, [file, balance], [chosen, picture, reading], **options)
        balance.input(show, [chosen, balance], [picture, reading], trigger_mode="always_last", **options)
        if images:
            gallery.select(pick, [balance], [file, chosen, picture, reading], **options)
    return blocks


def header(served: Mapping[str, Any]) -> str:
    """The page's head: the question and what answers it."""
    return (
        f'<div class="head"><h1>{html.escape(served["question"])}</h1>'
        f"<p>{html.escape(served['title'])}, {html.escape(served['statistic'])} of the distribution</p></div>"
    )


def answered(client: ScoringClient, path: Path, balance: float, unit: str) -> tuple[str, str]:
    """The image as HTML, and what is read off it; or a message."""
    image = path.read_bytes()
    try:
        read = client.distribution(image, balance)
    except ServerError as error:
        return "", message(str(error), "error")
    return picture_of(path, image), reading_of(read, unit)


def picture_of(path: Path, image: bytes) -> str:
    """The image inside the page, so that nothing else has to serve it."""
    kind = {".jpg": "jpeg", ".tif": "tiff"}.get(path.suffix.lower(), path.suffix.lower().lstrip(".")) or "png"
    data = base64.b64encode(image).decode()
    return f'<img src="data:image/{html.escape(kind)};base64,{data}" alt="{html.escape(path.name)}">'


def reading_of(read: Mapping[str, Any], unit: str) -> str:
    """Number, interval, mass and chart."""
    unit = html.escape(unit)
    return (
        f'<div class="reading"><div class="number"><span id="value">{read["value"]:g}</span> {unit}</div>'
        f'<div class="facts"><span id="interval">{read["low"]:g} to {read["high"]:g} {unit}</span>'
        f"<small>interval</small></div>"
        f'<div class="facts"><span>{read["mass"]:.1%}</span><small>mass: probability of any number</small></div></div>'
        f"{chart(read, unit)}"
        '<div class="legend"><span class="posterior">distribution</span><span class="prior">training prior</span>'
        '<span class="interval">interval</span><span class="answer">answer</span></div>'
    )


def message(text: str, kind: str = "hint") -> str:
    """A sentence in place of a reading."""
    return f'<div class="message {kind}" id="message">{html.escape(text)}</div>'


class OwnContentOnly:
    """ASGI middleware that forbids the browser to load anything from other addresses."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Adds the header to every answer."""

        async def with_policy(event: Any) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [*event["headers"], (b"content-security-policy", CONTENT_POLICY.encode())]
            await send(event)

        await self.app(scope, receive, with_policy)


def main(words: Sequence[str]) -> int:
    """Shows the page until Ctrl-C; exit code 0, or 1 after a reported error."""
    top = argparse.ArgumentParser(prog="python -m components demo")
    top.add_argument("--server", required=True)
    top.add_argument("--images", type=Path)
    top.add_argument("--port", type=int, required=True)
    args = top.parse_args(words)
    images = image_files(args.images) if args.images else []
    client = ScoringClient(args.server)
    try:
        served = client.model()
    except ServerError as error:
        print(f"error {error}", file=sys.stderr)
        return 1
    import gradio as gr
    from starlette.middleware import Middleware

    system = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # the default fonts come from the network
    theme = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=system[0], font_mono=system[1])
    try:
        page(client, served, images).launch(
            server_name="127.0.0.1", server_port=args.port, quiet=True, share=False, ssr_mode=False, theme=theme,
            css=STYLE, footer_links=[], allowed_paths=[str(args.images)] if args.images else [], max_file_size="64mb",
            app_kwargs={"middleware": [Middleware(OwnContentOnly)]},
        )  # fmt: skip
    except OSError as error:
        print(f"error {error}", file=sys.stderr)
        return 1
    return 0


def image_files(folder: Path) -> list[Path]:
    """At most MAX_IMAGES image files of a folder, by name; numbers in names by their value."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS]
    found.sort(
        key=lambda path: [
            (not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.stem)
        ]
    )
    return found[:MAX_IMAGES]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
