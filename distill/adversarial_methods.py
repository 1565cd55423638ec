"""The adversarial methods: games whose critic is a discriminator on a frozen network's features, and no denoiser.

Their common options are those of `game_methods`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion import levels
from distill import fields, games, sources
from distill.adversarial import Discriminator
from distill.fields import DISTILLATION, Law
from distill.game_methods import Rule, adversary_of, critic_of, everywhere, source_of
from distill.games import Field
from distill.inputs import Network
from distill.method import Method, choice, number, whole_number


def distilled(network: Network, weight: float, law: Law | None, weighting: str) -> dict[str, tuple[float, Field]]:
    """ADD's score distillation, at its weight; nothing at 0. law: None is the schedule's levels, uniform in time."""
    choice(weighting, DISTILLATION, "weighting")
    number("distillation_weight", weight, 0.0)
    if not weight:
        return {}
    return {"distillation": (weight, fields.distillation(network, law=law or everywhere(network), weighting=weighting))}


def add(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    discriminator: Discriminator | None = None,
    steps: int = 4,
    source: str = "noised",
    chunk: int = 1,
    distillation_weight: float = 2.5,
    weighting: str = "exponential",
    law: Law | None = None,
    critic_law: Law | None = None,
    adversarial: float = 1.0,
    loss: str = "hinge",
    features: str = "frozen",
    r1: float = 1e-5,
    approximate_r1: float = 0.0,
    ratio: int = 1,
    critic_in_student_steps: bool = True,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Adversarial diffusion distillation (Sauer et al. 2023, arXiv 2311.17042): a discriminator on frozen features of clips
    without noise, and score distillation by the teacher. Student inputs are clips of the data, noised.

    features: "frozen", a feature network given as frozen["features"], or "teacher", the teacher's. critic_law: levels at which
    the discriminator sees the clips; None is without noise, and a denoiser's features are then those at its cleanest level.
    """
    if features == "critic":
        raise ValueError(
            "features 'critic': this method has no denoiser among its critics; expected 'frozen' or 'teacher'"
        )
    heads, moves, judge = adversary_of(
        network, discriminator, law=critic_law, adversarial=adversarial, discriminative=1.0 if adversarial else 0.0, loss=loss,
        features=features, r1=r1, approximate_r1=approximate_r1,
    )  # fmt: skip
    moves |= distilled(network, distillation_weight, law, weighting)
    if not moves:
        raise ValueError(
            "nothing moves the student: adversarial and distillation_weight are both 0; expected one above 0"
        )
    return games.method(
        network, source=source_of(network, source, steps, chunk, None), fields=moves, critic=critic_of(heads, score=False),
        critic_terms=judge, optimiser=optimiser, critic_optimiser=critic_optimiser,
        order=games.turns(ratio, critic_in_student_steps), ema=ema, label_dropout=label_dropout,
    )  # fmt: skip


def ladd(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    discriminator: Discriminator | None = None,
    steps: int = 4,
    shares: Sequence[float] | None = None,
    first_shares: Sequence[float] | None = None,
    warmup: int = 500,
    critic_law: Law | None = None,
    loss: str = "hinge",
    paired: bool = False,
    r1: float = 0.0,
    approximate_r1: float = 0.0,
    distillation_weight: float = 0.0,
    weighting: str = "exponential",
    law: Law | None = None,
    ratio: int = 1,
    critic_in_student_steps: bool = True,
    head_start: int = 0,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Latent adversarial diffusion distillation (Sauer et al. 2024, arXiv 2403.12015, section 3): heads on the frozen teacher's
    own features of clips noised anew are the discriminator, so that nothing is decoded; the data are meant to be the
    teacher's samples, with which the adversarial loss is all. The paper has a head after every block of the teacher, which
    judges each place: heads with `places` on all `layers`. New heads know nothing, and a student that follows them is led
    astray: `head_start` updates of the critic come before its first.

    shares, first_shares: how often the student is asked at each of its `steps` levels, noisiest first, after `warmup` of its
    updates and before; None: .7 at noise and the rest alike, and the cleaner half alike, which is .7 .1 .1 .1 and 0 0 .5 .5 in
    four steps. The levels are uniform in time, the schedule's; in the paper the flow's. critic_law: where the discriminator
    sees clips, which the paper's heads are told (heads with `level`); None is a logit-normal time of the flow, of mean and
    deviation 1, whatever the schedule.
    distillation_weight: of ADD's score distillation, for real clips as data.
    """
    whole_number("steps", steps)
    whole_number("warmup", warmup, 0)
    steps = int(steps)
    rest, half = max(1, steps - 1), (steps + 1) // 2
    later = checked_shares("shares", [0.7, *[0.3 / rest] * (steps - 1)] if shares is None else shares, steps)
    first = checked_shares(
        "first_shares", [0.0] * (steps - half) + [1 / half] * half if first_shares is None else first_shares, steps
    )
    heads, moves, judge = adversary_of(
        network, discriminator, law=critic_law or levels.logit_normal(1.0, 1.0), adversarial=1.0, discriminative=1.0,
        loss=loss, features="teacher", paired=paired, r1=r1, approximate_r1=approximate_r1,
    )  # fmt: skip
    moves |= distilled(network, distillation_weight, law, weighting)
    source = sources.noised(
        sources.student_levels(network.schedule, steps), lambda step: jnp.where(step < warmup, first, later)
    )
    return games.method(
        network, source=source, fields=moves, critic=critic_of(heads, score=False), critic_terms=judge, optimiser=optimiser,
        critic_optimiser=critic_optimiser, order=games.turns(ratio, critic_in_student_steps, head_start), ema=ema,
        label_dropout=label_dropout,
    )  # fmt: skip


def checked_shares(name: str, shares: Sequence[float], steps: int) -> Array:
    """Shares of the levels of a student of `steps` steps, of sum 1."""
    given = np.asarray(shares, np.float32)
    if given.shape != (steps,) or not np.all((given >= 0) & np.isfinite(given)) or not given.sum() > 0:
        raise ValueError(f"{name}: expected {steps} numbers from 0 up, not all 0, got {list(shares)}")
    return jnp.asarray(given / given.sum())
