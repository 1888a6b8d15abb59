# %% [markdown] id=title
# # 05 · The U-Net
#
# **How do the pieces fit together?** About 50 minutes, half of them for five exercises.
#
# Lesson 04 built the pieces. This lesson stacks them: down to a coarse resolution, through a middle block, and up again, with connections across. Most of the work is bookkeeping: which map goes where, and with how many channels. Done right, the result is
# the network that the published models use, number for number.
#
# **You will build** the forward pass of `ddpm_from_scratch.models.unet.UNet2DModel`, and the arithmetic of its channels.
#
# **Afterwards you can**
#
# - draw a U-Net from its configuration, and say for every skip who makes it and who uses it;
# - write the forward pass from its parts;
# - count its parameters on paper, and say where they are;
# - open the same weights in Diffusers and get the same numbers;
# - recognise four quiet bugs by what they do to the loss and to the samples.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson. Those of lesson 04 are used as they were.
#
# {{notation 05}}
#
# *Layer* means a ResNet block, together with the attention behind it where there is one. In configurations the list `block_out_channels` is $(c_0, \dots, c_{L-1})$.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_from_scratch import UNet2DModel, gaussian, schedules, shipped_model
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution, widgets
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.models.embeddings import sinusoidal_embedding
from ddpm_from_scratch.models.resnet import ResnetBlock2D

setup("05")
torch.set_num_threads(1)  # the maps here are small: a second thread would only wait

alpha_bar = schedules.alpha_bars(schedules.linear(T=1000))
digits = load_dataset("digits").resized(16).images()  # (N, 1, 16, 16), in [-1, 1]
unet = UNet2DModel.from_pretrained(shipped_model("digits"), subfolder="unet").eval()
larger = UNet2DModel.from_pretrained(shipped_model("fashion"), subfolder="unet").eval()

# %% [markdown] id=plan
# ## The plan
#
# Every dot is a map that a layer puts out, in the order in which they are made. Height is resolution.

# %% id=hero
from ddpm_from_scratch.course.widgets.tracer import draw_plan, nodes_of

with plots.figure(
    8.6,
    3.6,
    columns=2,
    width_ratios=(1, 1.35),
    alt="Two networks as dots on a U, joined by nested arcs. Left, two resolutions and four "
    "arcs; right, three resolutions and six arcs. Each arc leads from a dot on the way down to "
    "one on the way up at the same height.",
    caption="Two networks that come with the course: for 16×16 digits (left) and for 28×28 "
    "clothes (right). Each arc is a skip: a copy of a map, carried across. The first one made is the last one used.",
) as axes:
    for ax, network, title in zip(axes, (unet, larger), ("digits", "fashion"), strict=True):
        draw_plan(ax, nodes_of(network))
        ax.set_title(title)
for name, network in (("digits", unet), ("fashion", larger)):
    config = network.config
    print(
        f"{name}: channels {list(config.block_out_channels)}, {config.layers_per_block} layer per resolution on the way down, {network.num_parameters():,} parameters"
    )

# %% [markdown] id=plan-words
# In words (Ho appendix B):
#
# 1. **In.** A 3×3 convolution turns the image into $c_0$ channels.
# 2. **Down.** At each of $L$ resolutions $n$ layers, then a halving, except at the lowest one. *Every* map that is finished on this way is kept.
# 3. **Middle.** ResNet block, attention, ResNet block at the lowest resolution.
# 4. **Up.** At each resolution $n + 1$ layers, then a doubling, except at the highest one. Each layer gets one of the kept maps, put beside its input as further channels.
# 5. **Out.** Norm, SiLU, and a 3×3 convolution to the channels of the image.
#
# ### What the skips are for
#
# > **Predict before you run.** Take a trained network and replace some of its skips by zeros: those at the lower resolution, those at full resolution, all of them. Which are missed most? What will be wrong in the picture: the shape of the digit, or something else?

# %% id=skips
t, chosen = 200, digits[:6]
noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
x_t = gaussian.q_sample(chosen, noise, float(alpha_bar[t]))


