# %% [markdown] id=title
# # 04 · U-Net blocks
#
# **Which pieces is such a network made of?** About 60 minutes, half of them for six exercises.
#
# Lesson 03 ended with a small network for points in the plane. Images need another one. It must put out as many numbers as it takes in, know the time, look at single
# pixels and at the whole picture, and be trainable although it is deep. Five kinds of pieces do that. This lesson builds them one by one; the next one puts them together.
#
# **You will build** the pieces of `ddpm_from_scratch.models`: `embeddings.sinusoidal_embedding`, `resnet.ResnetBlock2D`, the attention of `models.attention`, and the two layers that change the size.
#
# **Afterwards you can**
#
# - turn a timestep into a vector, and say why its sines have the frequencies they have;
# - compute a group norm by hand, and say what it keeps and what it throws away;
# - write a ResNet block, and say where the time enters and why it is not lost there;
# - write attention over pixels, and say what it costs;
# - compute how far a network sees, and measure it.

# %% [markdown] id=notation
# ## Notation
#
# New symbols of this lesson.
#
# {{notation 04}}
#
# A *map* is what a layer puts out for one image: $C$ channels of $H \times W$ pixels. A batch of maps has shape $(B, C, H, W)$. *Vaswani* is Vaswani et al. 2017. Letters in brackets, like (A),
# number equations of this lesson.

# %% id=setup
# Run this cell first, and again after every restart of the kernel.
import math

import torch
from torch import Tensor, nn

from ddpm_from_scratch import UNet2DModel, gaussian, schedules, shipped_model
from ddpm_from_scratch.course import check, hint, plots, progress, setup, solution
from ddpm_from_scratch.data import load_dataset
from ddpm_from_scratch.models import embeddings
from ddpm_from_scratch.models.attention import Attention
from ddpm_from_scratch.models.embeddings import TimestepEmbedding
from ddpm_from_scratch.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

setup("04")
torch.set_num_threads(1)  # the maps here are small: a second thread would only wait

alpha_bar = schedules.alpha_bars(schedules.linear(T=1000))
digits = load_dataset("digits").resized(16).images()  # (N, 1, 16, 16), in [-1, 1]
unet = UNet2DModel.from_pretrained(shipped_model("digits"), subfolder="unet").eval()

# %% [markdown] id=needs
# ## What the network must do
#
# The function to learn is $\varepsilon_\theta(x_t, t)$: an image and a number go in, an image of the same shape comes out. First an experiment with a trained network that comes with the course. It gets
# one noisy image, made at $t = 300$, and is told three different times.
#
# > **Predict before you run.** The image is the same in all three cases. Will the clean image that the network sees in it ($\hat x_0$, Ho eq. 15, always with the true $\bar\alpha_{300}$) be the same, too? In which ones will noise be left, in which one will part of the digit be gone?

# %% id=hero
chosen = digits[[3, 14, 8, 25]]
noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
x_t = gaussian.q_sample(chosen, noise, float(alpha_bar[300]))
rows = [chosen, x_t]
for told in (60, 300, 800):
    with torch.no_grad():
        eps = unet(x_t, told).sample
    rows.append(gaussian.x0_from_eps(x_t, eps, float(alpha_bar[300])))
    error = float((eps - noise).square().mean())
    share = float((eps * noise).sum() / noise.square().sum())
    print(
        f"told t = {told:>3}: mean squared error of the predicted noise {error:.3f}; "
        f"the true noise is in it {share:.2f} times"
    )
plots.image_grid(
    torch.cat(rows),
    4,
    row_labels=["$x_0$", "$x_t$, t = 300", "told 60", "told 300", "told 800"],
    width=4.6,
    alt="Five rows of four digits: clean, noisy, and three estimates of the clean image; "
    + "; ".join(
        f"told t = {told}, off by {(row - chosen).square().mean().sqrt():.2f} (root mean square), "
        f"standard deviation {row.std():.2f}"
        for told, row in zip((60, 300, 800), rows[2:], strict=True)
    ),
    caption="Four digits, each made noisy once, and what the network sees in them when it is told three times.",
)

# %% [markdown] id=needs-answer
# <details><summary>Answer</summary>
#
# No: the network trusts the number it is given. Told a time that is too early, it expects weak noise and takes what it sees for a multiple of that: it predicts more noise than there is. Once that is taken off, the noise is still there, with its sign reversed. Told one that is too late, it takes nearly all it sees for noise, and what it leaves is a faint copy of $x_t$, digit and noise together. So noise is left in both, and part of the digit is gone in the second.
#
# </details>
#
# So the network needs:
#
# 1. **the time**, in a form that layers can use: a *sinusoidal embedding*;
# 2. **depth that can be trained**: *ResNet blocks* with *group norm*, into which the time goes;
# 3. **a wide view**: *resampling*, so that a few layers reach far, and *attention*, which reaches everywhere.

