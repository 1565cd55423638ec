"""The games as methods: each is a choice of fields, critic, source of clips and turns, with a paper's numbers.

Common options. steps: the calls of the student's sampler, on levels uniform in time. source: where its input comes from,
"simulated" (backward simulation; with one step that is noise), "noised" (clips of the data), "noised_by_chunk" (every
`chunk` frames to a level of their own: CausVid) or "rolled_out" (`chunk` frames at a time: Self Forcing). exit_told: whether
the critic is told which of these calls made a clip. start: the level that a one-step student is told its noise to have; None is
the schedule's noisy end. law: levels at which the scores are compared; critic_law, critic_weight: where the critic is trained,
and how its errors weigh. ratio, critic_in_student_steps: see `games.turns`. Of a guided teacher hyper["guidance"] is the scale;
the critic has none. Teacher and critic may be another network than the student (`Network.judge`).

Where public code differs in silence, the original is the default and the other a name: `normaliser`, `weighting`,
`critic_in_student_steps`, `features`, `paired`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import grids, levels, schedules, solvers
from diffusion.levels import expand
from distill import continuous, fields, games, regression, sources
from distill.adversarial import FEATURES, HEADS, LOSSES, Discriminator, deception, density_ratio, discrimination
from distill.fields import NORMALISERS, RATIOS, SCORE, WEIGHTINGS, Law
from distill.games import CriticTerm, Field, copied
from distill.inputs import Network, clean, condition
from distill.jumps import guided_teacher
from distill.method import Method, Term, choice, number, whole_number
from distill.reflow import coupled

Rule = optax.GradientTransformation
Weight = Callable[[Array], Array]


def middle(network: Network, first: float = 0.02, last: float = 0.98) -> Law:
    """Time uniform in [first, last] (DMD, section 4.2: without the levels that say nothing)."""
    schedule = network.schedule
    noisy, clean = (float(schedule.logsnr(t)) for t in (last, first))
    return levels.uniform_time(schedule, max(noisy, schedule.logsnr_start), min(clean, schedule.logsnr_end))


def everywhere(network: Network) -> Law:
    return levels.uniform_time(network.schedule)


def source_of(
    network: Network, name: str, steps: int, chunk: int, start: float | None, exit_told: bool = False
) -> sources.Source:
    """The source that a method's options name."""
    if exit_told:
        if "logsnr_to" not in network.judge.cond_keys:
            raise ValueError(
                "exit_told: the critic is told the exit as cond 'logsnr_to', which the network doesn't take; it takes"
                f" {list(network.judge.cond_keys)}"
            )
        return sources.exit_told(source_of(network, name, steps, chunk, start))
    whole_number("steps", steps)
    whole_number("chunk", chunk)
    make = choice(name, sources.SOURCES, "source")
    if chunk != 1 and name not in sources.IN_CHUNKS:
        raise ValueError(
            f"chunk: source {name!r} has none, expected 1 or a source of {', '.join(sources.IN_CHUNKS)}, got {chunk}"
        )
    schedule = network.schedule
    if start is not None and not schedule.logsnr_start <= start < schedule.logsnr_end:
        raise ValueError(
            f"start: expected a log-SNR from {schedule.logsnr_start:g} to below {schedule.logsnr_end:g}, got {start}"
        )
    if start is not None and (steps != 1 or name != "simulated"):
        raise ValueError(
            f"start: a student of {steps} steps with source {name!r} begins at its first level; expected None"
        )
    if steps == 1 and name == "simulated":
        return sources.noise(schedule.logsnr_start if start is None else start)
    return make(sources.student_levels(schedule, steps), chunk)


def critic_of(discriminator: Discriminator | None, *, score: bool = True) -> dict[str, Callable]:
    """name -> how a part of the critic begins."""
    parts: dict[str, Callable] = {SCORE: copied} if score else {}
    if discriminator is not None:
        make = discriminator.init
        parts[HEADS] = lambda key, params: make(key)
    return parts


