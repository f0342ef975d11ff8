"""A Gradio page over a running `opensana serve`: text, size, seed, previews while it draws.

    python app.py --server http://127.0.0.1:7860

It is a thin client: the server has the model, the queue and the limits.
"""

import argparse
import base64
import io
import os
from collections.abc import Iterator
from typing import Any

import openai
from PIL import Image

PARTIAL_IMAGES = 3


def draw(
    client: openai.OpenAI,
    prompt: str,
    negative_prompt: str,
    size: str,
    steps: int,
    seed: int,
    lora: str = "",
    weight: float = 1.0,
) -> Iterator[tuple[Image.Image, str]]:
    """Each picture so far with a line about it; 0 steps and seed -1 leave them to the server."""
    more: dict[str, Any] = {"negative_prompt": negative_prompt}
    if lora.strip():
        more["lora"] = [{"name": lora.strip(), "scale": weight}]
    if steps:
        more["num_inference_steps"] = steps
    if seed >= 0:
        more["seed"] = seed
    events = client.images.generate(
        prompt=prompt, size=size, stream=True, partial_images=PARTIAL_IMAGES, extra_body=more
    )
    with events:  # leaving this early cancels the job
        for event in events:
            image = Image.open(io.BytesIO(base64.b64decode(event.b64_json)))
            drawn = event.type == "image_generation.completed"
            yield image, f"seed {event.model_dump()['seed']}" if drawn else "drawing"


def make_demo(client: openai.OpenAI) -> Any:
    """The page."""
    import gradio as gr

    def drawn(*values: Any) -> Iterator[tuple[Image.Image, str]]:
        try:
            yield from draw(client, *values)
        except openai.APIError as error:
            said = error.body.get("message") if isinstance(error.body, dict) else None
            raise gr.Error(str(said or error.message)) from None

    with gr.Blocks(title="opensana", analytics_enabled=False) as demo:
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", value="a red apple")
                negative_prompt = gr.Textbox(label="Negative prompt")
                size = gr.Textbox(label="Size (WIDTHxHEIGHT, or auto)", value="auto")
                steps = gr.Slider(0, 50, 0, step=1, label="Steps (0: the model's own)")
                seed = gr.Number(-1, precision=0, label="Seed (-1: a random one)")
                lora = gr.Textbox(label="LoRA (one that the server lists)")
                weight = gr.Slider(0, 2, 1, step=0.05, label="Weight of the LoRA")
                button = gr.Button("Draw", variant="primary")
            with gr.Column():
                image = gr.Image(label="Picture", format="png", interactive=False)
                about = gr.Textbox(label="About it", interactive=False)
        asked = [prompt, negative_prompt, size, steps, seed, lora, weight]
        button.click(drawn, asked, [image, about], api_name="draw")
    return demo.queue(default_concurrency_limit=4, max_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:7860", help="of `opensana serve`")
    parser.add_argument("--port", type=int, default=7861)
    given = parser.parse_args()
    key = os.environ.get("OPENSANA_KEY", "none")
    client = openai.OpenAI(base_url=f"{given.server}/v1", api_key=key, max_retries=0)
    make_demo(client).launch(server_name="127.0.0.1", server_port=given.port)


if __name__ == "__main__":
    main()