# %% [markdown] id=time
# ## Telling the network the time
#
# The number $t$ itself is a poor input: between 0 and 999 it is far outside the range of everything else; divided by 1000, $t = 3$ and $t = 4$ can hardly be told apart. Clocks have solved this problem: one hand turns fast and tells close moments apart, another turns slowly and tells which hour it is. A hand is a point on a circle, and a point on a circle is a
# sine and a cosine. With $d/2$ hands, from fast to slow (Vaswani section 3.5; Ho appendix B uses it for $t$):
#
# $$
# \begin{aligned}
# e(t) &= \big(\sin \omega_0 t,\ \dots,\ \sin \omega_{d/2-1} t,\ \cos \omega_0 t,\ \dots,\ \cos \omega_{d/2-1} t\big) \\
# \omega_i &= 10000^{-i/(d/2)}
# \end{aligned} \tag{A}
# $$
#
# The fastest hand turns by one radian per step, and each next one is slower by the same *factor*. So all time scales, from one step to beyond the whole chain, get equally many hands.
#
# **Why sines and cosines?** How alike two such vectors are depends on the distance of their times alone. Multiply out, and use $\cos a \cos b + \sin a \sin b = \cos(a-b)$:
#
# $$
# \begin{aligned}
# e(t) \cdot e(t+k) &= \sum_i \big(\sin \omega_i t \sin \omega_i (t+k) + \cos \omega_i t \cos \omega_i (t+k)\big) \\
# &= \sum_i \cos \omega_i k
# \end{aligned} \tag{B}
# $$
#
# <details><summary>Going deeper (not needed later)</summary>
#
# *A step in time is a rotation.* For each hand, by the addition theorems,
#
# $$\begin{pmatrix} \sin \omega (t+k) \\ \cos \omega (t+k) \end{pmatrix} = \begin{pmatrix} \cos \omega k & \sin \omega k \\ -\sin \omega k & \cos \omega k \end{pmatrix} \begin{pmatrix} \sin \omega t \\ \cos \omega t \end{pmatrix},$$
#
# a matrix without $t$ in it. A linear layer can therefore compute "ten steps later", for all $t$ at once.
#
# </details>

# %% id=claims
d, k = 32, 10
timesteps = torch.arange(1000, dtype=torch.float64)


def e(t):
    """Equation (A), by the finished function, in float32; shape (N, d)."""
    return embeddings.sinusoidal_embedding(t, d).double()