def without(module, inputs):
    h, skips, temb = inputs
    return h, [torch.zeros_like(skip) for skip in skips], temb


rows, cases = (
    [chosen, x_t],
    {"all skips": [], "none at 1/2": [0], "none at full": [1], "none": [0, 1]},
)
for name, blocks in cases.items():
    hooks = [unet.up_blocks[i].register_forward_pre_hook(without) for i in blocks]
    with torch.no_grad():
        eps = unet(x_t, t).sample
    for hook in hooks:
        hook.remove()
    rows.append(gaussian.x0_from_eps(x_t, eps, float(alpha_bar[t])))
    print(
        f"{name:<14} mean squared error of the predicted noise {float((eps - noise).square().mean()):.3f}"
    )
plots.image_grid(
    torch.cat(rows),
    6,
    row_labels=["$x_0$", f"$x_t$, t = {t}", *cases],
    alt="Rows of six digits: clean, noisy, and four estimates of the clean image, which are off by (mean square) "
    + ", ".join(f"{name} {float((row - chosen).square().mean()):.2f}" for name, row in zip(cases, rows[2:], strict=True)),
    caption="What the network makes of a noisy image when skips are cut.",
)

# %% [markdown] id=skips-answer
# <details><summary>Answer</summary>
#
# Those at full resolution. In the picture the digit keeps its shape, and the noise stays in. Without these skips the network may know *which digit* this is, but not *which noise*: the noise is different at every pixel, and these weights have learnt to leave the single pixels to the fine skips. (The coarse maps of this small network could carry much of that detail too; they were never asked to. And a map of zeros is something that the network has never seen.) The mean squared error is then
# about 1, as high as for a network that always answers 0. The coarse path says what is in the picture, the skips say where exactly, and the network needs both.
#
# </details>

# %% [markdown] id=which
# ## Which skip goes where
#
# **How many are made?** One by the first convolution, $n$ by the layers of each resolution, one by each halving, of which there are $L - 1$. **How many are used?** One per layer on the way up, $n + 1$ at each resolution. Is that the same?
#
# $$1 + Ln + (L-1) = Ln + L = L(n+1) \qquad\checkmark$$
#
# That is why there is one more layer per resolution on the way up. **In which order?** Last made, first used. Then the resolutions fit by themselves: on the way up each one gets the maps of its $n$ layers, and the map that once came into it, from conv_in or from a halving.
#
# **How many channels?** Putting maps beside each other adds their channels. Let $s$ be the next skip's. The first layer of resolution $l$ on the way up gets $c_{l+1}$ channels from the coarser one (at the lowest one, $c_{L-1}$ from the middle), every other layer the $c_l$ of the layer before:
#
# $$c_{\text{in}} = (c_{l+1} \text{ or } c_l) + s \tag{A}$$
#
# > **Predict before you run.** For $c = (32, 64, 128)$ and $n = 1$, as in the right-hand network above: write down the channels of the six skips, in the order in which they are made.

# %% id=bookkeeping
made = []
hooks = [
    larger.conv_in.register_forward_hook(
        lambda module, inputs, output: made.append(("conv_in", output.shape[1:]))
    )
]
for i, block in enumerate(larger.down_blocks):
    hooks.append(
        block.register_forward_hook(
            lambda module, inputs, output, i=i: made.extend(
                (f"down block {i}", s.shape[1:]) for s in output[1]
            )
        )
    )
used = []
for i, block in enumerate(larger.up_blocks):
    for j, resnet in enumerate(block.resnets):
        hooks.append(
            resnet.register_forward_hook(
                lambda module, inputs, output, i=i, j=j: used.append(
                    (f"up block {i}, layer {j}", inputs[0].shape[1:])
                )
            )
        )
with torch.no_grad():
    larger(torch.zeros(1, 1, 28, 28), 0)
for hook in hooks:
    hook.remove()
