"""The student of a distillation: its teacher's weights, a smoother time embedding (Sprint 3.2).

A flow model embeds 1000 sigma, whose sines turn up to 160 times on the way from data to noise: of
no use where the network is differentiated by sigma. The student embeds sigma itself, as published,
with an embedder fitted to the teacher's; and it embeds the guidance scale.
"""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from opensana.errors import ConfigError
from opensana.flow.timesteps import TRAIN_LEVELS, network_timestep
from opensana.transformer.conditioning import TimeEmbedding, TimeGuidanceEmbedding
from opensana.transformer.model import Transformer

GUIDANCE_SCALE = 0.1
"""The guidance is embedded times this, as published."""
FIT_STEPS = 200


def student_of(teacher: Transformer, *, generator: torch.Generator) -> Transformer:
    """A model that answers nearly as `teacher`, at any guidance; ConfigError if it embeds one."""
    config = teacher.config
    if config.guidance_embeds:
        raise ConfigError("`initial` is a few-step model already; name the model it was made from")
    config = replace(config, guidance_embeds=True, guidance_embeds_scale=GUIDANCE_SCALE)
    student = Transformer(config)
    state = {
        name.replace("time_embed.emb.", "time_embed."): value
        for name, value in teacher.state_dict().items()
    }
    kept = {name: value for name, value in student.state_dict().items() if name not in state}
    student.load_state_dict({**state, **kept})
    of_guidance = cast(TimeGuidanceEmbedding, student.time_embed).guidance_embedder
    nn.init.normal_(of_guidance.linear_1.weight, std=0.02, generator=generator)
    for silent in (
        of_guidance.linear_1.bias,
        of_guidance.linear_2.weight,
        of_guidance.linear_2.bias,
    ):
        nn.init.zeros_(silent)
    fit_times(student, teacher, generator)
    return student


def fit_times(student: Transformer, teacher: Transformer, generator: torch.Generator) -> None:
    """Make the student's embedding of sigma the teacher's: least squares over all levels."""
    sigma = torch.arange(1, TRAIN_LEVELS + 1) / TRAIN_LEVELS
    own = cast(TimeGuidanceEmbedding, student.time_embed).timestep_embedder
    # Bends all over the range, from which the fit chooses; the teacher's would be nearly straight.
    for parameter in own.linear_1.parameters():
        nn.init.normal_(parameter, generator=generator)
    with torch.no_grad():
        wanted = cast(TimeEmbedding, teacher.time_embed).timestep_embedder(
            network_timestep(sigma, truncated=True), torch.float32
        )
    optimizer = torch.optim.LBFGS(
        own.parameters(),
        max_iter=FIT_STEPS,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        error = own(sigma, torch.float32) - wanted
        loss = error.square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