def adversary_of(
    network: Network,
    discriminator: Discriminator | None,
    *,
    law: Law | None,
    adversarial: float,
    discriminative: float,
    loss: str,
    features: str,
    needed: bool = False,
    **told: Any,
) -> tuple[Discriminator | None, dict[str, tuple[float, Field]], dict[str, tuple[float, CriticTerm]]]:
    """(the discriminator, its fields, its critic's terms), each empty where no weight asks for it. needed: for its ratio."""
    choice(loss, LOSSES, "loss")
    choice(features, FEATURES, "features")
    for name, weight in (("adversarial", adversarial), ("discriminative", discriminative)):
        number(name, weight, 0.0)
    if not (adversarial or discriminative or needed):
        return None, {}, {}
    if discriminator is None:
        raise ValueError("an adversarial loss needs a discriminator: heads on features of some network")
    if not discriminative:
        raise ValueError(
            "discriminative: expected a weight above 0, or the discriminator that is asked for never learns"
        )
    seen = dict(law=law, loss=loss, whose=features)
    moves = {"adversarial": (adversarial, deception(network, discriminator, **seen))} if adversarial else {}
    terms = {"discrimination": (discriminative, discrimination(network, discriminator, **seen, **told))}
    return discriminator, moves, terms


def _matching(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None,
    source: sources.Source,
    law: Law,
    critic_law: Law,
    critic_weight: Weight,
    weighting: str,
    normaliser: str,
    ratio: int,
    critic_in_student_steps: bool,
    ema: float,
    label_dropout: float,
    discriminator: Discriminator | None = None,
    adversarial: float = 0.0,
    discriminative: float = 0.0,
    loss: str = "softplus",
    features: str = "critic",
    paired: bool = False,
    r1: float = 0.0,
    approximate_r1: float = 0.0,
    divergence: str = "reverse_kl",
    alone: int = 0,
    further: Mapping[str, tuple[float, Term]] | None = None,
) -> Method:
    """The family of DMD, of which each method is a corner. alone: of so many first updates of the student nothing but `further`
    says anything, and the critic rests.
    """
    choice(weighting, WEIGHTINGS, "weighting")
    choice(normaliser, NORMALISERS, "normaliser")
    choice(divergence, RATIOS, "divergence")
    weighted = divergence != "reverse_kl"
    if weighted and loss != "softplus":
        raise ValueError(
            f"loss: divergence {divergence!r} needs a density ratio, which only the logit of 'softplus' is, got {loss!r}"
        )
    heads, deceive, judge = adversary_of(
        network, discriminator, law=critic_law, adversarial=adversarial, discriminative=discriminative, loss=loss,
        features=features, needed=weighted, paired=paired, r1=r1, approximate_r1=approximate_r1,
    )  # fmt: skip
    ratio_of = density_ratio(heads, divergence=divergence, whose=features) if weighted and heads else None
    matching = fields.distribution_matching(
        network, law=law, weighting=weighting, normaliser=normaliser, ratio=ratio_of
    )
    terms = {"denoising": (1.0, fields.denoise_fakes(network, law=critic_law, weight=critic_weight)), **judge}
    return games.method(
        network, source=source, fields={"matching": (since(alone), matching), **deceive}, critic=critic_of(heads),
        critic_terms=terms, optimiser=optimiser,
        critic_optimiser=critic_optimiser, order=games.turns(ratio, critic_in_student_steps, alone=alone), ema=ema,
        label_dropout=label_dropout, further=further,
    )  # fmt: skip


def since(first: int) -> games.Scale:
    """A weight of 1 from the student's update `first` on, 0 before."""
    return (lambda step: jnp.where(step < first, 0.0, 1.0)) if first else 1.0


