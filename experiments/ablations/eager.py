"""The small DiT once more in plain PyTorch, run eagerly: the same weights, the same answers, the same training step."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from experiments.ablations.small_dit import CONFIG

Tree = Any
"""Nested dicts of tensors: our params with torch's arrays in the place of ours."""

CHANNELS, WIDTH, HEAD, PATCH = (
    CONFIG["model"]["shape"][-1],
    *(CONFIG["model"][k] for k in ("width", "head_dim", "patch")),
)


def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[b, heads, n, d]; softmax(q k^T / sqrt(d)) v."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


ATTENTION: Mapping[str, Callable[..., torch.Tensor]] = {
    "softmax": softmax,
    "scaled_dot_product_attention": F.scaled_dot_product_attention,
}


def weights(params: Mapping[str, Any]) -> Tree:
    """Our params as tensors of their own."""
    if isinstance(params, Mapping):
        return {name: weights(leaf) for name, leaf in params.items()}
    return torch.from_numpy(np.array(params))


def leaves(tree: Tree) -> list[torch.Tensor]:
    """In the order of jax.tree.leaves."""
    return [leaf for name in sorted(tree) for leaf in leaves(tree[name])] if isinstance(tree, Mapping) else [tree]


def linear(params: Tree, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, params["weight"].T, params["bias"])


def norm(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def turns(frames: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(cosines, sines) of the tokens' angles, [n, HEAD / 2]: with frame, row and column as in models/rope.py."""
    side = 2 * (HEAD // 6)
    places = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in (frames, rows, columns)))
    angles = torch.cat(
        [
            places[:, axis, None] * 100.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
            for axis, width in enumerate((HEAD - 2 * side, side, side))
        ],
        -1,
    )
    return angles.cos().float(), angles.sin().float()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def network(
    params: Tree,
    x: torch.Tensor,
    logsnr: torch.Tensor,
    label: torch.Tensor,
    attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention,
) -> torch.Tensor:
    """The prediction for clips [b, f, h, w, c] at levels [b] and labels [b]."""
    b, f, h, w, _ = x.shape
    rows, columns = h // PATCH, w // PATCH
    level = params["level"]
    frequencies = torch.from_numpy(np.geomspace(math.pi / 80, 2.0, 16, dtype=np.float32))
    angles = logsnr.clamp(-20.0, 20.0)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], -1)
    embedding = linear(level["out"], F.silu(linear(level["hidden"], waves))) + params["label"]["table"][label]
    modulation = linear(params["modulation"], F.silu(embedding)).view(b, 6, WIDTH)
    patches = x.view(b, f, rows, PATCH, columns, PATCH, CHANNELS).permute(0, 1, 2, 4, 3, 5, 6)
    hidden = linear(params["embed"], patches.reshape(b, f * rows * columns, -1))
    cos, sin = turns(f, rows, columns)
    layers = params["layers"]
    for i in range(len(layers["qkv"])):
        of = {name: leaf[i] for name, leaf in layers.items()}
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + of["table"])[:, :, None].unbind(1)
        qkv = F.linear(norm(hidden, scale1, shift1), of["qkv"].T, of["qkv_bias"])
        q, k, v = qkv.view(b, -1, 3, WIDTH // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        q, k = (
            rotated(F.rms_norm(part, (HEAD,), of[gain], 1e-6), cos, sin)
            for part, gain in ((q, "query_gain"), (k, "key_gain"))
        )
        out = attend(q, k, v).transpose(1, 2).reshape(b, -1, WIDTH)
        hidden = hidden + gate1 * F.linear(out, of["out"].T, of["out_bias"])
        expanded = F.linear(norm(hidden, scale2, shift2), of["expand"].T, of["expand_bias"])
        expanded = F.gelu(expanded, approximate="tanh")
        hidden = hidden + gate2 * F.linear(expanded, of["contract"].T, of["contract_bias"])
    shift, scale = (embedding[:, None] + params["final_table"])[:, :, None].unbind(1)
    out = linear(params["head"], norm(hidden, scale, shift))
    out = out.view(b, f, rows, columns, PATCH, PATCH, CHANNELS).permute(0, 1, 2, 4, 3, 5, 6)
    return out.reshape(x.shape)


def stepper(tree: Tree, batch: Mapping[str, Any], attend: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """A training step of these weights, as ours: noised clips, v, the gradient clipped, AdamW, the average of the weights."""
    moving = [leaf.requires_grad_() for leaf in leaves(tree)]
    averaged = [leaf.detach().clone() for leaf in moving]
    optimiser = torch.optim.AdamW(moving, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    video, label = (torch.from_numpy(np.array(batch[name])) for name in ("video", "label"))

    def run() -> None:
        clean = video.float() / 127.5 - 1
        logsnr = (-2 * torch.log(torch.tan(math.pi / 2 * torch.rand(len(clean))))).clamp(-20.0, 20.0)
        alpha, sigma = (torch.sigmoid(x).sqrt()[:, None, None, None, None] for x in (logsnr, -logsnr))
        eps = torch.randn_like(clean)
        told = torch.where(torch.rand(len(clean)) < 0.1, CONFIG["model"]["num_classes"], label)
        prediction = network(tree, alpha * clean + sigma * eps, logsnr, told, attend)
        loss = F.mse_loss(prediction, alpha * eps - sigma * clean)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, moving, 1e-3)

    return run


def jvp(
    params: Tree, x: torch.Tensor, logsnr: torch.Tensor, label: torch.Tensor, dx: torch.Tensor, dlogsnr: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the prediction, its derivative along (dx, dlogsnr)), with plain attention: the built-in one has no such derivative."""
    with torch.no_grad():
        return torch.func.jvp(lambda x, level: network(params, x, level, label, softmax), (x, logsnr), (dx, dlogsnr))