print("who uses it          its input       = from below + skip, made by")
for (user, wide), (maker, skip) in zip(used, reversed(made), strict=True):
    from_below = wide[0] - skip[0]
    print(
        f"{user:<20} {wide[0]:>3} × {wide[1]:>2} × {wide[2]:>2}   = {from_below:>3} + {skip[0]:>3}, {maker}"
    )
    assert wide[1:] == skip[1:]
L, n = len(larger.config.block_out_channels), larger.config.layers_per_block
assert len(made) == len(used) == 1 + L * n + (L - 1) == L * (n + 1)

# %% [markdown] id=bookkeeping-answer
# <details><summary>Answer</summary>
#
# Read the number behind each plus sign, from the bottom up: 32 from conv_in and 32 from the layer at full size; 32 from the first halving and 64 from the layer at half size; 64 from the second halving and 128 from the layer at a quarter. A halving keeps its channels; it is the next layer that widens.
#
# </details>

# %% exercise 05.1
# Write the list of what is kept on the way down.

# %% exercise 05.2
# Write the channels that go into each layer on the way up.

# %% id=bookkeeping-check
from ddpm_from_scratch.course.exercises.l05 import channels_on_the_way_up as enter_up
from ddpm_from_scratch.course.exercises.l05 import resnet_parameters as count_resnet
from ddpm_from_scratch.course.exercises.l05 import skip_channels as kept_down

for name, network in (("digits", unet), ("fashion", larger)):
    widths, n = list(network.config.block_out_channels), network.config.layers_per_block
    skips = kept_down(widths, n)
    planned = enter_up(widths, n, skips)
    built = [r.conv1.in_channels for block in network.up_blocks for r in block.resnets]
    print(f"{name}: skips {skips}\n    into the way up {planned}\n    built           {built}")
    assert planned == built

# %% [markdown] id=forward
# ## The forward pass
#
# All of it, with $S$ the stack of kept maps:
#
# $$
# \begin{aligned}
# &\text{temb} = \operatorname{MLP}(e(t)), \qquad h = \operatorname{conv}_{\text{in}}(x_t), \qquad S = [h] \\
# &\text{for each down block:} \\
# &\qquad (h, \text{made}) = \operatorname{down}_l(h, \text{temb}), \qquad S \leftarrow S + \text{made} \\
# &h = \operatorname{mid}(h, \text{temb}) \\
# &\text{for each up block:} \\
# &\qquad h = \operatorname{up}_l(h,\ \text{the last } n+1 \text{ of } S,\ \text{temb}), \quad \text{which leave } S \\
# &\varepsilon_\theta(x_t, t) = \operatorname{conv}_{\text{out}}(\operatorname{SiLU}(\operatorname{norm}(h)))
# \end{aligned} \tag{B}
# $$

# %% exercise 05.3
# Write (B). The parts are handed to you; their calls are in the docstring. This is the forward pass of `models.unet.UNet2DModel`.

# %% id=trace
names = [
    "conv_in",
    "down_blocks.0",
    "down_blocks.1",
    "down_blocks.2",
    "mid_block",
    "up_blocks.0",
    "up_blocks.1",
    "up_blocks.2",
    "conv_out",
]
modules = dict(larger.named_modules())


def report(name):
    def hook(module, inputs, output):
        h, made = output if isinstance(output, tuple) else (output, ())
        took = [tuple(s.shape[1:]) for s in inputs[1]] if name.startswith("up") else []
        words = f"   keeps {[tuple(s.shape[1:]) for s in made]}" * bool(
            made
        ) + f"   uses {took}" * bool(took)
        print(f"{name:<14} {tuple(inputs[0].shape)!s:<18} → {tuple(h.shape)!s:<18}{words}")

    return hook


hooks = [modules[name].register_forward_hook(report(name)) for name in names]
with torch.no_grad():
    larger(torch.zeros(2, 1, 28, 28), torch.tensor([10, 500]))
for hook in hooks:
    hook.remove()

# %% [markdown] id=forward-check-text
# And against the package, with the parts of the trained network and a different time for every image. (`conv_in` is also kept, although the printed trace does not say so.)

# %% id=forward-check
from ddpm_from_scratch.course.exercises.l05 import unet_forward as finished

