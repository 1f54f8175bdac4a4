"""The views of the page, one for each thing that a model can do: their inputs, their button, their result.

Each function makes a tab inside the `gr.Tabs` that is open.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from blip.interpret.maps import METHODS
from blip.serve.abilities import USUAL_METHOD
from blip.serve.handlers import Handlers
from blip.serve.parts import FILE, cleared, image_file, of_images, of_models, question_box, result, without_page
from blip.serve.served import ServedModel

METHOD_TITLES = {
    "relevance": "Relevance",
    "gradcam": "Grad-CAM",
    "raw": "Attention",
    "rollout": "Attention rollout",
}
EXPLAINED_TITLES = {
    "answer": "an answer", "caption": "a caption", "match": "a match with a text", "image": "the image alone",
}  # fmt: skip
BATCH_TITLES = {"answer": "Ask about each image", "caption": "Write captions", "match": "Match texts with each image"}
MIDDLE = "the middle one"


@dataclass
class View:
    """A tab, and what in it depends on the chosen model.

    Args:
        tab: hidden at first where there are several models, since gradio shows a tab for ever that it shows at first.
        shown: whether a model has this view.
        parts: components that depend on the model.
        of: a model -> the changes of the parts.
        text: what is asked or compared in the view, if it is a text.
        result: the place of the result, if it is of the image that all views have.
    """

    tab: gr.Tab
    shown: Callable[[ServedModel], bool]
    parts: Sequence[Any] = ()
    of: Callable[[ServedModel], list[Any]] = lambda _: []
    text: gr.Textbox | None = None
    result: gr.HTML | None = None


def _tab(handlers: Handlers, label: str, name: str, *, shown: bool) -> gr.Tab:
    return gr.Tab(label, id=name, visible=shown and len(handlers.models) == 1)


def _can(ability: str) -> Callable[[ServedModel], bool]:
    return lambda served: ability in served.can


def ask(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    with _tab(handlers, "Ask", "ask", shown="answer" in first.can) as tab:
        question = question_box("Question about the image", handlers.limits, placeholder="is there a lesion?",
                                elem_id="question")  # fmt: skip
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        answers = result("Answers appear here, the likeliest first.")
        function = of_images(handlers, handlers.ask)
        button.click(function, [name, question], answers, api_name="ask", **of_models(handlers))
        question.submit(function, [name, question], answers, api_visibility="private", **of_models(handlers))
    return View(tab, _can("answer"), text=question, result=answers)


def caption(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    with _tab(handlers, "Caption", "caption", shown="caption" in first.can) as tab:
        beams = gr.Slider(1, handlers.limits.max_beams, value=3, step=1, label="Beams", elem_id="beams",
                          info="More beams search longer for likely captions, and show more of them.")  # fmt: skip
        button = gr.Button("Write a caption", variant="primary", elem_id="write")
        captions = result("Captions appear here, the likeliest first.")
        button.click(
            of_images(handlers, handlers.caption), [name, beams], captions, api_name="caption", **of_models(handlers)
        )
    return View(tab, _can("caption"), result=captions)


def match(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    with _tab(handlers, "Match", "match", shown="match" in first.can) as tab:
        texts = gr.Textbox(label="Texts, one in each line", lines=4, elem_id="texts",
                           placeholder="a small left effusion\nno effusion")  # fmt: skip
        button = gr.Button("Compare with the image", variant="primary", elem_id="compare")
        matches = result("For each text, the probability that it belongs to the image appears here.")
        button.click(
            of_images(handlers, handlers.match), [name, texts], matches, api_name="match", **of_models(handlers)
        )
    return View(tab, _can("match"), text=texts, result=matches)


def judge(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    with _tab(handlers, "Two images", "judge", shown="judge" in first.can) as tab:
        gr.HTML("<p>The first image is the left one. The second one is chosen here:</p>")
        second = image_file(handlers, "second", "Choose the second image, or drop it here", name="open_second")
        statement = question_box("Statement about both images", handlers.limits, elem_id="statement")
        button = gr.Button("Judge the statement", variant="primary", elem_id="judge")
        verdict = result("The probability that the statement is true appears here.")
        button.click(
            of_images(handlers, handlers.judge), [name, statement], verdict, api_name="judge", **of_models(handlers)
        )
        cleared(second, [verdict])
    return View(tab, _can("judge"), result=verdict)


def explain(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    """Maps: what the model used of the image, word by word."""
    methods = [(METHOD_TITLES.get(method, method), method) for method in METHODS]
    with _tab(handlers, "Maps", "maps", shown=bool(first.explains)) as tab:
        text = question_box("Question, caption or text to explain", handlers.limits, elem_id="explained",
                            info="For a caption it may be empty: the model then writes one. The image alone needs "
                            "no text, method or layer.")  # fmt: skip
        with gr.Row():
            objective = gr.Dropdown(**_objectives(first), label="Explain", elem_id="objective", min_width=150)
            method = gr.Dropdown(methods, value=USUAL_METHOD, label="Method", elem_id="method", min_width=150)
            layer = gr.Dropdown(**_layers(first), label="Layer", elem_id="layer", min_width=150)
        button = gr.Button("Draw the maps", variant="primary", elem_id="draw")
        maps = result("The image appears here, with the places that the model used, for the text and for each word.")
        inputs = [name, text, objective, method, layer]
        button.click(of_images(handlers, handlers.explain), inputs, maps, api_name="explain", **of_models(handlers))

    def of(served: ServedModel) -> list[Any]:
        return [gr.update(**_objectives(served)), gr.update(**_layers(served))]

    return View(tab, lambda served: bool(served.explains), [objective, layer], of, text, maps)


def batch(handlers: Handlers, name: gr.Dropdown, first: ServedModel) -> View:
    """Many images to a table."""
    limits = handlers.limits
    with _tab(handlers, "Many images", "batch", shown=bool(_actions(first)["choices"])) as tab:
        files = gr.File(
            label=f"Choose up to {limits.max_files} images, or drop them here", file_count="multiple", height=150,
            elem_id="files", elem_classes=FILE,
        )  # fmt: skip
        action = gr.Radio(**_actions(first), label="What to do", elem_id="action")
        texts = gr.Textbox(label="Questions or texts, one in each line", lines=2, elem_id="batch-texts",
                           info="Not used for captions.")  # fmt: skip
        button = gr.Button("Start", variant="primary", elem_id="start")
        table = result("A table appears here, with a link that downloads it as CSV. The files are not kept.")

        def start(*values: Any) -> tuple[None, str]:
            return None, run(*values)

        run = without_page(handlers.batch)
        button.click(start, [name, files, action, texts], [files, table], api_name="batch", **of_models(handlers))

    return View(
        tab, lambda served: bool(_actions(served)["choices"]), [action], lambda served: [gr.update(**_actions(served))]
    )


VIEWS = (ask, caption, match, judge, explain, batch)
# in the browser: the text to explain is what was asked or compared last, unless there is one already
TAKE_TEXT = "(own, ...others) => own || (others.find(Boolean) || '').split('\\n')[0]"


def take_text(views: list[View]) -> None:
    """Whoever opens the maps need not write again what stands in another view."""
    maps = views[VIEWS.index(explain)]
    own = [view.text for view in (maps, *views) if view.text is not None]  # that of the maps first
    maps.tab.select(None, list(dict.fromkeys(own)), own[0], js=TAKE_TEXT, queue=False, api_visibility="private")


def _objectives(served: ServedModel) -> dict[str, Any]:
    """The choice of what a map explains, the usual one of the model first."""
    choices = [(EXPLAINED_TITLES.get(name, name), name) for name in served.explains]
    return {"choices": choices, "value": choices[0][1] if choices else None}


def _layers(served: ServedModel) -> dict[str, Any]:
    """The choice of a layer; that of the method unless one is chosen."""
    count = max((served.layers(name) for name in served.explains), default=0)
    return {"choices": [MIDDLE, *map(str, range(count))], "value": MIDDLE}


def _actions(served: ServedModel) -> dict[str, Any]:
    """What can be done with each image of a batch."""
    choices = [(title, ability) for ability, title in BATCH_TITLES.items() if ability in served.can]
    return {"choices": choices, "value": choices[0][1] if choices else None}