frequencies = e(torch.ones(1))[0, : d // 2].asin()  # at t = 1 the angles are the ω_i themselves
products = (e(timesteps) * e(timesteps + k)).sum(dim=1)
claimed = (k * frequencies).cos().sum()
print(f"e(t)·e(t+{k}) over all t: from {products.min():.3f} to {products.max():.3f}, (B) says {claimed:.3f}")
assert torch.allclose(products, claimed.expand(1000), rtol=0, atol=1e-3)  # float32: an angle of 999 is off by 6e-5

# going deeper: the rotation, all sines and cosines at once
c, s = (k * frequencies).cos(), (k * frequencies).sin()
sines, cosines = e(timesteps).chunk(2, dim=1)
moved = torch.cat([c * sines + s * cosines, c * cosines - s * sines], dim=1)
assert torch.allclose(moved, e(timesteps + k), rtol=0, atol=1e-3)

# %% id=embedding-figure
with plots.figure(
    columns=2,
    height=3.1,
    width_ratios=(1.2, 1),
    alt="Left, a table of colours, 32 columns by 1000 timesteps: the first columns of each "
    "half change at every step, the last ones hardly at all. Right, the product of two "
    "embeddings against the distance of their times: a peak of 16 at distance 0 that falls "
    "off to both sides, with wiggles.",
    caption="Left, the embedding of every t (purple 1, white 0, brown -1): fast hands tell neighbours apart, slow ones "
    "tell early from late. Right, equation (B): near times have like vectors.",
) as (left, right):
    left.imshow(
        e(timesteps)[::2],
        cmap="PuOr",
        vmin=-1,
        vmax=1,
        aspect="auto",
        extent=(0, d, 1000, 0),
        interpolation="nearest",
    )
    left.axvline(d / 2, color=plots.INK, linewidth=1)
    left.grid(False)
    left.set(xlabel="element: 16 sines, then 16 cosines", ylabel="timestep t")
    distance = torch.arange(-400, 401, dtype=torch.float64)
    right.plot(distance, (distance[:, None] * frequencies).cos().sum(dim=1))
    right.set(xlabel="distance k", title=r"$e(t) \cdot e(t+k)$")

# %% [markdown] id=time-options
# **Two switches** of Diffusers, and so of this package, change nothing that matters for training, and everything for weights that were trained with the other setting:
#
# - `flip_sin_to_cos=True` puts the cosines first. It is the default of the model; `google/ddpm-*` were trained with `False`.
# - `freq_shift=1` divides the exponent by $d/2 - 1$ instead of $d/2$: the last frequency is then exactly $1/10000$. Ho's code does so. With 0, the last one is faster, for $d = 32$ by a factor of 1.8.

# %% exercise 04.1
# Write the embedding with both switches. This is what `models.embeddings.sinusoidal_embedding` becomes. `10000 ** tensor` works as it stands.

# %% id=embedding-check
ours = embeddings.sinusoidal_embedding(timesteps.long(), d)
worst = 0.0
for i, frequency in ((0, 1.0), (4, 0.1), (8, 0.01), (12, 0.001)):  # every fourth hand is 10 times slower
    for column, exact in ((i, (frequency * timesteps).sin()), (d // 2 + i, (frequency * timesteps).cos())):
        worst = max(worst, float((ours[:, column] - exact).abs().max()))
print(f"4 of {d // 2} hands, the package (float32) against equation (A) in float64: {worst:.1e}")
assert worst < 1e-4  # an angle of 999 has an error of 6e-5 in float32

# %% [markdown] id=time-mlp
# The network does not use $e(t)$ as it is: two linear layers with an activation between them, `TimestepEmbedding`, turn it into a longer vector, called `temb`. It is computed once per forward pass, and every block gets the same one. The
# activation, here and everywhere in this network, is $\operatorname{SiLU}(x) = x\,\sigma(x)$ with $\sigma(x) = 1/(1 + e^{-x})$: a ReLU with a rounded corner.

# %% id=temb
with torch.no_grad():
    sines = embeddings.sinusoidal_embedding(
        torch.tensor([0, 300, 999]), 32, flip_sin_to_cos=True
    )
    temb = unet.time_embedding(sines)
print(f"{tuple(sines.shape)} → {tuple(temb.shape)}")

# %% [markdown] id=norm
# ## Group norm
#
# A deep network is trainable only if the numbers in it stay of one size. In a diffusion network something special makes that hard: one batch holds images of all noise levels. So the usual remedy, batch norm, is wrong here. It takes mean and variance
# over the batch, and so the result for one image would depend on how noisy its neighbours are.
#
# *Group norm* (Wu and He 2018) works within one image. The $C$ channels are cut into $G$ groups of neighbours. For each image and group $g$, take all values of its channels and pixels, $n = \frac{C}{G} H W$ of them:
#
# $$
# \begin{aligned}
# \mu_g &= \frac1n \sum x, \qquad \sigma_g^2 = \frac1n \sum (x - \mu_g)^2 \\
# \operatorname{norm}(x)_c &= \gamma_c\, \frac{x_c - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta_c
# \end{aligned} \tag{C}
# $$
#
# $\gamma_c$ and $\beta_c$ are learned, one pair per channel. $\epsilon$ is a small number that keeps a constant map from being divided by 0 (no relation to the noise $\varepsilon$, as this $\beta_c$ has nothing to do with the schedule).
#
# > **Predict before you run.** Below, one map of random numbers stands beside quieter and beside louder ones. By how much do its numbers change with batch norm: hundredths, tenths, or more than 1? And: multiply a map by 10, then norm it. What is left of the factor?

# %% id=norms
generator = torch.Generator().manual_seed(1)
one = torch.randn(1, 8, 6, 6, generator=generator)
others = torch.randn(7, 8, 6, 6, generator=generator)
batch_norm, norm = nn.BatchNorm2d(8), nn.GroupNorm(2, 8)
apart = {}
with torch.no_grad():
    for label, layer in (("batch norm", batch_norm), ("group norm", norm)):
        quiet, loud = (layer(torch.cat([one, size * others]))[0] for size in (0.1, 5.0))
        scaled = layer(10 * torch.cat([one, others]) + 3) - layer(torch.cat([one, others]))
        apart[label] = (quiet - loud).abs().max(), scaled.abs().max()
        print(
            f"{label}: beside quiet or loud maps, it differs by {apart[label][0]:.4f}; "
            f"10 x + 3 instead of x: {apart[label][1]:.4f}"
        )

# %% id=norm-figure
conv_in, first_norm = unet.conv_in, unet.down_blocks[0].resnets[0].norm1
times = torch.arange(0, 1000, 37)
some = digits[:64]
eps = torch.randn(some.shape, generator=torch.Generator().manual_seed(2))
spread = {"$x_t$ itself": [], "conv_in": [], "first norm": []}
with torch.no_grad():
    for t in times.tolist():
        x_t = gaussian.q_sample(some, eps, float(alpha_bar[t]))
        maps = conv_in(x_t)
        for name, value in zip(spread, (x_t, maps, first_norm(maps)), strict=True):
            spread[name].append(value.std(dim=(1, 2, 3)).mean())
plots.curves(
    times,
    {name: torch.stack(values) for name, values in spread.items()},
    "timestep t",
    "standard deviation in one image",
    alt="Three curves over t: the spread of the pixels, of the first convolution's output, "
    "and of the first norm's output. The last one is the flattest.",
    caption="What comes in changes with t; behind the first norm the numbers have one size "
    "at every noise level.",
)

# %% [markdown] id=norm-answer
# <details><summary>Answer</summary>
#
# With batch norm the numbers change with the company, and by more than 1. Group norm's do not change at all. Of the factor 10 and the shift 3 *nothing* is left, with either norm: a norm throws away size and mean. Keep that in mind for the
# next section.
#
# </details>

# %% exercise 04.2
# Write equation (C). PyTorch's own is `nn.functional.group_norm`; here you take it apart.

# %% [markdown] id=resnet
# ## The ResNet block
#
# Most of the network's weights are in one kind of block (Ho appendix B). It takes a map $x$ and the time, and gives a map:
#
# $$
# \begin{aligned}
# h_1 &= \operatorname{conv}_1\big(\operatorname{SiLU}(\operatorname{norm}_1(x))\big) \\
# h_2 &= h_1 + W \operatorname{SiLU}(\text{temb}) + b \\
# h_3 &= \operatorname{conv}_2\big(\operatorname{SiLU}(\operatorname{norm}_2(h_2))\big) \\
# \text{out} &= \operatorname{shortcut}(x) + h_3
# \end{aligned} \tag{D}
# $$
#
# The second line adds one number per channel, the same at every pixel. Both convolutions are 3×3 with one pixel of padding, so $H$ and $W$ stay. The shortcut is $x$ itself, or a 1×1 convolution where the number of channels changes.
#
# **Why the shortcut?** Differentiate: $\partial\,\text{out}/\partial x = I + \partial h_3/\partial x$. Multiply 24 such factors, and the product still contains $I$: whatever the blocks do, the map goes upwards and the gradient downwards with a part that is left as it is. Below, 24 blocks at random: how much of the input is still in the map
# behind each block, and how much of the last gradient in the gradient at each block, measured as the cosine of the angle between the two (1: the same direction, 0: nothing in common).

# %% id=shortcut
assert apart["group norm"][0] < 1e-6 and all(scaled < 1e-3 for _, scaled in apart.values())  # of the two norms above
depth = 24
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(4)
    blocks = [ResnetBlock2D(16, 16, temb_channels=8, groups=2) for _ in range(depth)]
x0 = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(4))
time = torch.zeros(1, 8)
wanted = torch.randn(x0.shape, generator=torch.Generator().manual_seed(5))


def alike(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


content, gradient = {}, {}
for label in ("with shortcut", "without"):
    h = x0.clone().requires_grad_(True)
    maps = [h]
    for block in blocks:
        h = block(h, time) - (0 if label == "with shortcut" else h)
        maps.append(h)
    slopes = torch.autograd.grad((h * wanted).sum(), maps)
    content[label] = torch.tensor([alike(x0, m.detach()) for m in maps])
    gradient[label] = torch.tensor([alike(slopes[-1], g) for g in slopes])
    print(
        f"{label:<13}: gradients at block {depth} and at the input alike {gradient[label][0]:+.2f}"
    )
with plots.figure(
    columns=2,
    height=3.0,
    sharey=True,
    alt="Two panels over 24 blocks. Left: with the shortcut the map stays much like the input, "
    "falling slowly from 1; without it the likeness is near 0 after one block. Right, the "
    "same for the gradient, from the last block back to the input.",
    caption="What is left of the input on the way up (left) and of the gradient on the way "
    "down (right).",
) as (left, right):
    blocks_passed = torch.arange(depth + 1)
    plots.draw_curves(
        left, blocks_passed, content, "after how many blocks", "cosine with the input"
    )
    plots.draw_curves(
        right, blocks_passed, gradient, "at which block", "cosine with the last gradient"
    )

# %% [markdown] id=shortcut-note
# Each block adds a correction to what is there, so a signal for training reaches the first block with part of it unchanged by the 23 others. Without a shortcut it arrives turned by all of them.

# %% [markdown] id=time-lost
# ### Is the time lost?
#
# The time shifts every channel by a constant, and the very next layer is a norm, which throws means away.
#
# > **Predict before you run.** Does $\operatorname{norm}_2$ remove the time again? Does it matter how many channels share a group? Three blocks below differ in nothing but the number of groups: 1, 4, and 16, which is one channel per group.

# %% id=time-lost-check
x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(5))
early, late = unet.time_embedding(sines)[[0, 2]].detach()
changes = {}
for groups in (1, 4, 16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        block = ResnetBlock2D(16, 16, temb_channels=128, groups=groups)
    with torch.no_grad():
        changes[groups] = (block(x, early[None]) - block(x, late[None])).abs().max()
    print(
        f"{groups:>2} groups of {16 // groups:>2} channels: t = 0 and t = 999 differ by at most {changes[groups]:.1e}"
    )

# %% [markdown] id=time-lost-answer
# <details><summary>Answer</summary>
#
# With several channels in a group the norm removes only what the group has in *common*. The channels are shifted by different amounts, and these differences stay. With one channel per group nothing stays: the block is blind to the time, without any error message, and
# it trains all the same. That is a bug to remember.
#
# </details>

# %% exercise 04.3
# Complete the block (D) as a module. With these names of its layers published checkpoints fit. This is what `models.resnet.ResnetBlock2D` becomes.

# %% [markdown] id=attention
# ## Attention
#
# A convolution looks at neighbours. *Attention* lets every pixel look at every other pixel in one step. Write the map as a list of $N = HW$ pixels, a matrix $X$ of shape $(N, C)$. Three learned matrices make
# of each pixel a *query* (what do I look for?), a *key* (what do I have to offer?) and a *value* (what do I tell?): $Q = XW_Q^\top$, $K = XW_K^\top$, $V = XW_V^\top$. Then (Vaswani eq. 1)
#
# $$\operatorname{attention}(Q, K, V) = \operatorname{softmax}\!\left(\frac{QK^\top}{\sqrt d}\right) V \tag{E}$$
#
# Here $d$ is the length of a query and of a key. Row $n$ of the softmax holds the shares of attention that pixel $n$ gives to all pixels; they add up to 1, and the result is the average of the values with these shares.
#
# **Why $\sqrt d$?** If the elements of a query and a key are independent with mean 0 and variance 1, each product $q_i k_i$ has mean 0 and variance $\mathbb E[q_i^2]\,\mathbb E[k_i^2] = 1$, and the sum of $d$ of them variance $d$. Divided by $\sqrt d$ it is 1 again. Without that, the
# softmax of large numbers gives nearly everything to one pixel, and its gradient vanishes.

# %% id=root-d
assert [groups for groups, change in changes.items() if change < 1e-5] == [16]  # of the three blocks above
generator = torch.Generator().manual_seed(7)
n = 20_000
for head_dim in (4, 64, 512):
    q, k = torch.randn(2, n, head_dim, generator=generator)
    scores = (q * k).sum(dim=1)
    variance = scores.var() / head_dim
    assert abs(variance - 1) < 4 * math.sqrt((2 + 6 / head_dim) / n)  # four standard errors
    raw, scaled = (torch.softmax(scores[:64] / by, dim=0).max() for by in (1, head_dim**0.5))
    print(
        f"d = {head_dim:>3}: variance of q·k / d = {variance:.3f}; largest of 64 shares {raw:.2f}, with √d {scaled:.2f}"
    )

# %% [markdown] id=no-place
# **Two things to know about it.** It knows no places: nothing in (E) says where a pixel is, so pixels that are shuffled, attended and put back give the same. And it costs $N^2$: every pair of pixels has a score, sixteen times as many for a doubled side. So attention is used at the low resolutions only, where one
# pixel stands for a whole part of the image.

# %% id=shuffle
attention = Attention(32, head_dim=None, norm_num_groups=2)
x = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(8))
order = torch.randperm(64, generator=torch.Generator().manual_seed(9))
with torch.no_grad():
    plain = attention(x).flatten(2)
    shuffled = attention(x.flatten(2)[..., order].reshape(x.shape)).flatten(2)
put_back = shuffled[..., order.argsort()]
print(f"shuffled, attended, put back: differs by {(put_back - plain).abs().max():.0e}")
assert torch.allclose(put_back, plain, atol=1e-5)
for side in (8, 16, 32, 256):
    print(f"{side:>3}×{side:<3} pixels: {side**4:>13,} scores per head and image")

# %% exercise 04.4
# Write (E) for a map, with one head. The package's `Attention` adds what is around it: a group norm in front, several heads, an output projection, and the residual sum.

# %% [markdown] id=attention-looks
# What does attention look at in the trained network? Below, its first attention layer, at a quarter of the pixels (8×8), on a digit with a little noise. For three pixels that ask, the shares they give to all others.

# %% id=attention-figure
layer = unet.down_blocks[1].attentions[0]
seen = {}
handle = layer.register_forward_hook(
    lambda module, inputs, output: seen.update(x=inputs[0])
)
picture = gaussian.q_sample(digits[3:4], noise[:1], float(alpha_bar[60]))
with torch.no_grad():
    unet(picture, 60)
    h = layer.group_norm(seen["x"]).flatten(2).transpose(1, 2)
    q, k = (
        project(h).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for project in (layer.to_q, layer.to_k)
    )
    shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)[
        0
    ]  # (heads, N, N)
handle.remove()
asking = [(1, 4), (4, 2), (6, 6)]
print(
    f"{layer.heads} heads, shares of shape {tuple(shares.shape)}, rows add up to {shares.sum(-1).min():.4f} … {shares.sum(-1).max():.4f}"
)
with plots.figure(
    rows=2,
    columns=4,
    height=4.1,
    alt="Two rows of four panels. First column: the noisy digit with three marked pixels. "
    "Other columns: for each marked pixel a map of 8 by 8 shares, one row per head; the "
    "shares are spread unevenly over the image, often over distant places.",
    caption="Where three pixels (crosses) look, in each of the two heads: darker is more, in each map on its own scale. "
    "Not at their neighbours only: attention reaches across the image.",
) as axes:
    for head, row in enumerate(axes):
        plots.draw_images(row[0], picture, 1)
        for ax, (i, j), mark in zip(row[1:], asking, ("1", "2", "3"), strict=True):
            row[0].text(
                2 * j + 0.5,
                2 * i + 0.5,
                mark,
                color=plots.VERMILION,
                weight="bold",
                ha="center",
                va="center",
                fontsize=13,
            )
            ax.imshow(shares[head, 8 * i + j].reshape(8, 8), cmap="Blues", vmin=0)
            ax.plot(j, i, "x", color=plots.VERMILION, markersize=9, markeredgewidth=2.5)
            ax.set(xticks=[], yticks=[], title=f"pixel {mark}, head {head + 1}")
            ax.grid(False)

# %% [markdown] id=resample
# ## Half the size, double the size
#
# **Halving** is a 3×3 convolution that moves by two pixels at a time (*stride* 2). With one pixel of padding its windows begin at $-1, 1, 3, \dots$ up to at most $H - 2$, which makes
# $\lfloor (H-1)/2 \rfloor + 1$ of $H$ pixels: half of them if $H$ is even.
#
# **Doubling** is two steps: repeat each pixel in a 2×2 square (*nearest neighbour*), then a 3×3 convolution of stride 1 that smooths the squares:
#
# $$y_{i,j} = x_{\lfloor i/2 \rfloor, \lfloor j/2 \rfloor} \tag{F}$$
#
# > **Predict before you run.** There is a layer that doubles in one step, the *transposed convolution*: each pixel stamps a 3×3 patch onto the output, two pixels apart from the next one. Give it a constant image and a constant kernel. Is the output constant?

# %% id=resample-check
F = nn.functional
constant = torch.ones(1, 1, 6, 6)
kernel = torch.full((1, 1, 3, 3), 1 / 9)
stamped = F.conv_transpose2d(
    constant, 4 * kernel, stride=2, padding=1, output_padding=1
)  # 4: so that the mean is kept
repeated = F.conv2d(
    F.interpolate(constant, scale_factor=2.0, mode="nearest"), kernel, padding=1
)
inner = (..., slice(2, -2), slice(2, -2))
values = [sorted({round(float(v), 3) for v in image[inner].flatten()}) for image in (stamped, repeated)]
print(f"values inside: transposed convolution {values[0]}, nearest + convolution {values[1]}")
with plots.figure(
    6.4,
    2.6,
    columns=2,
    alt="Two squares in grey, from a constant image. Left, transposed convolution, with these values inside: "
    f"{values[0]}. Right, nearest neighbour and convolution: {values[1]}.",
    caption="A constant image, doubled in two ways.",
) as (left, right):
    for ax, image, title in (
        (left, stamped, "transposed convolution"),
        (right, repeated, "nearest + convolution"),
    ):
        ax.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1.8)
        ax.set(xticks=[], yticks=[], title=title)
        ax.grid(False)
