"""The Complex Human Instruction (CHI, paper 2.3), which the language model reads before the prompt.

Both published spellings are kept: a quote mark changes the tokens that the weights were trained on.
"""

from typing import Literal, get_args

from opensana.errors import ConfigError, near

InstructionName = Literal["diffusers", "official", "none"]

KEPT_TOKENS = 300
"""Text tokens that the transformer gets: the first one and the last 299."""

OFFICIAL_INSTRUCTION = "\n".join(
    [
        'Given a user prompt, generate an "Enhanced prompt" that provides detailed visual '
        "descriptions suitable for image generation. Evaluate the level of detail in the "
        "user prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details "
        "slightly without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a "
        "round shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of "
        "blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at "
        "dusk, featuring glowing street lamps, a diverse crowd of people in colorful "
        "clothing, and a double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid "
        "including any additional commentary or evaluations:",
        "User Prompt: ",
    ]
)
"""The spelling of the official training configurations: double quotes."""

COMPLEX_HUMAN_INSTRUCTION = OFFICIAL_INSTRUCTION.replace('"', "'")
"""The spelling of diffusers' default: single quotes."""

_TEXTS: dict[str, str] = {
    "diffusers": COMPLEX_HUMAN_INSTRUCTION,
    "official": OFFICIAL_INSTRUCTION,
    "none": "",
}


def instruction(name: str) -> str:
    """The instruction's text by its name; the empty string for "none"."""
    names = get_args(InstructionName)
    if name not in names:
        raise ConfigError(
            f"unknown instruction {name!r}{near(name, names)}: use one of {', '.join(names)}"
        )
    return _TEXTS[name]
