"""Images, what is found in them, and what the query behind a box attended to."""
from typing import Any

from inference.page.dropped import MOST_IMAGES, Dropped, notice, receive
from inference.page.seen import HEADERS, LOWEST, Seen
from inference.page.shared import SharedDetector
from util.errors import UserError

START = '<div class="note">No image yet: drop some on the left.</div>'
NO_BOX = '<div class="note">Click a box in the picture, or a row of the table, to see where its query looked.</div>'
NO_ATTENTION = '<div class="note">Where queries look is only shown for PyTorch weights: an exported file returns ' \
               "nothing but its detections.</div>"


def build_images_tab(detector: SharedDetector, score: float) -> None:
    """Into the gradio.Blocks that is open. Every visitor has a state of their own; filters work on what was found once.
    """
    import gradio as gr

    no_choice = NO_BOX if detector.shows_attention else NO_ATTENTION
    strip, seen, chosen = gr.State([]), gr.State(None), gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=250):
            files = gr.File(label="Images", file_count="multiple", file_types=["image"], height=130, elem_id="files")
            with gr.Accordion("Camera or clipboard", open=False):
                camera = gr.Image(sources=["webcam", "clipboard"], type="filepath", image_mode=None, show_label=False,
                                  elem_id="camera")
            gallery = gr.Gallery(show_label=False, columns=3, height=110, allow_preview=False, interactive=False,
                                 visible=False, object_fit="cover", elem_id="strip", buttons=[])
            threshold = gr.Slider(LOWEST, 1, max(score, LOWEST), step=0.01, label="Score from", elem_id="score",
                                  buttons=[])
            classes = gr.CheckboxGroup(label="Classes", visible=False, elem_id="classes")
        with gr.Column(scale=5, min_width=420):
            messages = gr.HTML(START, elem_id="messages")
            picture = gr.Image(show_label=False, format="jpeg", interactive=False, visible=False, elem_id="picture",
                               buttons=["download", "fullscreen"])
            summary = gr.HTML(visible=False, elem_id="summary")
            table = gr.Dataframe(headers=HEADERS, interactive=False, max_height=330, type="array", visible=False,
                                 datatype=["number", "str", "number", "number", "number", "number", "number"],
                                 elem_id="table", buttons=[],
                                 column_widths=["8%", "26%", "13%", "12%", "12%", "14%", "15%"])
        with gr.Column(scale=4, min_width=340):
            title = gr.HTML(no_choice, elem_id="chosen")
            attention = gr.Image(show_label=False, format="jpeg", interactive=False, visible=False, elem_id="attention",
                                 buttons=["download", "fullscreen"])
            legend = gr.HTML(visible=False, elem_id="legend")
            with gr.Group(visible=False) as selectors:
                layer = gr.Radio(label="Decoder layer", elem_id="layer")
                head = gr.Radio(label="Head", elem_id="head")
                levels = gr.CheckboxGroup(label="Levels", elem_id="levels")
                whole = gr.Checkbox(label="Whole image", elem_id="whole")

    def add(paths: list[str] | str | None, entries: list[Dropped], score: float) -> dict:
        """The new images come first in the strip, and the first of them is shown."""
        if not paths:
            return {messages: gr.skip()}
        new, problems = receive([paths] if isinstance(paths, str) else paths)
        if not new:
            return {messages: tell(problems), files: None}
        entries = (new + entries)[:MOST_IMAGES]
        thumbnails = gr.update(value=[entry.thumbnail for entry in entries], selected_index=0, visible=len(entries) > 1)
        return {strip: entries, gallery: thumbnails, files: None, **look_at(new[0], score, problems)}

    def select_image(event: gr.SelectData, entries: list[Dropped], score: float) -> dict:
        return look_at(entries[event.index], score, []) if event.index < len(entries) else {messages: gr.skip()}

    def look_at(entry: Dropped, score: float, problems: list[str]) -> dict:
        try:
            now = detector.look(entry.read(), entry.title)
        except UserError as error:  # such as a file that was removed in the meantime
            return {messages: tell([*problems, str(error)])}
        found = now.classes()
        choices = gr.update(choices=[(now.name(label), label) for label in found], value=found, visible=len(found) > 1)
        return {seen: now, classes: choices, messages: tell(problems), **show(now, score, found, None)}

    def show(now: Seen, score: float, shown: list[int], place: int | None) -> dict:
        """All but the explanation of the detection in this place; without a place there is none."""
        visible = now.visible(score, shown)
        result: dict[Any, Any] = {
            picture: gr.update(value=now.drawn(visible, place), visible=True), chosen: place,
            summary: gr.update(value=now.summary(visible), visible=True),
            table: gr.update(value=now.rows(visible), visible=True)}
        if place is None:
            result |= {title: no_choice, **{part: gr.update(visible=False) for part in (attention, legend, selectors)}}
        return result

    def filter_boxes(now: Seen | None, score: float, shown: list[int], place: int | None) -> dict:
        if now is None:
            return {chosen: None}
        return show(now, score, shown, place if place in now.visible(score, shown) else None)

    def click(event: gr.SelectData, now: Seen | None, score: float, shown: list[int], *parts: Any) -> dict:
        if now is None:
            return {chosen: None}
        x, y = event.index
        return choose(now, now.at(x, y, now.visible(score, shown)), score, shown, *parts)

    def click_row(event: gr.SelectData, now: Seen | None, score: float, shown: list[int], *parts: Any) -> dict:
        if now is None or not event.row_value or event.row_value[0] in (None, ""):
            return {chosen: gr.skip()}
        return choose(now, int(event.row_value[0]) - 1, score, shown, *parts)

    def choose(now: Seen, place: int | None, score: float, shown: list[int], at_layer: int | None, at_head: int | None,
               at_levels: list[int], all_of_it: bool) -> dict:
        """Explains a detection, with the layer, head and levels of the one before where there was one."""
        result = show(now, score, shown, place)
        if place is None or not detector.shows_attention:
            return result
        names, first = now.inspected.layer_names(), now.inspected.attention(place, 0)
        num_heads, num_levels, deformable = len(first.weights), len(first.shapes), first.points is not None
        at_layer = len(names) - 1 if at_layer is None else at_layer
        at_head = -1 if at_head is None else at_head
        at_levels = at_levels or list(range(num_levels))
        return result | {
            selectors: gr.update(visible=True),
            layer: gr.update(choices=[(name, i) for i, name in enumerate(names)], value=at_layer),
            head: gr.update(choices=[("all", -1), *((str(i + 1), i) for i in range(num_heads))], value=at_head),
            levels: gr.update(choices=[(str(i + 1), i) for i in range(num_levels)], value=at_levels,
                              visible=deformable),
            whole: gr.update(visible=deformable),
            **explain(now, place, at_layer, at_head, at_levels, all_of_it)}

    def explain(now: Seen | None, place: int | None, at_layer: int, at_head: int, at_levels: list[int],
                all_of_it: bool) -> dict:
        if now is None or place is None:
            return {attention: gr.skip()}
        num_heads = len(now.inspected.attention(place, at_layer).weights)  # decoders of several stages may differ
        heads = [at_head] if 0 <= at_head < num_heads else list(range(num_heads))
        drawn = now.explained(place, at_layer, heads, sorted(at_levels), all_of_it)
        return {attention: gr.update(value=drawn, visible=True), title: now.title_of(place),
                legend: gr.update(value=now.legend(place, at_layer, heads), visible=True)}

    def tell(problems: list[str]) -> Any:
        return gr.update(value=notice(problems), visible=bool(problems))

    parts: list[Any] = [layer, head, levels, whole]
    shown = [picture, summary, table, chosen, title, attention, legend, selectors]
    looked = [seen, classes, messages, *shown]
    files.upload(add, [files, strip, threshold], [strip, gallery, files, *looked])
    camera.change(add, [camera, strip, threshold], [strip, gallery, files, *looked])
    gallery.select(select_image, [strip, threshold], looked, trigger_mode="always_last")
    at_once: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last"}
    threshold.change(filter_boxes, [seen, threshold, classes, chosen], shown, **at_once)
    classes.input(filter_boxes, [seen, threshold, classes, chosen], shown, **at_once)
    picture.select(click, [seen, threshold, classes, *parts], [*shown, *parts], **at_once)
    table.select(click_row, [seen, threshold, classes, *parts], [*shown, *parts], **at_once)
    for part in parts:
        part.input(explain, [seen, chosen, *parts], [title, attention, legend], **at_once)