for size in (16, 28, 7):
    out = Downsample2D(4)(torch.zeros(1, 4, size, size)).shape[-1]
    print(f"halving {size:>2} pixels: {out}")
    assert out == (size - 1) // 2 + 1

# %% [markdown] id=resample-answer
# <details><summary>Answer</summary>
#
# No. Where 3×3 stamps two pixels apart overlap, some pixels are hit once, some twice, some four times: a checkerboard, which training has to unlearn. Repeating and convolving treats all pixels alike, but for the edge.
#
# Seven pixels cannot be halved and doubled back: 7 → 4 → 8. So the sides of the images must be divisible by 2 as often as the network halves.
#
# </details>

# %% exercise 04.5
# Write (F). `Upsample2D` puts the convolution behind it.

# %% [markdown] id=field
# ## How far a pixel sees
#
# The *receptive field* of an output pixel is the square of input pixels that it can depend on. Go through the layers and keep two numbers: $r$, the width of the field so far, and $j$, the *jump*, by how many input pixels two neighbours in the current map are apart. In the beginning $r = 1$ and $j = 1$.
#
# A layer with kernel $k$ looks at $k$ neighbours. Their outermost two are $k - 1$ places apart, which is $(k-1)\,j$ input pixels, so the fields together are $(k-1)\,j$ wider than one of them. If the layer has stride $s$, neighbours in its output are $s$ places apart in its input:
#
# $$r \leftarrow r + (k-1)\,j, \qquad\text{then}\qquad j \leftarrow j\,s \tag{G}$$
#
# Without strides the field grows by two pixels per 3×3 layer. After every halving it grows twice as fast.