def dmd(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    law: Law | None = None,
    critic_law: Law | None = None,
    critic_weight: Weight | None = None,
    weighting: str = "alpha",
    normaliser: str = "sample",
    regression_weight: float = 0.25,
    teacher_steps: int = 18,
    start: float | None = None,
    ratio: int = 1,
    critic_in_student_steps: bool = True,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """DMD (Yin et al. 2023, arXiv 2311.18828): one step, an update of the critic for each of the student's, and a regression to
    the teacher's own sample of the same noise, which holds the modes.

    The regression's pairs are made in the step by `teacher_steps` calls of DPM-Solver++, not stored, and its distance is the
    squared error, not LPIPS; regression_weight: 0 for none.
    """
    number("regression_weight", regression_weight, 0.0)
    further: dict[str, tuple[float, Term]] = {}
    if regression_weight:
        further["regression"] = (
            regression_weight,
            regression.term(network, to_teachers_samples(network, teacher_steps, start, label_dropout)),
        )
    return _matching(
        network, optimiser=optimiser, critic_optimiser=critic_optimiser,
        source=source_of(network, "simulated", 1, 1, start), law=law or middle(network),
        critic_law=critic_law or everywhere(network), critic_weight=critic_weight or levels.snr(), weighting=weighting,
        normaliser=normaliser, ratio=ratio, critic_in_student_steps=critic_in_student_steps, ema=ema,
        label_dropout=label_dropout, further=further,
    )  # fmt: skip


def to_teachers_samples(
    network: Network, steps: int, start: float | None, label_dropout: float
) -> Callable[..., regression.Problem]:
    """The student's clip of a noise is to be what the teacher's sampler makes of it (DMD, eq. 9)."""
    whole_number("teacher_steps", steps)
    schedule = network.schedule
    table = solvers.dpmpp(schedule, grids.uniform_time(schedule, steps))
    level = schedule.logsnr_start if start is None else start

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_noise, key_cond = jax.random.split(key)
        clips = clean(batch)
        cond = condition(network, batch, key_cond, label_dropout)
        teacher = guided_teacher(network, frozen["teacher"], cond, hyper.get("guidance", 1.0))
        eps = network.noise(key_noise, clips.shape, clips.dtype)
        goal = coupled(schedule, teacher, table, eps)
        at = jnp.full((1,), level, jnp.float32)
        x = expand(schedule.size(at), eps) * eps

        return regression.Problem(
            x, at, cond, lambda answer: network.denoised(answer, x, at), lambda *_: goal, jnp.ones((1,))
        )

    return construct


def dmd2(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    discriminator: Discriminator | None = None,
    steps: int = 4,
    source: str = "simulated",
    chunk: int = 1,
    exit_told: bool = False,
    start: float | None = None,
    law: Law | None = None,
    critic_law: Law | None = None,
    critic_weight: Weight | None = None,
    weighting: str = "one",
    normaliser: str = "sample",
    divergence: str = "reverse_kl",
    adversarial: float = 3e-3,
    discriminative: float = 1e-2,
    loss: str = "softplus",
    features: str = "critic",
    paired: bool = False,
    r1: float = 0.0,
    approximate_r1: float = 0.0,
    ratio: int = 5,
    critic_in_student_steps: bool = True,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """DMD2 (Yin et al. 2024, arXiv 2405.14867): no regression, `ratio` updates of the critic for each of the student's, an
    adversary on the critic's features, backward simulation.

    adversarial, discriminative: weights of the generator's and the discriminator's loss, those of ImageNet; 0 both for none.
    divergence: another f-divergence than the reverse KL, by the discriminator's density ratio: f-distill (Xu et al. 2025,
    arXiv 2502.15681).
    """
    return _matching(
        network, optimiser=optimiser, critic_optimiser=critic_optimiser,
        source=source_of(network, source, steps, chunk, start, exit_told), law=law or middle(network),
        critic_law=critic_law or everywhere(network), critic_weight=critic_weight or levels.v(), weighting=weighting,
        normaliser=normaliser, ratio=ratio, critic_in_student_steps=critic_in_student_steps, ema=ema,
        label_dropout=label_dropout, discriminator=discriminator, adversarial=adversarial, discriminative=discriminative,
        loss=loss, features=features, paired=paired, r1=r1, approximate_r1=approximate_r1, divergence=divergence,
    )  # fmt: skip


def diff_instruct(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    steps: int = 1,
    source: str = "simulated",
    chunk: int = 1,
    exit_told: bool = False,
    start: float | None = None,
    law: Law | None = None,
    critic_law: Law | None = None,
    critic_weight: Weight | None = None,
    weighting: str = "one",
    ratio: int = 1,
    critic_in_student_steps: bool = True,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Diff-Instruct (Luo et al. 2023, arXiv 2305.18455): the integral of KL divergences over levels, each weighed by 1/SNR, as
    its authors' code does; of weighting "snr" it is that of the divergences themselves.

    law, critic_law: None is EDM's log-normal, of mean -1.2 and standard deviation 1.2. The authors' students of one call are
    told log-SNR 0 for their noise, start=0, which is of variance 1 where `sources.noise` has 2; by default they are told the
    schedule's noisy end.
    """
    law = law or levels.edm_lognormal(-1.2, 1.2)
    return _matching(
        network, optimiser=optimiser, critic_optimiser=critic_optimiser,
        source=source_of(network, source, steps, chunk, start, exit_told), law=law, critic_law=critic_law or law,
        critic_weight=critic_weight or levels.edm(), weighting=weighting, normaliser="none", ratio=ratio,
        critic_in_student_steps=critic_in_student_steps, ema=ema, label_dropout=label_dropout,
    )  # fmt: skip


def sid(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    discriminator: Discriminator | None = None,
    alpha: float = 1.2,
    steps: int = 1,
    source: str = "simulated",
    chunk: int = 1,
    exit_told: bool = False,
    start: float | None = -1.8326,
    law: Law | None = None,
    critic_law: Law | None = None,
    critic_weight: Weight | None = None,
    normaliser: str = "sample",
    adversarial: float = 0.0,
    discriminative: float = 0.0,
    loss: str = "softplus",
    features: str = "critic",
    paired: bool = False,
    ratio: int = 1,
    critic_in_student_steps: bool = True,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Score identity distillation (Zhou et al. 2024, arXiv 2404.04057); with weights for an adversary on the critic's features
    its adversarial form, after SiDA (arXiv 2410.14919). The adversary here is that of DMD2: at levels of its own, by
    `critic_law`, unweighted, from the first step on; SiDA's authors take those of the score, weigh by them, and let it in late.

    The gradient goes through both estimates: twice the memory. Any kind of attention will do.
    start: sigma = 2.5, which a sampler must then be told too; the noise is that of `sources.noise`, 2.69 to the authors' 2.5,
    whose clips have half our deviation. law: None is Karras' levels from .002 to 80, uniform in their
    index, without the noisiest fifth.
    """
    choice(normaliser, NORMALISERS, "normaliser")
    critic_law = critic_law or levels.edm_lognormal(-1.2, 1.2)
    heads, deceive, judge = adversary_of(
        network, discriminator, law=critic_law, adversarial=adversarial, discriminative=discriminative, loss=loss,
        features=features, paired=paired,
    )  # fmt: skip
    karras = schedules.edm()
    law = law or levels.uniform_time(karras, start=float(karras.logsnr(0.8)))
    number("alpha", alpha, 0.0)
    identity = fields.score_identity(network, law=law, alpha=alpha, normaliser=normaliser)
    terms = {"denoising": (1.0, fields.denoise_fakes(network, law=critic_law, weight=critic_weight or levels.edm()))}
    return games.method(
        network, source=source_of(network, source, steps, chunk, start, exit_told),
        fields={"identity": (1.0, identity), **deceive}, critic=critic_of(heads), critic_terms=terms | judge,
        optimiser=optimiser, critic_optimiser=critic_optimiser,
        order=games.turns(ratio, critic_in_student_steps), ema=ema, label_dropout=label_dropout,
    )  # fmt: skip


def moment_matching(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    steps: int = 8,
    critic_weight: Weight | None = None,
    ratio: int = 2,
    critic_in_student_steps: bool = False,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Moment matching (Salimans et al. 2024, arXiv 2406.04103, algorithm 2) for a sampler of `steps` ancestral steps: critic
    and student take turns.

    critic_weight: w(s) of both losses, None for 1. The student needs a randomness of its own in few steps, or a sampler that
    has it: `ddpm`.
    """
    whole_number("steps", steps)
    weight = critic_weight or levels.uniform()
    return games.method(
        network, source=sources.intervals(steps), fields={"moments": (1.0, fields.moments(network, weight=weight))},
        critic=critic_of(None), critic_terms={"moments": (1.0, fields.between(network, weight=weight))},
        optimiser=optimiser, critic_optimiser=critic_optimiser, order=games.turns(ratio, critic_in_student_steps),
        ema=ema, label_dropout=label_dropout,
    )  # fmt: skip


def rcm(
    network: Network,
    *,
    optimiser: Rule,
    critic_optimiser: Rule | None = None,
    steps: int = 4,
    source: str = "simulated",
    chunk: int = 1,
    exit_told: bool = False,
    consistency_weight: float = 100.0,
    mean: float = 0.7,
    std: float = 1.6,
    sigma_data: float = 1.0,
    warmup: int = 1000,
    normalise: str = "norm",
    c: float = 0.1,
    law: Law | None = None,
    critic_law: Law | None = None,
    critic_weight: Weight | None = None,
    weighting: str = "one",
    normaliser: str = "sample",
    ratio: int = 5,
    critic_in_student_steps: bool = False,
    ema: float = 0.999,
    label_dropout: float = 0.0,
) -> Method:
    """Score-regularised continuous-time consistency, rCM (Zheng et al. 2025, arXiv 2510.08431): sCM covers the modes,
    distribution matching sharpens them, `consistency_weight` to 1. The paper's 100 belongs to tangents of length one: "rms"
    makes them longer by the square root of a clip's numbers.

    While the tangent warms up, in its first `warmup` updates, the student moves alone and learns consistency only, as in the
    authors' code, though the tangent's parts come in as in sCM; theirs, with r, weighs the teacher's by
    cos sqrt(1 - r^2 sin^2). Their roll-outs take random times, these the levels of a sampler of `steps` steps.

    mean, std: of log(sigma/alpha) where consistency is asked for; law, critic_law: None is the flow's time with shift 5.
    Needs an attention that `jax.jvp` can take.
    """
    number("consistency_weight", consistency_weight, 0.0)
    trig = network.predicting(continuous.TrigFlow(sigma_data))
    tangent = continuous.objective(
        trig, law=levels.edm_lognormal(mean, std), distilled=True, warmup=warmup,
        normalise=choice(normalise, continuous.NORMALISE, "normalise"), c=c, label_dropout=label_dropout,
    )  # fmt: skip
    law = law or levels.uniform_time(schedules.flow(shift=5.0))
    return _matching(
        network, optimiser=optimiser, critic_optimiser=critic_optimiser,
        source=source_of(network, source, steps, chunk, None, exit_told), law=law, critic_law=critic_law or law,
        critic_weight=critic_weight or levels.v(), weighting=weighting, normaliser=normaliser, ratio=ratio,
        critic_in_student_steps=critic_in_student_steps, ema=ema, label_dropout=label_dropout, alone=warmup,
        # The paper's squares have no half, that of a game's move has one.
        further={"consistency": (consistency_weight / 2, regression.term(trig, tangent))},
    )  # fmt: skip
