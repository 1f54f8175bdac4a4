"""The frame of the page: the warning, the choice of the model and of the image; and the views beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from blip.serve import results
from blip.serve.handlers import Handlers
from blip.serve.parts import FILE, LIVE, cleared, item_files
from blip.serve.served import ServedModel
from blip.serve.views import VIEWS, View, take_text

CSS = Path(__file__).with_name("page.css")
# fonts of the reader's own system: those of gradio's themes may be fetched from the internet
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
ACCENT = "#0f766e"
MONOSPACED = ("ui-monospace", "Menlo", "Consolas", "monospace")
# darker than gradio's own in the light mode, and lighter in the dark one: 4.5:1 against what is behind them
COLOURS = {
    "button_primary_background_fill": ACCENT,
    "button_primary_background_fill_dark": ACCENT,
    "button_primary_background_fill_hover": "#115e59",
    "button_primary_background_fill_hover_dark": "#115e59",
    "button_primary_text_color": "white",
    "color_accent": ACCENT,
    "body_text_color_subdued": "#475569",
    "body_text_color_subdued_dark": "#cbd5e1",
    "block_info_text_color": "#475569",
    "block_info_text_color_dark": "#cbd5e1",
    "block_label_text_color": "#334155",
    "block_label_text_color_dark": "#e2e8f0",
    "block_title_text_color": "#334155",
    "block_title_text_color_dark": "#e2e8f0",
    "input_placeholder_color": "#64748b",
    "input_placeholder_color_dark": "#94a3b8",
}
WARNING = (
    f"{results.NOT_FOR_CLINICAL_USE}. A model can be wrong and certain at once. Images must not show names of patients."
)
KEPT = (
    "The image stays in this server's memory as long as the page is open, or for half an hour if it is not used. It is "
    "neither stored nor passed on."
)
# screen readers announce what changes in an element that has `aria-live`; gradio names each button of files alike
HEAD = f"""<script>
new MutationObserver(() => {{
  document.querySelectorAll(".{LIVE}:not([aria-live])").forEach((one) => one.setAttribute("aria-live", "polite"));
  document.querySelectorAll(".{FILE}").forEach((one) => {{
    const label = one.querySelector("label"), button = one.querySelector("button");
    if (label && button) button.setAttribute("aria-label", label.innerText.trim());
  }});
}}).observe(document.documentElement, {{childList: true, subtree: true}});
</script>"""


def look() -> dict[str, Any]:
    """Theme, style sheet and script, as options of `gr.mount_gradio_app`."""
    theme = gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=list(FONTS), font_mono=list(MONOSPACED)
    )
    theme.set(**COLOURS)
    return {"theme": theme, "css": CSS.read_text(encoding="utf-8"), "head": HEAD}


def build(handlers: Handlers, title: str) -> gr.Blocks:
    """The page of a server."""
    models = handlers.models
    first = next(iter(models.values()))
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(results.header(title, WARNING), elem_id="head")
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=2, min_width=280):
                name = gr.Dropdown(
                    list(models), value=first.name, label="Model", visible=len(models) > 1, elem_id="model"
                )
                about = gr.HTML(results.about_model(first.name, first.title), elem_classes=LIVE)
                chosen = item_files(handlers)
                gr.HTML(results.hint(KEPT))
            with gr.Column(scale=3, min_width=280), gr.Tabs(elem_id="views") as tabs:
                views = [make(handlers, name, first) for make in VIEWS]
        take_text(views)
        cleared([*chosen, name.change], [view.result for view in views if view.result is not None])
        if len(models) > 1:
            changed = [about, tabs, *(part for view in views for part in (view.tab, *view.parts))]
            of_model = partial(_of_model, models, views)
            for event in (name.change, page.load):
                event(of_model, name, changed, concurrency_limit=None, preprocess=False, api_visibility="private")
        page.unload(_forget(handlers))
    return page


def _of_model(models: dict[str, ServedModel], views: list[View], name: object) -> list[Any]:
    """What changes when a model is chosen: its description, and the views that it has, the first of which is shown."""
    served = models.get(str(name)) or next(iter(models.values()))
    changes: list[Any] = []
    for view in views:
        changes += [gr.update(visible=view.shown(served)), *view.of(served)]
    first = next(view.tab.id for view in views if view.shown(served))
    return [results.about_model(served.name, served.title), gr.update(selected=first), *changes]


def _forget(handlers: Handlers) -> Callable[[gr.Request], None]:
    """What happens when a page is closed."""

    def forget(request: gr.Request) -> None:
        handlers.uploads.drop(str(request.session_hash or ""))

    return forget
