"""Parts that several views share: an event's connection to its handler, the choice of an image file, a result."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from blip.errors import InputError
from blip.serve import results
from blip.serve.handlers import Handlers, shown
from blip.serve.items import AS_TRAINED, LONGEST_PARTS, WINDOWS
from blip.serve.limits import Limits

LIVE = "blip-live"  # class of components whose changes are announced by screen readers
FILE = "blip-file"  # class of fields for files
# Events get what the browser sends, which handlers check: gradio would copy files, and compare choices with those of
# the first model. Images are decoded beside the models, two at once.
OF_IMAGES: dict[str, Any] = {
    "concurrency_limit": 2, "concurrency_id": "images", "show_progress": "minimal", "preprocess": False,
}  # fmt: skip


def of_models(handlers: Handlers) -> dict[str, Any]:
    """Options of events that call a model: as many at once as there are models, each of which takes one at a time."""
    return {**OF_IMAGES, "concurrency_limit": len(handlers.models), "concurrency_id": "models"}


def with_page(function: Callable[..., str]) -> Callable[..., str]:
    """A handler whose last argument is the page, in the form that gradio calls: with the request in front."""

    @shown
    def handler(request: gr.Request, *values: Any) -> str:
        return function(*values, str(request.session_hash or ""))

    return handler


def of_images(handlers: Handlers, function: Callable[..., str]) -> Callable[..., str]:
    """`with_page`, of a result about the images of the page: not where another one was chosen while it was computed."""

    def current(*values: Any) -> str:
        page = values[-1]
        before = handlers.uploads.numbers(page)
        made = function(*values)
        if handlers.uploads.numbers(page) - before:
            raise InputError("another image was chosen before this was finished: ask again")
        return made

    return with_page(current)


def without_page(function: Callable[..., str]) -> Callable[..., str]:
    """A handler that does not depend on the page, with its errors as markup."""
    return shown(lambda *values: function(*values))


def result(hint: str) -> gr.HTML:
    """The place of a result, and what stands there before there is one."""
    return gr.HTML(results.hint(hint), elem_classes=LIVE)


def question_box(label: str, limits: Limits, **options: Any) -> gr.Textbox:
    """One line of text; Enter is the view's button."""
    return gr.Textbox(label=label, max_length=limits.max_characters, lines=1, max_lines=1, **options)


def cleared(events: Sequence[Callable[..., Any]], places: Sequence[gr.HTML]) -> None:
    """Results vanish with what they are of: none stands beside another image, or under another model's name.

    Args:
        events: that choose an image or a model.
        places: of the results, which become what they were at first.
    """
    hints = [place.value for place in places]
    js = f"() => {json.dumps(hints if len(hints) > 1 else hints[0])}"  # in the browser, at once
    for event in events:
        event(None, None, list(places), js=js, queue=False, api_visibility="private")


def scan_fields() -> tuple[gr.Dropdown, gr.Textbox, gr.Button]:
    """How scans are shown, and which parts of scans and videos are read; other images are not changed by them."""
    with gr.Accordion("Scans and videos: window, slices, frames", open=False):
        window = gr.Dropdown(list(WINDOWS), value=AS_TRAINED, label="Window", allow_custom_value=True, elem_id="window",
                             info="A name, or LEVEL/WIDTH such as 40/400.")  # fmt: skip
        parts = gr.Textbox(label="Part of the scan or video", placeholder="slices=16", lines=1, max_lines=1,
                           elem_id="parts", max_length=LONGEST_PARTS, info="slices=16 of a volume, slice=12, frame=3, "
                           "or of NIfTI axis=coronal&slice=40, from 0; of a video frames=16, or rate=2 a second. "
                           "Empty: one picture, of a series 16, of a video 8.")  # fmt: skip
        button = gr.Button("Show", elem_id="show-scan")
    return window, parts, button


def item_files(handlers: Handlers) -> list[Callable[..., Any]]:
    """The choice of the files of an image, or of an item of several pictures, and its preview below.

    The files vanish from the field, so that the same field takes the next ones; the preview names them.

    Returns:
        The events that choose another image.
    """
    field = gr.File(label="Choose an image or a video, or drop it here", file_count="multiple",
                    height=180, elem_id="open", elem_classes=FILE)  # fmt: skip
    gr.HTML(
        results.hint(
            "Several files at once are one item: views of a study, or the slices of a DICOM series. "
            "A video is an item of frames, spread evenly."
        )
    )
    examples = handlers.examples
    example = gr.Dropdown(list(examples), value=None, label="Or take one of these", visible=bool(examples),
                          elem_id="open-example")  # fmt: skip
    window, parts, button = scan_fields()
    preview = gr.HTML(results.hint("No image is chosen yet."), elem_classes=LIVE, elem_id="open-preview")
    opened = with_page(handlers.opened)

    def upload(request: gr.Request, record: Any, window: Any, parts: Any) -> tuple[None, str]:
        return None, opened(request, record, window, parts)

    field.upload(upload, [field, window, parts], [field, preview], api_name="open", **OF_IMAGES)
    if examples:
        taken = with_page(handlers.example)
        example.input(taken, [example, window, parts], preview, api_name="example", **OF_IMAGES)
    viewed = with_page(handlers.viewed)
    button.click(viewed, [window, parts], preview, api_name="view", **OF_IMAGES)
    parts.submit(viewed, [window, parts], preview, api_visibility="private", **OF_IMAGES)
    return [field.upload, button.click, parts.submit, *([example.input] if examples else [])]


def image_file(handlers: Handlers, slot: str, label: str, *, name: str) -> list[Callable[..., Any]]:
    """The choice of a further image, a file, and its preview below; it vanishes from the field as in `item_files`.

    Args:
        slot: of the page.
        name: of the event in the programming interface, and of the field.

    Returns:
        The events that choose another image.
    """
    field = gr.File(label=label, height=180, elem_id=name, elem_classes=FILE)
    preview = gr.HTML(results.hint("No image is chosen yet."), elem_classes=LIVE, elem_id=f"{name}-preview")
    opened = with_page(lambda record, page: handlers.opened(record, AS_TRAINED, "", page, slot=slot))

    def upload(request: gr.Request, record: Any) -> tuple[None, str]:
        return None, opened(request, record)

    field.upload(upload, field, [field, preview], api_name=name, **OF_IMAGES)
    return [field.upload]