x, times = (
    torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)),
    torch.tensor([0, 90, 450, 999]),
)
with torch.no_grad():
    by_parts = finished(larger, x, sinusoidal_embedding(times, 32, flip_sin_to_cos=True))
    whole = larger(x, times).sample
print(
    f"equation (B) from the parts, against the package: {(by_parts - whole).abs().max():.0e}"
)
assert torch.allclose(by_parts, whole, atol=1e-5)

# %% [markdown] id=counting
# ## Counting parameters
#
# A $k \times k$ convolution from $a$ to $b$ channels has one weight for each pair of channels and each place in the kernel, and one bias per output channel; a linear layer is the same with $k = 1$; a norm over $c$ channels has a scale and a shift each; attention is a norm and four linear layers:
#
# $$
# \begin{aligned}
# \#\operatorname{conv} &= k^2 a b + b, & \#\operatorname{linear} &= ab + b, \\
# \#\operatorname{norm} &= 2c, & \#\operatorname{attention} &= 2c + 4(c^2 + c)
# \end{aligned} \tag{C}
# $$

# %% exercise 05.4
# Count a ResNet block.

# %% [markdown] id=count-predict
# > **Predict before you run.** In the network for clothes, which of these holds the most parameters: the way down, the middle, the way up? And which takes the most *multiplications*?

# %% id=count-figure
work = {}


def operations(module, inputs, output):
    """Multiplications in a convolution or linear layer for one image; others are few beside them."""
    per_output = module.weight[0].numel()
    places = (
        output[0].numel() // output.shape[-1]
        if isinstance(module, nn.Linear)
        else output[0, 0].numel()
    )
    outputs = output.shape[-1] if isinstance(module, nn.Linear) else output.shape[1]
    work[module] = per_output * places * outputs


