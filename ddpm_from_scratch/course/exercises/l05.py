"""Exercises of lesson 05, the U-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ddpm_from_scratch import UNet2DModel
from ddpm_from_scratch.course.exercise import Case, Exercise, Mistake
from ddpm_from_scratch.course.exercises.l04 import filled
from ddpm_from_scratch.models.embeddings import sinusoidal_embedding
from ddpm_from_scratch.models.resnet import ResnetBlock2D

# ---------------------------------------------------------------- 05.1


def skip_channels(widths: list[int], layers: int) -> list[int]:
    """Channels of every map that is kept for the way up, in the order in which they are made.

    widths: channels per resolution, the finest first.
    layers: ResNet blocks per resolution.
    Returns one number per skip.
    """
    channels = [widths[0]]
    for i, width in enumerate(widths):
        channels += [width] * layers
        if i < len(widths) - 1:
            channels += [width]
    return channels


def skip_inputs(generator: torch.Generator, index: int) -> Case:
    """Small sizes, those of Ho et al. with a drawn first width, a single resolution, and random widths."""
    drawn = (16 * torch.randint(1, 9, (4,), generator=generator)).tolist()
    widths, layers = (([32, 64, drawn[0]], 1), ([drawn[0], 256, 256, 256], 2), (drawn[:1], 3), (drawn, 2))[index]
    return Case({"widths": widths, "layers": layers}, {"n": len(widths), "last": widths[-1]})


def skips_from_a_comprehension(widths, layers):
    levels = [[w] * (layers + (i + 1 < len(widths))) for i, w in enumerate(widths)]
    return [widths[0], *(c for level in levels for c in level)]


def skips_then_one_off(widths, layers):
    return [widths[0]] + [w for w in widths for _ in range(layers + 1)][:-1]


def skips_by_recursion(widths, layers):
    def level(rest):
        return rest[:1] * layers if len(rest) == 1 else rest[:1] * (layers + 1) + level(rest[1:])

    return widths[:1] + level(list(widths))


def skips_in_a_tensor(widths, layers):
    return [widths[0], *torch.tensor(widths).repeat_interleave(layers + 1)[:-1].tolist()]


def skips_of_a_network(widths, layers):
    result = list(widths[:1])
    for width, narrower in zip(widths, [*widths[1:], None], strict=True):
        result.extend(width for _ in range(layers))
        if narrower is not None:
            result.append(width)
    return result


SKIP_CHANNELS = Exercise(
    id="05.1",
    title="What is kept on the way down",
    difficulty=1,
    minutes=4,
    equation="Ho appendix B",
    where="Which skip goes where",
    lines=6,
    reference=skip_channels,
    inputs=skip_inputs,
    hints=(
        "Walk down the network and write a number whenever a map is finished: after conv_in, after each ResNet block, "
        "after each halving.",
        "1 from conv_in, then per resolution n from the ResNet blocks and 1 from the halving, which the lowest "
        "resolution does not have. A halving keeps the channels it is given.",
        "`channels = [widths[0]]`, then a loop over `enumerate(widths)` that adds `layers` numbers, and one more "
        "unless it is the last resolution",
    ),
    mistakes=(
        Mistake(
            lambda w, n: skip_channels(w, n)[1:],
            "you left out conv_in's output: it is the first skip, and the last one to be used",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for c in w for _ in range(n)],
            "you left out the halvings: their outputs are kept too, one for every resolution but the lowest",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for c in w for _ in range(n + 1)],
            "your last {last} is one too many: the lowest resolution is followed by the middle block, not by a "
            "halving, and the middle block keeps nothing",
        ),
        Mistake(
            lambda w, n: skip_channels(w, n)[::-1],
            "you listed the skips in the order in which they are used; the order in which they are made is asked for",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for i, c in enumerate(w) for c in [c] * n + w[i + 1 : i + 2]],
            "you have the right number of skips, but the wider channels come one place too early: conv_in's map is the "
            "first one, and a halving keeps the channels it is given",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for c in w[:-1] for _ in range(n + 1)],
            "you left out the lowest resolution: its ResNet blocks are on the way down as well",
        ),
        Mistake(
            lambda w, n: [w[0], *w],
            "you counted one skip per resolution: every ResNet block makes one, and so does every halving",
        ),
        Mistake(
            lambda w, n: len(skip_channels(w, n)),
            "you returned how many skips there are: the channels of each are asked for",
        ),
        Mistake(
            lambda w, n: skip_channels(w, n + 1),
            "you counted {layers} + 1 ResNet blocks per resolution: the additional one is on the way up, where skips "
            "are used and none is made",
        ),
        Mistake(
            lambda w, n: [w[0]] + [w[0] * 2**i for i in range(len(w)) for _ in range(n + 1)][:-1],
            "you doubled the channels from one resolution to the next: the widths are given, here {widths}",
        ),
        Mistake(
            lambda w, n: w[:1] + [c for width in w for c in [width] * (n + (width != w[-1]))],
            "you knew the lowest resolution by its width, {last}: others may be as wide, so ask for its place",
        ),
        Mistake(
            lambda w, n: w[:1] + [c for width in w for c in [width] * (n + (w.index(width) < len(w) - 1))],
            "you asked `index` for the place of a width: it finds the first one that is as wide. `enumerate` counts",
        ),
        Mistake(
            lambda w, n: (
                w[:1] + [c for i, width in enumerate(w) for c in [[width] * n, width][: 2 - (i == len(w) - 1)]]
            ),
            "you put a list into the list where its numbers belong: `append` adds one thing, `+=` adds all of a list",
        ),
        Mistake(
            lambda w, n: [3] + skip_channels(w, n)[1:],
            "you began with the 3 colours of an image: what is kept is conv_in's output, which has widths[0] channels",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for i, width in enumerate(w) for c in [width] * n + [2 * width][: i < len(w) - 1]],
            "you let a halving double the channels: it halves height and width, and keeps the channels it is given",
        ),
        Mistake(
            lambda w, n: [w[0]] + [c for i, width in enumerate(w) for c in [width] * n * (1 + (i < len(w) - 1))],
            "you halved after each ResNet block: there is one halving per resolution, after all {layers} of them",
        ),
        Mistake(
            lambda w, n: [w[0]] + w * n + w[:-1],
            "you repeated the list of widths: each width has to be repeated by itself, the maps of one resolution are "
            "made one after the other",
        ),
        Mistake(
            lambda w, n: w[:1] * (1 + n + (len(w) > 1)),
            "you returned after the first resolution (how far is `return` indented?): there are {n}",
        ),
    ),
    alternatives=(
        skips_from_a_comprehension,
        skips_then_one_off,
        skips_by_recursion,
        skips_in_a_tensor,
        skips_of_a_network,
    ),
)


# ---------------------------------------------------------------- 05.2


def channels_on_the_way_up(widths: list[int], layers: int, skips: list[int]) -> list[int]:
    """Channels that enter each ResNet block on the way up, after the concatenation, in the order of use.

    widths: channels per resolution, the finest first; the middle block gives widths[-1].
    layers: ResNet blocks per resolution on the way down; on the way up there is one more.
    skips: channels of the skips, in the order in which they were made; the list stays as it is.
    Returns one number per ResNet block.
    """
    channels, below, left = [], widths[-1], list(skips)
    for width in reversed(widths):
        for _ in range(layers + 1):
            channels.append(below + left.pop())
            below = width
    return channels


def up_inputs(generator: torch.Generator, index: int) -> Case:
    """The same networks as for 05.1."""
    args = skip_inputs(generator, index).args
    skips = skip_channels(**args)
    return Case(args | {"skips": skips}, {"last": skips[-1], "first": skips[0], "n": len(skips)})


def up_by_zip(widths, layers, skips):
    outs = [w for w in reversed(widths) for _ in range(layers + 1)]
    return [a + b for a, b in zip([widths[-1], *outs[:-1]], reversed(skips), strict=True)]


def up_by_index(widths, layers, skips):
    result, k = [], len(skips) - 1
    for i in range(len(widths) - 1, -1, -1):
        for j in range(layers + 1):
            before = widths[i] if j or i == len(widths) - 1 else widths[i + 1]
            result.append(before + skips[k])
            k -= 1
    return result


def up_by_slices(widths, layers, skips):
    result, below, left = [], widths[-1], tuple(skips)
    for width in widths[::-1]:
        mine, left = left[-layers - 1 :], left[: -layers - 1]
        result += [below + mine[-1], *(width + s for s in mine[-2::-1])]
        below = width
    return result


def up_in_tensors(widths, layers, skips):
    outs = torch.tensor(widths).flip(0).repeat_interleave(layers + 1)
    return (torch.cat([outs[:1], outs[:-1]]) + torch.tensor(skips).flip(0)).tolist()


def up_by_recursion(widths, layers, skips):
    def rest(below, outs, left):
        return [] if not outs else [below + left[-1], *rest(outs[0], outs[1:], left[:-1])]

    return rest(widths[-1], [w for w in widths[::-1] for _ in range(layers + 1)], list(skips))


def _up(
    widths, layers, skips, *, first_in=False, own=False, extra=1, down=False, keep=False, start=None, reverse=False
):
    channels, below, left = [], widths[-1] if start is None else start, list(skips)
    for width in widths if down else reversed(widths):
        for remaining in range(layers + extra, 0, -1):
            skip = left[-1] if keep else left.pop(0 if first_in else -remaining if reverse else -1)
            channels.append((width if own else below) + skip)
            below = width
    return channels


def up_below_renewed_late(widths, layers, skips):
    channels, below, left = [], widths[-1], list(skips)
    for width in reversed(widths):
        channels += [below + left.pop() for _ in range(layers + 1)]
        below = width
    return channels


def up_without_shrinking(widths, layers, skips):
    channels = [widths[-1]]
    for skip in reversed(skips):
        channels.append(channels[-1] + skip)
    return channels[1:]


CHANNELS_UP = Exercise(
    id="05.2",
    title="What goes into the way up",
    difficulty=2,
    minutes=6,
    equation="equation (A)",
    where="Which skip goes where",
    lines=6,
    reference=channels_on_the_way_up,
    inputs=up_inputs,
    hints=(
        "Two things meet in front of each block: what comes from the block before it, and one skip. Follow both with a "
        "variable each.",
        "The skips are used last in, first out. A block's output has the width of its own resolution; the first block "
        "of a resolution still gets the width of the one below.",
        "`channels, below, left = [], widths[-1], list(skips)`, a loop over the reversed widths, inside it `layers + "
        "1` times: append, then set `below`",
    ),
    mistakes=(
        Mistake(
            lambda w, n, s: _up(w, n, s, first_in=True),
            "you took the skips in the order in which they were made: the first one made is the last one used",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, own=True),
            "you let this resolution's own width come from below in its first block, too: that one gets what the "
            "coarser resolution puts out",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, extra=0),
            "you built as many blocks per resolution as on the way down: then skips are left over, {n} of them have to "
            "be used",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, down=True),
            "you went through the widths from the finest: the way up begins at the coarsest",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, [0] * len(s)),
            "you left the skips out of the sum: they are put beside what comes from below, so the channels add up",
        ),
        Mistake(
            lambda w, n, s: s[::-1],
            "you returned the skips alone: what comes from below is missing in the sum",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, keep=True),
            "you used the last skip, with {last} channels, again and again: each is used once",
        ),
        Mistake(
            lambda w, n, s: [2 * c for c in s[::-1]],
            "your sums are twice the skips: you let what comes from below be as wide as the skip everywhere, where it "
            "is what the block before puts out",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s)[::-1],
            "you listed the blocks from the finest resolution: the order of use begins at the coarsest",
        ),
        Mistake(
            up_below_renewed_late,
            "you renewed what comes from below after a whole resolution: already its second block gets the output of "
            "its first, which has this resolution's width",
        ),
        Mistake(
            lambda w, n, s: [w[-1] + c for c in s[::-1]],
            "you let the middle block's channels come from below everywhere: each block gets the output of the one "
            "before it",
        ),
        Mistake(
            up_without_shrinking,
            "you passed on all channels that went in: a block puts out the width of its resolution, however many it is "
            "given",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, start=w[0]),
            "you began with the finest width: the first block gets the middle block's output, which has widths[-1] "
            "channels",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, start=0),
            "you let nothing come from below into the first block: the middle block is in front of it",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s, reverse=True),
            "you took the right skips for each resolution, but within it the one made first comes first: last in, "
            "first out goes for all of them",
        ),
        Mistake(
            lambda w, n, s: [(c - k, k) for c, k in zip(_up(w, n, s), s[::-1], strict=True)],
            "you returned pairs: what comes from below and the skip lie beside each other, so their channels add up to "
            "one number",
        ),
        Mistake(
            lambda w, n, s: [c for width in w[::-1] for c in [width] * (n + 1)],
            "you returned what each block puts out: what enters it is asked for",
        ),
        Mistake(
            lambda w, n, s: [2 * c for width in w[::-1] for c in [width] * (n + 1)],
            "you doubled each resolution's own width: from below, and from the halving that made the last of its "
            "skips, comes another width",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, [s[0], *s[:0:-1]][::-1]),
            "you used `skips[-i]` with i from 0, and -0 is 0: the first block then gets the first skip",
        ),
        Mistake(
            lambda w, n, s: _up(w, n, s)[: n + 1],
            "you returned after the coarsest resolution (how far is `return` indented?)",
        ),
    ),
    alternatives=(up_by_zip, up_by_index, up_by_slices, up_in_tensors, up_by_recursion),
)


# ---------------------------------------------------------------- 05.3


def unet_forward(net: Any, x: Tensor, sinusoids: Tensor) -> Tensor:
    """The whole forward pass of a U-Net, from its parts.

    net: has conv_in, time_embedding, down_blocks, mid_block, up_blocks, conv_norm_out, conv_act, conv_out.
         A down block gives (h, made) from (h, temb): the new map, and the skips it made, in order.
         The middle block gives h from (h, temb). An up block gives h from (h, skips, temb), where skips are the last
         len(block.resnets) that are left, in the order in which they were made.
    x: x_t, (B, C, H, W).
    sinusoids: the sinusoidal embedding of each t, (B, net.conv_in.out_channels).
    Returns the prediction, (B, C, H, W).
    """
    temb = net.time_embedding(sinusoids)
    h = net.conv_in(x)
    skips = [h]
    for block in net.down_blocks:
        h, made = block(h, temb)
        skips += made
    h = net.mid_block(h, temb)
    for block in net.up_blocks:
        n = len(block.resnets)
        h = block(h, skips[-n:], temb)
        del skips[-n:]
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


PARTS = ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_act", "conv_out")


def parts_of(unet: UNet2DModel) -> Any:
    """The parts of a U-Net, without its forward pass."""
    net = nn.Module()
    for name in PARTS:
        setattr(net, name, getattr(unet, name))
    return net


def forward_inputs(generator: torch.Generator, index: int) -> Case:
    """One resolution, where no wrong order meets a wrong shape; two and three."""
    widths, channels = (((4,), 1), ((4, 8), 2), ((2, 2, 4), 1))[index]
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownBlock2D",) * len(widths),
            up_block_types=("UpBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=2 if index == 0 else 1,
            norm_num_groups=2,
            add_attention=False,
        )
    net = filled(parts_of(unet), generator)
    x = torch.randn(2 + index, channels, 8, 8, generator=generator)
    t = torch.randint(0, 1000, (2 + index,), generator=generator)
    sinusoids = sinusoidal_embedding(t, widths[0], flip_sin_to_cos=True)
    return Case({"net": net, "x": x, "sinusoids": sinusoids}, {"levels": len(widths)})


def _forward(
    net,
    x,
    sinusoids,
    *,
    keep_first=True,
    take="last",
    turn=False,
    middle=True,
    time=1.0,
    out="norm act",
    per_block=False,
    twice=False,
    made_turned=False,
    one_less=False,
):
    temb, h = net.time_embedding(sinusoids), net.conv_in(x)
    temb = net.conv_act(temb) if time is None else time * temb
    skips = [h] if keep_first else []
    for block in net.down_blocks:
        h, made = block(h, temb)
        skips += made[-1:] if per_block else made[::-1] if made_turned else made
        skips += [h] * twice
    h = net.mid_block(h, temb) if middle else h
    for block in net.up_blocks:
        n = len(block.resnets) - one_less
        chosen = skips[:n] if take == "first" else skips[-n:]
        h = block(h, chosen[::-1] if turn else chosen, temb)
        skips = skips[n:] if take == "first" else skips[:-n]
    if out == "act norm":
        return net.conv_out(net.conv_norm_out(net.conv_act(h)))
    h = net.conv_norm_out(h) if "norm" in out else h
    for _ in range(out.count("act")):
        h = net.conv_act(h)
    return net.conv_out(h)


def forward_by_pop(net, x, sinusoids):
    temb = net.time_embedding(sinusoids)
    stack = [net.conv_in(x)]
    h = stack[0]
    for block in net.down_blocks:
        h, made = block(h, temb)
        stack.extend(made)
    h = net.mid_block(h, temb)
    for block in net.up_blocks:
        taken = [stack.pop() for _ in block.resnets]
        h = block(h, taken[::-1], temb)
    return net.conv_out(nn.functional.silu(net.conv_norm_out(h)))


def forward_in_float64(net, x, sinusoids):
    dtype = x.dtype
    result = unet_forward(net.double(), x.double(), sinusoids.double()).to(dtype)
    net.to(dtype)
    return result


def forward_one_by_one(net, x, sinusoids):
    return torch.cat([_forward(net, *pair) for pair in zip(x.split(1), sinusoids.split(1), strict=True)])


def forward_by_index(net, x, sinusoids):
    temb, h = net.time_embedding(sinusoids), net.conv_in(x)
    skips, left = (h,), 1
    for block in net.down_blocks:
        h, made = block(h, temb)
        skips, left = skips + tuple(made), left + len(made)
    h = net.mid_block(h, temb)
    for block in net.up_blocks:
        left -= len(block.resnets)
        h = block(h, skips[left : left + len(block.resnets)], temb)
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


def forward_unrolled(net, x, sinusoids):
    temb, h = net.time_embedding(sinusoids), net.conv_in(x)
    skips = [h]
    for block in net.down_blocks:
        h, made = block(h, temb)
        skips.extend(made)
    h = net.mid_block(h, temb)
    for block in net.up_blocks:
        attentions = getattr(block, "attentions", [nn.Identity()] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            h = attention(resnet(torch.cat([h, skips.pop()], dim=1), temb))
        h = h if block.upsamplers is None else block.upsamplers[0](h)
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


UNET_FORWARD = Exercise(
    id="05.3",
    title="The forward pass",
    difficulty=3,
    minutes=8,
    equation="equation (B)",
    where="The forward pass",
    lines=12,
    reference=unet_forward,
    inputs=forward_inputs,
    hints=(
        "Down, middle, up. Keep a list: everything that is made on the way down goes to its end, and everything that "
        "is needed on the way up comes from its end.",
        "temb = time_embedding(sinusoids). The list begins with conv_in's output and grows by `made` of each down "
        "block. An up block with n ResNet blocks takes the last n entries, in the order in which they stand, and they "
        "are gone.",
        "`h = ...; skips = [h]`, `for block in net.down_blocks: h, made = ...`, middle, `for block in net.up_blocks: "
        "n = len(block.resnets); ...`, and at last norm, activation, convolution",
    ),
    mistakes=(
        Mistake(
            lambda net, x, s: _forward(net, x, s, take="first"),
            "your function stops where there is more than one resolution, since maps that do not fit meet: each up "
            "block takes the last skips that are left, what was used is off the list, and both ways go through all "
            "blocks in the order in which they stand",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, turn=True),
            "you turned the skips around before you handed them over: the up block expects the order in which they "
            "were made, and turns them itself",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, keep_first=False),
            "you did not keep conv_in's output: the last up block gets one skip too few, and quietly leaves out a "
            "ResNet block",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, per_block=True),
            "you kept one skip per down block: it makes several, and all are needed",
        ),
        Mistake(lambda net, x, s: _forward(net, x, s, middle=False), "you left out the middle block"),
        Mistake(
            lambda net, x, s: _forward(net, x, s, time=0.0),
            "you gave the blocks a temb of zeros: they cannot know the time",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, out="act"),
            "you left out the norm in front of the last convolution",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, out="norm"),
            "you left out the activation in front of the last convolution",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, out=""),
            "you left out both the norm and the activation in front of the last convolution",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, out="act norm"),
            "you put the last activation in front of the norm: it comes behind it, as in every block",
        ),
        Mistake(
            lambda net, x, s: x + _forward(net, x, s),
            "you added x at the end: the network as a whole has no such shortcut, it gives ε and not a change of x",
        ),
        Mistake(
            lambda net, x, s: x - _forward(net, x, s),
            "you subtracted the prediction from x: return the prediction itself",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, twice=True),
            "you kept each down block's last map twice: it is among the `made` already",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, made_turned=True),
            "you put the skips of a down block on the list from the last to the first: `made` is in the right order",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, one_less=True),
            "you gave the up blocks too few skips: each of them quietly leaves out a ResNet block",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, out="norm act act"),
            "you activated twice in front of the last convolution",
        ),
        Mistake(
            lambda net, x, s: _forward(net, x, s, time=None),
            "you activated temb: each block does that itself",
        ),
    ),
    alternatives=(
        forward_by_pop,
        forward_in_float64,
        forward_one_by_one,
        forward_by_index,
        forward_unrolled,
    ),
    rtol=1e-3,
    cases=3,
)


# ---------------------------------------------------------------- 05.4


def resnet_parameters(c_in: int, c_out: int, temb: int) -> int:
    """How many numbers a ResNet block learns.

    c_in, c_out: channels in and out; the 1×1 convolution is there only where they differ.
    temb: length of the time embedding.
    Returns a whole number.
    """
    norms = 2 * c_in + 2 * c_out
    convolutions = 9 * c_in * c_out + c_out + 9 * c_out * c_out + c_out
    time = temb * c_out + c_out
    shortcut = c_in * c_out + c_out if c_in != c_out else 0
    return norms + convolutions + time + shortcut


def parameters_inputs(generator: torch.Generator, index: int) -> Case:
    """As many channels, more, fewer, and random ones."""
    a, b = (8 * torch.randint(1, 12, (2,), generator=generator)).tolist()
    c_in, c_out = ((a, a), (a, 2 * a), (3 * a, a), (a, b + 4))[index]
    temb = (128, 64, 256, 40)[index]
    facts = {"change": f"{c_in} → {c_out} channels", "norms": 2 * c_in + 2 * c_out}
    return Case({"c_in": c_in, "c_out": c_out, "temb": temb}, facts)


def count_of_the_block(c_in, c_out, temb):
    with torch.random.fork_rng(devices=[]):
        return sum(p.numel() for p in ResnetBlock2D(c_in, c_out, temb, groups=1).parameters())


def count_by_shapes(c_in, c_out, temb):
    shapes = [(c_in,), (c_in,), (c_out, c_in, 3, 3), (c_out,), (c_out, temb), (c_out,), (c_out,), (c_out,)]
    shapes += [(c_out, c_out, 3, 3), (c_out,)] + [(c_out, c_in, 1, 1), (c_out,)] * (c_in != c_out)
    return sum(torch.Size(shape).numel() for shape in shapes)


def count_by_layers(c_in, c_out, temb):
    def conv(a, b, k):
        return k**2 * a * b + b

    total = 2 * (c_in + c_out) + conv(c_in, c_out, 3) + conv(c_out, c_out, 3) + conv(temb, c_out, 1)
    return total if c_in == c_out else total + conv(c_in, c_out, 1)


def count_as_a_polynomial(c_in, c_out, temb):
    differs = int(c_in != c_out)
    return 9 * c_out**2 + (9 + differs) * c_in * c_out + (temb + 5 + differs) * c_out + 2 * c_in


def _count(c_in, c_out, temb, *, bias=1, kernel=9, norms=None, shortcut=None, time=1, second=None):
    convolutions = kernel * c_in * c_out + kernel * (second or c_out) * c_out + 2 * bias * c_out
    total = convolutions + (2 * c_in + 2 * c_out if norms is None else norms)
    total += time * (temb * c_out + bias * c_out)
    there = c_in != c_out if shortcut is None else shortcut
    return total + there * (c_in * c_out + bias * c_out)


RESNET_PARAMETERS = Exercise(
    id="05.4",
    title="Counting a ResNet block",
    difficulty=2,
    minutes=5,
    equation="equation (C)",
    where="Counting parameters",
    lines=5,
    reference=resnet_parameters,
    inputs=parameters_inputs,
    hints=(
        "Go through the block of lesson 04 layer by layer: two norms, two 3×3 convolutions, one linear layer for the "
        "time, and sometimes a 1×1 convolution.",
        "A k×k convolution from a to b channels has k² a b weights and b biases, a linear layer the same with k = 1, a "
        "norm over c channels 2c.",
        "`norms = ...`, `convolutions = ...`, `time = ...`, `shortcut = ... if c_in != c_out else 0`, and the sum",
    ),
    mistakes=(
        Mistake(
            lambda a, b, t: _count(a, b, t, bias=0), "you left out the biases: every layer has one per output channel"
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=0),
            "you left out the two norms: they learn a scale and a shift per channel, {norms} numbers here",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=4 * b),
            "you gave both norms the channels of the output: the first one acts on the input (here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=4 * a),
            "you gave both norms the channels of the input: the second one acts on what the first convolution made "
            "(here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=2 * a),
            "you are 2 · {c_out} numbers short: either you counted one norm, where there is one in front of each of "
            "the two 3×3 convolutions, or you left out the biases of both convolutions",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) - (9 * b * b + b),
            "you counted one 3×3 convolution: there are two, the second from {c_out} channels to as many",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, shortcut=False) + (a != b) * (9 * a * b + b),
            "you counted the shortcut as a 3×3 convolution (here {change}): it is 1×1",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, time=0) + t * a + a,
            "you let the time be projected to the {c_in} channels of the input: it is added after the first "
            "convolution, where there are {c_out}",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, time=2),
            "you counted twice as many numbers for the time as there are: one linear layer, from {temb} to {c_out}",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=a + b),
            "you counted one number per channel in the norms: there is a scale and a shift",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, shortcut=True),
            "you counted a 1×1 convolution where the channels are the same ({change}): there the input is added as it "
            "is",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, shortcut=False),
            "you left out the 1×1 convolution of the shortcut, which is there where the channels differ ({change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, time=0),
            "you left out the linear layer that projects the time: {temb} numbers in, one per channel out",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, kernel=3),
            "you counted 3 weights per pair of channels: a 3×3 kernel has more",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, second=a),
            "you let the second convolution start from {c_in} channels: the first one has already made {c_out} of them",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) - b,
            "you are {c_out} numbers short, as many as a layer has biases: each of the convolutions and the linear "
            "layer has them, and each norm has a shift beside its scale",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, norms=2 * b),
            "you left out the first norm, over the {c_in} channels of the input",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) if a != b else 0,
            "you get 0 where the channels are the same: `a + b if ... else 0` chooses between the whole sum and 0, so "
            "put the shortcut into brackets, or count it by itself",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) - (a != b) * b,
            "you left out the biases of the shortcut's convolution (here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, shortcut=a < b),
            "you counted the shortcut only where the channels become more: it is there where they become fewer, too "
            "(here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, shortcut=a > b),
            "you counted the shortcut only where the channels become fewer: it is there where they become more, too "
            "(here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(b, a, t),
            "you swapped the channels in and out (here {change})",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) + a - b,
            "you gave a convolution a bias for each of its {c_in} inputs: a bias belongs to an output, so there are "
            "{c_out}",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) + 16 * b,
            "you multiplied the biases of the 3×3 convolutions by 9: an output channel has one, wherever the kernel is",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, kernel=6),
            "you counted 6 weights per pair of channels: a 3×3 kernel has 3 · 3",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t, kernel=1),
            "you counted 1 weight per pair of channels: that is a 1×1 convolution, these are 3×3",
        ),
        Mistake(
            lambda a, b, t: _count(a, b, t) + 2 * b + 4 * (b * b + b),
            "you counted an attention layer, too: it is no part of a ResNet block",
        ),
    ),
    alternatives=(count_of_the_block, count_by_shapes, count_by_layers, count_as_a_polynomial),
)


# ---------------------------------------------------------------- 05.5


def up_resolution(resnets: nn.ModuleList, h: Tensor, skips: list[Tensor], temb: Tensor) -> Tensor:
    """The ResNet blocks of one resolution on the way up.

    resnets: one per skip, each with 2c channels in (first those from below, then those of the skip) and c out.
    h: from below, (B, c, H, W).
    skips: (B, c, H, W) each, in the order in which they were made; the list stays as it is.
    Returns (B, c, H, W).
    """
    for resnet, skip in zip(resnets, reversed(skips), strict=True):
        h = resnet(torch.cat([h, skip], dim=1), temb)
    return h


CLINIC_GIVEN = """
# the broken function: it holds two of the bugs, and no shape betrays them
for resnet, skip in zip(resnets, skips, strict=True):
    h = resnet(torch.cat([skip, h], dim=1), temb)
