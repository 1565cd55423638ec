"""Ablations by name: each is a function of (folder, only) that writes one page of results and its figures."""

from collections.abc import Callable

from experiments.ablations import claims, distillation, samplers, video

ABLATIONS: dict[str, Callable[..., None]] = {
    "claims": claims.run, "distillation": distillation.run, "samplers": samplers.run, "video": video.run,
}  # fmt: skip
READS_RUNS: dict[str, dict[str, str]] = {
    "claims": {},
    "distillation": {"moving digits": "digits/*", "moving digits, latents": "digits_64/*"},
    "video": {"cascade": "moving_digits_64/cascade"},
}
"""Those that read finished runs, and take `runs`, the folder that holds them -> title -> pattern of workdirs in it whose clips
their HTML page shows.
"""