groups = {
    "conv_in": [larger.conv_in],
    "time": [larger.time_embedding],
    **{f"down {i}": [block] for i, block in enumerate(larger.down_blocks)},
    "middle": [larger.mid_block],
    **{f"up {i}": [block] for i, block in enumerate(larger.up_blocks)},
    "out": [larger.conv_norm_out, larger.conv_out],
}
layers = [m for m in larger.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
hooks = [layer.register_forward_hook(operations) for layer in layers]
with torch.no_grad():
    larger(torch.zeros(1, 1, 28, 28), 0)
for hook in hooks:
    hook.remove()
parameters = {
    name: sum(p.numel() for part in parts for p in part.parameters())
    for name, parts in groups.items()
}
products = {
    name: sum(work.get(m, 0) for part in parts for m in part.modules())
    for name, parts in groups.items()
}
print(f"{'':<8} {'parameters':>11}  {'multiplications per image':>25}")
for name in groups:
    print(f"{name:<8} {parameters[name]:>11,}  {products[name]:>25,}")
print(f"{'all':<8} {sum(parameters.values()):>11,}  {sum(products.values()):>25,}")
for way in ("down", "middle", "up"):
    shares = [
        sum(count for name, count in counts.items() if name.startswith(way)) / sum(counts.values())
        for counts in (parameters, products)
    ]
    print(f"{way:<8} {shares[0]:>11.0%}  {shares[1]:>25.0%}")
assert sum(parameters.values()) == larger.num_parameters()
with plots.figure(
    columns=2,
    height=3.0,
    sharey=True,
    alt="Two bar charts over the blocks. "
    + "; ".join(
        f"{title}: " + ", ".join(f"{name} {100 * count / sum(counts.values()):.0f} %" for name, count in counts.items())
        for title, counts in (("left, parameters", parameters), ("right, multiplications", products))
    ),
    caption="Where the parameters are (left) and where the work is (right), as shares of the whole.",
) as axes:
    for ax, counts, title, colour in zip(
        axes,
        (parameters, products),
        ("parameters", "multiplications"),
        (plots.BLUE, plots.ORANGE),
        strict=True,
    ):
        shares = [100 * count / sum(counts.values()) for count in counts.values()]
        ax.barh(range(len(shares)), shares, color=colour)
        ax.set(
            title=title,
            yticks=range(len(shares)),
            yticklabels=list(counts),
            xlabel="share in %",
        )
    axes[0].invert_yaxis()

# %% [markdown] id=count-answer
# <details><summary>Answer</summary>
#
# The way up, in both: it has one layer more per resolution, its layers take the skips in as well, and the convolution behind a doubling runs at the doubled size, on four times the pixels; three quarters of all are made there. Parameters go with the *square of the channels*, so they sit at the bottom of the U. Work goes with channels squared *times pixels*: each halving of the size divides the pixels by four while doubling the channels multiplies by four.
# So on the way down each resolution costs nearly the same, and on the way up the largest cost is less than one and a half times the smallest, a difference that those convolutions make.
#
# </details>
#
# ### The published network
#
# Ho et al. state 35.7 million parameters for their CIFAR-10 network. Can we count that without building it? Its configuration: $c = (128, 256, 256, 256)$, two layers per resolution, attention at 16×16 (the second resolution) and in the middle, three colours, temb of length 512.

# %% id=published
widths, n, temb, attends = [128, 256, 256, 256], 2, 512, 1


def conv(k, a, b):
    return k * k * a * b + b


def attention(c):
    return 2 * c + 4 * (c * c + c)


total = conv(3, 3, 128) + (128 * temb + temb) + (temb * temb + temb)  # in, and the time
for i, c in enumerate(widths):  # down
    from_above = widths[max(i - 1, 0)]
    total += count_resnet(from_above, c, temb) + (n - 1) * count_resnet(c, c, temb)
    total += n * attention(c) * (i == attends) + conv(3, c, c) * (i < len(widths) - 1)
total += 2 * count_resnet(256, 256, temb) + attention(256)  # middle
entering = enter_up(widths, n, kept_down(widths, n))
for i, c in reversed(list(enumerate(widths))):  # up
    taken, entering = entering[: n + 1], entering[n + 1 :]
    total += sum(count_resnet(a, c, temb) for a in taken)
    total += (n + 1) * attention(c) * (i == attends) + conv(3, c, c) * (i > 0)
total += 2 * 128 + conv(3, 128, 3)  # out
print(
    f"counted on paper: {total:,}; google/ddpm-cifar10-32 has 35,746,307 and the paper says 35.7 million"
)
assert total == 35_746_307

# %% [markdown] id=diffusers
# ## The same network in Diffusers
#
# The classes have the same arguments and the same parameter names, so the weights of one fit into the other. In float64 nothing but the order of additions may differ. The comparison needs Diffusers, which the course does not; where it is missing, the cell says so.

# %% id=diffusers-check
try:
    from diffusers import UNet2DModel as TheirUNet
except ImportError:
    TheirUNet = None
    print(
        "Diffusers is not installed here, so there is nothing to compare with. The solved notebook shows the result."
    )

if TheirUNet is not None:
    settings = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    theirs = TheirUNet(**settings).double().eval()
    print(theirs.load_state_dict(unet.state_dict(), strict=True))
    ours = UNet2DModel(**settings).double().eval()
    ours.load_state_dict(unet.state_dict())
    x, times = (
        torch.randn(
            3, 1, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64
        ),
        torch.tensor([3, 420, 999]),
    )
    outputs, gradients = [], []
    for network in (ours, theirs):
        output = network(x, times).sample
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append(
            torch.cat([p.grad.flatten() for _, p in sorted(network.named_parameters())])
        )
    print(f"{len(ours.state_dict())} tensors of the same names and shapes")
    print(
        f"outputs differ by {(outputs[0] - outputs[1]).abs().max():.0e}, of {outputs[0].abs().max():.1f}"
    )
    print(
        f"gradients differ by {(gradients[0] - gradients[1]).abs().max():.0e}, of {gradients[0].abs().max():.1f}"
    )
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-10)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-8, atol=1e-8)

# %% [markdown] id=inside
# ## Look inside
#
# Choose a block, and move $t$. The text below the picture says where its maps go. Two things to look for: how much of the single noisy pixels is left in the maps near the middle, at small and at large $t$; and how the last map, `conv_out`, which is the predicted noise, relates to the input.