# %% exercise 04.6
# Write (G).

# %% [markdown] id=field-measured
# **Measured.** The gradient of one output pixel with respect to all input pixels is 0 outside the field, and not 0 inside (with all weights positive, nothing can cancel). So we can count.

# %% id=field-measure
def measured_field(layers, size=65):
    """Rows of the input on which the centre of the output depends, all weights positive."""
    convs = [nn.Conv2d(1, 1, k, stride=s, padding=k // 2, bias=False) for k, s in layers]
    for conv in convs:
        nn.init.constant_(conv.weight, 1 / conv.weight.numel())
    x = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    y = nn.Sequential(*convs).double()(x)
    (slope,) = torch.autograd.grad(y[0, 0, y.shape[-2] // 2, y.shape[-1] // 2], x)
    return int((slope[0, 0].sum(dim=1) > 0).sum())


from ddpm_from_scratch.course.exercises.l04 import receptive_field as finished_field

for layers in ([(3, 1)] * 4, [(3, 1), (3, 2)] * 2, [(3, 1), (3, 1), (3, 2)] * 3):
    computed, rows = finished_field(layers), measured_field(layers)
    print(f"strides {[s for _, s in layers]}: computed {computed}, measured {rows}")
    assert rows == computed

# %% [markdown] id=field-note
# The field says how far a network *can* see. How far does the trained one look? The same gradient of the whole network, at three noise levels, averaged over images; its $\hat x_0$ stands in for its $\varepsilon_\theta$, of which at large $t$ nearly all is just $x_t$ itself.

# %% id=field-trained
levels = (10, 250, 700)
with plots.figure(
    columns=3,
    height=3.0,
    alt="Three maps of 16 by 16 pixels: the influence of each on the estimated clean image at the centre. At t = 10 "
    "a few dark pixels on light ground, at t = 250 a wide dark region, at t = 700 a dark centre on ground that is "
    "fairly dark everywhere.",
    caption="How much the estimated clean image at the centre depends on each pixel of x_t "
    "(logarithm, relative to the largest). The more noise, the wider the network looks.",
) as axes:
    for ax, t in zip(axes, levels, strict=True):
        x_t = gaussian.q_sample(some[:32], eps[:32], float(alpha_bar[t])).requires_grad_(
            True
        )
        x0_hat = gaussian.x0_from_eps(x_t, unet(x_t, t).sample, float(alpha_bar[t]))
        (slope,) = torch.autograd.grad(x0_hat[:, 0, 8, 8].sum(), x_t)
        seen = slope.abs().mean(dim=0)[0]
        near = seen[7:10, 7:10].sum() / seen.sum()
        print(
            f"t = {t:>3}: {near:.0%} of the influence comes from the 3×3 pixels at the centre"
        )
        ax.imshow((seen / seen.max()).log10(), cmap="Blues", vmin=-3, vmax=0)
        ax.set(xticks=[], yticks=[], title=f"t = {t}")
        ax.grid(False)

# %% [markdown] id=field-trained-note
# Where there is little noise, a pixel and its neighbours tell enough. Where there is much, the network has to find out what the image shows at all.

# %% [markdown] id=shapes
# ## Shapes, traced
#
# All pieces in a row, with the shape behind each and the numbers it learns.

# %% id=shapes-check
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(12)
    pieces = {
        "conv_in": nn.Conv2d(1, 32, 3, padding=1),
        "ResNet block 32 → 32": ResnetBlock2D(32, 32, 128, groups=2),
        "halving": Downsample2D(32),
        "ResNet block 32 → 64": ResnetBlock2D(32, 64, 128, groups=2),
        "attention": Attention(64, head_dim=32, norm_num_groups=2),
        "doubling": Upsample2D(64),
        "ResNet block 64 → 32": ResnetBlock2D(64, 32, 128, groups=2),
        "conv_out": nn.Conv2d(32, 1, 3, padding=1),
    }
    embed = TimestepEmbedding(32, 128)
temb = embed(
    embeddings.sinusoidal_embedding(
        torch.tensor([7, 400, 950, 12]), 32, flip_sin_to_cos=True
    )
)
h = digits[:4]
print(
    f"{'temb':<22} {tuple(temb.shape)!s:<18} {sum(p.numel() for p in embed.parameters()):>8,} parameters"
)
print(f"{'x_t':<22} {tuple(h.shape)!s:<18}")
with torch.no_grad():
    for name, piece in pieces.items():
        h = piece(h, temb) if isinstance(piece, ResnetBlock2D) else piece(h)
        print(
            f"{name:<22} {tuple(h.shape)!s:<18} {sum(p.numel() for p in piece.parameters()):>8,} parameters"
        )
assert h.shape == digits[:4].shape

# %% [markdown] id=wrong
# ## What could go wrong
#
# | what you see | what it is | what to do |
# |---|---|---|
# | the same answer at every $t$ | one channel per group, or temb never added | compare two timesteps on one input, as above |
# | loaded weights give noise, or misshapen images | the other `flip_sin_to_cos` or `freq_shift` | take both from the checkpoint's `config.json` |
# | results depend on the batch | batch norm, or a norm over the wrong axes | one image alone must give the same as within a batch |
# | attention gives scrambled maps | `reshape` where the channel axis had to move | `flatten(2).transpose(1, 2)`, and both steps back |
# | out of memory at 64×64 and above | attention at full resolution | attention at the low resolutions only |
# | a grid of dots in the samples | transposed convolutions | nearest neighbour, then a convolution |
# | an error about sizes 8 and 7 | a side that cannot be halved so often | pad the images, or halve less often |

# %% [markdown] id=summary
# ## Summary
#
# - $t$ becomes a vector of sines and cosines whose frequencies fall geometrically: near times have like vectors.
# - Group norm keeps the numbers of one image to one size, without looking at other images. It throws size and mean of a group away.
# - A ResNet block is norm, SiLU, convolution, twice, with the time added between, and the input added at the end. The time survives the norm as long as a group has several channels.
# - Attention is an average over all pixels with learned shares. It costs $N^2$ and is used at low resolutions.
# - Strided convolutions halve, nearest neighbour and a convolution double. Halving makes the receptive field grow twice as fast.
#
# Your functions are now `ddpm_from_scratch.models`. **Next:** lesson 05 puts the pieces together.

# %% id=progress
progress("04")

# %% [markdown] id=reading
# ## Sources and further reading
#
# {{equations 04}}
#
# - A. Vaswani et al., *Attention Is All You Need* (2017), arXiv 1706.03762: eq. 1 (attention), section 3.2.1 (why $\sqrt d$), section 3.5 (sinusoids).
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models* (2020), arXiv 2006.11239: appendix B (the network: ResNet blocks, group norm, attention at 16×16, the embedding of $t$ added in each block).
# - Y. Wu, K. He, *Group Normalization* (2018), arXiv 1803.08494.
# - K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition* (2015), arXiv 1512.03385, and *Identity Mappings in Deep Residual Networks* (2016), arXiv 1603.05027: why the shortcut is left free.
# - A. Odena, V. Dumoulin, C. Olah, *Deconvolution and Checkerboard Artifacts* (2016), Distill.
# - A. Nichol, P. Dhariwal, *Improved Denoising Diffusion Probabilistic Models* (2021), arXiv 2102.09672: another way to put the time in, as scale and shift.