return h
"""


def patient(unet: UNet2DModel, x_t: Tensor, t: Tensor, bug: str = "") -> Tensor:
    """The forward pass of a U-Net with one of the clinic's bugs, "A" to "D"; right without.

    x_t: (B, C, H, W). t: (B,). Returns the prediction, of x_t's shape.
    """
    width, net = unet.conv_in.out_channels, parts_of(unet)
    told = torch.full_like(t, 500) if bug == "A" else t
    temb = net.time_embedding(sinusoidal_embedding(told, width, flip_sin_to_cos=bug != "D"))
    h = net.conv_in(x_t)
    skips = [h]
    for block in net.down_blocks:
        h, made = block(h, temb)
        skips += made
    h = net.mid_block(h, temb)
    for block in net.up_blocks:
        taken = [skips.pop() for _ in block.resnets]
        if bug == "B" and len({skip.shape for skip in taken}) == 1:
            taken.reverse()
        attentions = getattr(block, "attentions", [nn.Identity()] * len(taken))
        for resnet, attention, skip in zip(block.resnets, attentions, taken, strict=True):
            h = attention(resnet(torch.cat([skip, h] if bug == "C" else [h, skip], dim=1), temb))
        h = h if block.upsamplers is None else block.upsamplers[0](h)
    return net.conv_out(net.conv_act(net.conv_norm_out(h)))


def clinic_inputs(generator: torch.Generator, index: int) -> Case:
    """Two or three blocks of equal width."""
    count, c, shape = ((2, 4, (2, 4, 4)), (3, 2, (1, 3, 5)), (2, 6, (3, 3, 3)))[index]
    with torch.random.fork_rng(devices=[]):
        resnets = nn.ModuleList([ResnetBlock2D(2 * c, c, temb_channels=5, groups=2) for _ in range(count)])
    h, *skips = (torch.randn(shape[0], c, *shape[1:], generator=generator) for _ in range(count + 1))
    temb = torch.randn(shape[0], 5, generator=generator)
    args = {"resnets": filled(resnets, generator), "h": h, "skips": skips, "temb": temb}
    return Case(args, {"n": count})


def clinic_by_pop(resnets, h, skips, temb):
    left = list(skips)
    for resnet in resnets:
        h = resnet(torch.cat([h, left.pop()], dim=1), temb)
    return h


def clinic_by_index(resnets, h, skips, temb):
    for i in range(len(resnets)):
        h = resnets[i](torch.cat((h, skips[-1 - i]), dim=-3), temb)
    return h


def clinic_by_recursion(resnets, h, skips, temb):
    if not skips:
        return h
    h = resnets[0](torch.cat([h, skips[-1]], 1), temb)
    return clinic_by_recursion(resnets[1:], h, skips[:-1], temb)


def clinic_one_by_one(resnets, h, skips, temb):
    images = []
    for i in range(len(h)):
        image = h[i : i + 1]
        for resnet, skip in zip(resnets, skips[::-1], strict=True):
            image = resnet(torch.cat([image, skip[i : i + 1]], dim=1), temb[i : i + 1])
        images.append(image)
    return torch.cat(images)


def clinic_in_float64(resnets, h, skips, temb):
    dtype = h.dtype
    result = up_resolution(resnets.double(), h.double(), [s.double() for s in skips], temb.double()).to(dtype)
    resnets.to(dtype)
    return result


def _clinic(resnets, h, skips, temb, *, order=-1, below_first=True, blocks=1, time=1.0, keep=False):
    first = h
    for resnet, skip in zip(list(resnets)[::blocks], skips[::order], strict=True):
        h = first if keep else h
        h = resnet(torch.cat([h, skip] if below_first else [skip, h], dim=1), time * temb)
    return h


def clinic_added(resnets, h, skips, temb):
    for resnet, skip in zip(resnets, skips[::-1], strict=True):
        h = h + resnet(torch.cat([h, skip], dim=1), temb)
    return h


CLINIC = Exercise(
    id="05.5",
    title="Bug clinic: two quiet bugs",
    difficulty=2,
    minutes=4,
    equation="equation (A)",
    where="Bug clinic",
    lines=3,
    reference=up_resolution,
    given=CLINIC_GIVEN,
    inputs=clinic_inputs,
    hints=(
        "Read the docstring beside the code: what does it say about the order of the skips, and about the order of the "
        "channels? Compare both with the two lines of the loop.",
        "Last in, first out. And [h, skip]: what comes from below first.",
        "`zip(resnets, ..., strict=True)` over the skips from the last to the first, and `torch.cat([..., ...], "
        "dim=1)` with the other order",
    ),
    mistakes=(
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, order=1),
            "you mended one of the two: the channels stand right, but the skips are still used in the order in which "
            "they were made",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, below_first=False),
            "you mended one of the two: the skips come in the right order, but each stands in front of what comes from "
            "below",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, blocks=-1),
            "you turned the ResNet blocks around, too: they are used in the order in which they stand, only the skips "
            "are not",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, blocks=-1, order=1),
            "you turned the ResNet blocks around and left the skips: it is the skips that come last in, first out",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, time=0.0),
            "you mended both, but the blocks get a temb of zeros",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, keep=True),
            "you gave every block the h from below: each takes the result of the one before it",
        ),
        Mistake(
            lambda r, h, s, t: r[0](torch.cat([h, s[-1]], dim=1), t),
            "you returned from inside the loop: one of the {n} blocks has run",
        ),
        Mistake(
            clinic_added,
            "you added h to what each block gives: its shortcut is inside it already",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, [s[-1]] * len(s), t),
            "you used the last skip for all {n} blocks",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, order=1, below_first=False),
            "you changed the words, but both bugs are still there: the order of the skips, and the order of the "
            "channels",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, blocks=-1, order=1, below_first=False),
            "you turned the ResNet blocks around instead of the skips, and each skip still stands in front of what "
            "comes from below",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, s, t, blocks=-1, below_first=False),
            "you turned the ResNet blocks around together with the skips, and each skip still stands in front of what "
            "comes from below",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r, h, [s[0]] * len(s), t),
            "you used the first skip for all {n} blocks",
        ),
        Mistake(
            lambda r, h, s, t: _clinic(r[:-1], h, s[1:], t),
            "you left out the last block, and with it the skip that was made first",
        ),
    ),
    alternatives=(clinic_by_pop, clinic_by_index, clinic_by_recursion, clinic_one_by_one, clinic_in_float64),
    rtol=1e-4,
    cases=3,
)


EXERCISES = (SKIP_CHANNELS, CHANNELS_UP, UNET_FORWARD, RESNET_PARAMETERS, CLINIC)