# %% id=tracer
widgets.unet_tracer(unet, digits[3], noise[:1], alpha_bar)

# %% [markdown] id=tracer-answer
# <details><summary>Answer</summary>
#
# In the middle the maps are coarse: single noisy pixels are not to be seen there, at no $t$, though the maps change with the noise, least at small $t$. `conv_out` has nearly nothing of $x_t$ at $t = 10$, where $x_t$ is nearly all image; from about $t = 700$ on it is nearly $x_t$ itself.
#
# </details>

# %% [markdown] id=clinic
# ## Bug clinic
#
# Somebody has written a U-Net of their own and loaded the trained weights of `digits` into it. Names and shapes fit, no error is raised. The same has happened four times, with one bug each. Here are the four patients beside the healthy network: the error of the predicted noise over $t$, and samples from the same noise.
# (Each step back is a draw from the posterior with $\hat x_0$ in place of $x_0$, as in lesson 03.)

# %% id=clinic-log
from ddpm_from_scratch.course.exercises.l05 import patient  # do not look inside yet

patients = {"healthy": "", "A": "A", "B": "B", "C": "C", "D": "D"}
steps = torch.tensor([10, 60, 150, 300, 500, 750, 999])
some, eps = (
    digits[100:112],
    torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(3)),
)
errors = {name: [] for name in patients}
with torch.no_grad():
    for name, bug in patients.items():
        for t in steps.tolist():
            x_t = gaussian.q_sample(some, eps, float(alpha_bar[t]))
            said = patient(unet, x_t, torch.full((len(x_t),), t), bug)
            errors[name].append(float((said - eps).square().mean()))
print("mean squared error at t = " + "".join(f"{t:>8}" for t in steps.tolist()))
for name, row in errors.items():
    print(f"{name:<26}" + "".join(f"{value:>8.4f}" for value in row))
plots.curves(
    steps,
    {name: torch.tensor(row) for name, row in errors.items()},
    "timestep t",
    "mean squared error",
    yscale="log",
    alt="Five curves over t on a logarithmic axis. Mean squared error at t = 10, 500 and 999: "
    + "; ".join(f"{name} {row[0]:.4f}, {row[4]:.4f}, {row[6]:.4f}" for name, row in errors.items()),
    caption="Error of the predicted noise. Each bug has its own handwriting.",
)

# %% id=clinic-samples


@torch.no_grad()
def sample(bug, count=5, stride=60):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(count, 1, 16, 16, generator=generator)
    visited = [*range(999, -1, -stride), -1]
    for t, t_prev in zip(visited, visited[1:], strict=False):
        a, p = float(alpha_bar[t]), float(alpha_bar[t_prev]) if t_prev >= 0 else 1.0
        said = patient(unet, x, torch.full((count,), t), bug)
        x0 = gaussian.x0_from_eps(x, said, a).clamp(-1, 1)
        fresh = torch.randn(x.shape, generator=generator)
        x = (
            gaussian.posterior_mean(x, x0, a, p)
            + gaussian.posterior_variance(a, p) ** 0.5 * fresh
        )
    return x


plots.image_grid(
    torch.cat([sample(bug) for bug in patients.values()]),
    5,
    row_labels=list(patients),
    alt="Five rows of five samples. The healthy network draws digits, and so does patient B. A and D "
    "end in grey noise, with the strokes of a digit faintly in it, C in a hard black and white pattern.",
    caption="Samples of the five, from the same noise. One of the patients looks well.",
)

# %% [markdown] id=clinic-questions
# Which bug belongs to which patient?
#
# 1. The blocks are told $t = 500$, whatever $t$ is.
# 2. Each skip is put in front of what comes from below, not behind it.
# 3. Within the finest resolution, the skips are used in the order in which they were made.
# 4. The embedding has its sines first, where the weights expect the cosines.
#
# And: which of the four would not matter if one *trained* with it from the beginning?
#
# <details><summary>A pointer</summary>
#
# The first one must be harmless at one value of $t$. The second scrambles the input of every layer on the way up, the third only that of two.
#
# </details>

