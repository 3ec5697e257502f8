"""A web page on this machine that upscales a photo: before and after, its maps, and the dials.

    pip install '.[web,openvino]' && python examples/web_page.py

It listens on 127.0.0.1 only, sends no request to another machine, and works offline.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmsr_edge import MMSRError, Upscaler
from mmsr_edge.bundle import MODALITIES
from mmsr_edge.config import TEMPERATURE_RANGE
from mmsr_edge.errors import missing_extra
from mmsr_edge.image import load_image
from mmsr_edge.image.finishing import shown_colours


def bicubic(photo: str, size: tuple[int, int]) -> Image.Image:
    """The photo upsampled without the model, in sRGB, with its alpha channel."""
    picture = load_image(photo)
    alpha = [] if picture.alpha is None else [picture.alpha * 255.5]
    pixels = np.dstack([shown_colours(picture)[0] * 127.5 + 128, *alpha]).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def build(upscaler: Upscaler, gr: Any) -> Any:
    """Build the page; `gr` is the module gradio."""
    model = upscaler.bundle.manifest
    with gr.Blocks(title="MMSR Edge", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"## MMSR Edge: {model.name} on {upscaler.backend}")
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                photo = gr.File(label="Photo", height=140)
                prompt = gr.Textbox(label="Prompt", placeholder="what it shows; auto: tags found")
                most = min(50, max(served[-1] for served in model.unets.values()))
                steps = gr.Slider(1, most, model.sampler.steps, step=1, label="Steps")
                seed = gr.Slider(0, 999, 0, step=1, label="Seed")
                dial = {"step": 0.1, "visible": model.sampler.few_guidance is not None}
                crisp = gr.Slider(-1, 1, 0, label="Softer … crisper (guidance)", **dial)
                fidelity = gr.Checkbox(label="Fidelity: change nothing that the photo shows")
                with gr.Accordion("Temperatures: a lower one guides more strongly"):
                    deltas = {
                        name: gr.Slider(*TEMPERATURE_RANGE, 1, step=0.1, label=name.capitalize())
                        for name in MODALITIES
                    }
            with gr.Column(scale=2):
                label = f"Left: bicubic. Right: {model.name}."
                pair = gr.ImageSlider(
                    label=label, format="png", height=560, max_height=560, interactive=False
                )
                with gr.Row():
                    report = gr.Textbox(label="Report", lines=5, interactive=False)
                    maps = gr.Gallery(
                        label="Maps used", format="png", columns=3, height=170, fit_columns=False
                    )

        def upscale(given: dict[Any, Any], bar: Any = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            source, w = given[photo], given[crisp]
            if source is None:
                return None, "", []
            try:
                result = upscaler.upscale(
                    source,
                    prompt=given[prompt],
                    steps=int(given[steps]),
                    seed=int(given[seed]),
                    fidelity=given[fidelity],
                    temperature={name: given[slider] for name, slider in deltas.items()},
                    **({"guidance": "m-cfg", "guidance_scale": w} if w else {}),
                    progress=lambda at: bar(at.fraction, desc=at.stage),
                )
            except MMSRError as error:
                message = str(error).replace(source, Path(source).name)  # without gradio's folder
                raise gr.Error(message, print_exception=False) from None
            width, height = result.size
            lines = [f"{width} × {height} in {result.timings['total']:.2f} s"]
            lines += [f"Caption: {result.caption or 'none'}"]
            lines += [f"Warning: {warning}" for warning in result.warnings]
            used = [(image, name) for name, image in result.maps.items() if image]
            return (bicubic(source, result.size), result.image), "\n".join(lines), used

        sliders = [steps, seed, crisp, *deltas.values()]
        moved = [slider.input for slider in sliders]  # by mouse, arrow keys or typing
        gr.on(
            [photo.change, prompt.submit, fidelity.input, *moved],
            upscale,
            {photo, prompt, fidelity, *sliders},
            [pair, report, maps],
            trigger_mode="always_last",
            show_progress_on=pair,
        )
    return page


def main() -> int:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve MMSR Edge as a web page on this machine.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args()
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_RUN_HISTORY="False")
    try:
        import gradio
    except ImportError:
        print(missing_extra("gradio", "web"), file=sys.stderr)
        return 1
    try:
        page = build(Upscaler(args.model, args.backend), gradio)
        page.launch(
            server_name="127.0.0.1",
            server_port=args.port,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except (MMSRError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"http://127.0.0.1:{args.port}  (Ctrl-C stops it)", flush=True)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