# %% exercise 05.5
# Two of the four in one function, the layers of one resolution. Mend both.

# %% id=clinic-fixed
from ddpm_from_scratch.course.exercises.l05 import up_resolution as mended

block, made = unet.up_blocks[1], []
hook = block.register_forward_hook(
    lambda module, inputs, output: made.append((inputs, output))
)
with torch.no_grad():
    unet(x_t, 999)
    ((h, skips, temb), expected) = made[0]
    result = mended(block.resnets, h, list(skips), temb)
hook.remove()
print(
    f"the mended function on the finest resolution of the trained network: off by {(result - expected).abs().max():.0e}"
)
assert torch.allclose(result, expected, atol=1e-5)

# %% [markdown] id=clinic-answers
# <details><summary>Answers</summary>
#
# A is 1: healthy at $t = 500$ and worse the further away. C is 2: an error of 1 at every $t$, no better than answering 0. B is 3: only two layers get the wrong one of two similar maps. Its samples look well, its error does not: **samples that look right prove little, a number compared with a reference does.** D is 4: the vector it is told belongs to no timestep. It errs much as if it were told one time in the middle, always, but nowhere is it as good as the healthy network; that tells it from A.
#
# Trained from the beginning, networks built like 2, 3 and 4 would do as well. They are bugs because the weights were made under another convention. The first is a bug always; still, a network trained so is not blind, since it can see from the image how noisy it is.
#
# </details>

# %% [markdown] id=wrong
# ## What could go wrong
#
# | what you see | what it is | what to do |
# |---|---|---|
# | `Sizes of tensors must match` in a concatenation | skips used in the wrong order, or a side that cannot be halved so often | last made, first used; sides divisible by $2^{L-1}$ |
# | `Expected weight to be a vector of size equal to the number of channels in input` | a skip that was not put beside the input, or one block's width taken for another's | print the table of this lesson for your network |
# | loaded weights, no error, noise | an order of channels or of sines | compare one forward pass with the reference, not samples |
# | the last layers do nothing | conv_in's output was not kept, and `zip` ended early | `zip(..., strict=True)` |
# | out of memory | large maps at full resolution, which are kept until they are used | fewer channels at the finest resolution, gradient checkpointing |
# | a small image, a refusal | $28 = 4 \cdot 7$ can be halved twice, not three times | fewer resolutions, or pad to 32 |

# %% id=wrong-refusals
for size, network in ((30, larger), (16, unet)):
    try:
        shape = network(torch.zeros(1, 1, size, size), 0).sample.shape
        print(f"{size}×{size}: {tuple(shape)}")
    except ValueError as message:
        print(f"{size}×{size}: {message}")

# %% [markdown] id=summary
# ## Summary
#
# - A U-Net goes down to coarse maps that see the whole image, and up again, and carries every map of the way down across as further channels.
# - $L(n+1)$ skips are made and used, last in, first out; channels add where they meet.
# - The coarse path knows what is in the picture; without the skips at full resolution the network cannot say which noise it was.
# - Parameters sit where maps are coarse and wide. The work is spread much more evenly over the resolutions, since large maps are narrow; three quarters of it are on the way up.
# - The same configuration and weights give the same numbers in Diffusers.
# - Many mistakes in such a network raise no error. Compare numbers with a reference.
#
# Your functions are now `ddpm_from_scratch.models.unet`. **Next:** lesson 06 trains it.

# %% id=progress
progress("05")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 05}}
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: appendix B (the network and its size).
# - O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation* (2015), arXiv 1505.04597: the shape and the skips.
# - T. Salimans, A. Karpathy, X. Chen, D. Kingma, *PixelCNN++* (2017), arXiv 1701.05517: the backbone that Ho et al. started from.
# - P. Dhariwal, A. Nichol, *Diffusion Models Beat GANs on Image Synthesis* (2021), arXiv 2105.05233, section 3: what changing the number of heads, the resolutions with attention and the depth does.
