"""Random configurations, and how far this package and Diffusers are apart on them.

The `compare_` functions return largest relative differences. `GROUPS` runs them on the configuration that a seed gives,
asserts the tolerances and adds to a `Tally`; the fuzzing and the report go through it. By hand:

    python tests/against_diffusers.py --report --seconds 600
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from float64_oracle import alpha_bars, ddim_step, ddpm_step
from torch import Tensor

import ddpm_from_scratch as here

diffusers.utils.logging.set_verbosity_error()


def relative(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    """Largest difference over the largest expected value."""
    a, b = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert a.shape == b.shape and a.isfinite().all() and b.isfinite().all()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


# ---------------------------------------------------------------- the U-Net


def random_unet_config(rng: random.Random) -> dict[str, Any]:
    """A small U-Net with every supported option in play."""
    levels, groups = rng.randint(1, 3), rng.choice([1, 2, 4])
    widths = [groups * rng.choice([4, 6]) for _ in range(levels)]
    conditioning = rng.choice(
        [{}, {}, {"num_class_embeds": 5}, {"class_embed_type": "timestep"}, {"class_embed_type": "identity"}]
    )
    return {
        "sample_size": rng.choice([None, 8, (8, 16)]),
        "in_channels": rng.randint(1, 3),
        "out_channels": rng.randint(1, 6),
        "center_input_sample": rng.random() < 0.3,
        "time_embedding_dim": rng.choice([None, 10]),
        "freq_shift": rng.choice([0, 1]),
        "flip_sin_to_cos": rng.random() < 0.5,
        "down_block_types": [rng.choice(["DownBlock2D", "AttnDownBlock2D"]) for _ in widths],
        "up_block_types": [rng.choice(["UpBlock2D", "AttnUpBlock2D"]) for _ in widths],
        "mid_block_type": rng.choice(["UNetMidBlock2D", "UNetMidBlock2D", None]),
        "block_out_channels": widths,
        "layers_per_block": rng.randint(1, 2),
        "mid_block_scale_factor": rng.choice([1, 2**0.5]),
        "downsample_padding": rng.choice([0, 1]),
        "dropout": rng.choice([0.0, 0.1]),
        "act_fn": rng.choice(["silu", "swish", "mish", "gelu", "relu"]),
        "attention_head_dim": rng.choice([None, 1, 3, 4]),
        "norm_num_groups": groups,
        "attn_norm_num_groups": rng.choice([None, 1, 2]),
        "norm_eps": rng.choice([1e-5, 1e-6]),
        "resnet_time_scale_shift": rng.choice(["default", "scale_shift"]),
        "add_attention": rng.random() < 0.7,
        **conditioning,
    }


def random_unet_inputs(config: dict[str, Any], rng: random.Random) -> tuple[Tensor, Any, Tensor | None]:
    """An odd batch of oblong images, timesteps in one of their forms, and labels where the model wants them."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    batch, multiple = rng.choice([1, 2, 3]), 2 ** (len(config["block_out_channels"]) - 1)
    shape = (batch, config["in_channels"], multiple * rng.randint(1, 3), multiple * rng.randint(1, 3))
    t = torch.randint(0, 1000, (batch,), generator=generator)
    timestep = rng.choice([int(t[0]), t[0], t[:1], t])
    labels: Tensor | None = None
    if "num_class_embeds" in config:
        labels = torch.randint(0, 5, (batch,), generator=generator)
    elif config.get("class_embed_type") == "timestep":
        labels = torch.randint(0, 1000, (batch,), generator=generator)
    elif config.get("class_embed_type") == "identity":
        width = config["time_embedding_dim"] or 4 * config["block_out_channels"][0]
        labels = torch.randn((batch, width), generator=generator)
    return torch.randn(shape, generator=generator), timestep, labels


def compare_unets(config: dict[str, Any], rng: random.Random, dtype: torch.dtype) -> tuple[float, float]:
    """Largest relative difference of the outputs and of the gradients, with the same weights in both."""
    torch.manual_seed(rng.getrandbits(32))
    theirs = diffusers.UNet2DModel(**config).to(dtype).eval()
    ours = here.UNet2DModel(**config).to(dtype).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    if config.get("class_embed_type") == "timestep":  # Diffusers leaves the sinusoids of labels in float32
        theirs.class_embedding.register_forward_pre_hook(lambda _, arguments: tuple(a.to(dtype) for a in arguments))
    sample, timestep, labels = random_unet_inputs(config, rng)
    sample = sample.to(dtype)
    labels = labels.to(dtype) if labels is not None and labels.is_floating_point() else labels
    outputs, gradients = [], []
    for model in (ours, theirs):
        x = sample.clone().requires_grad_()
        output = model(x, timestep, labels).sample
        (output * output.detach().cos()).sum().backward()
        outputs.append(output.detach())
        gradients.append({"input": x.grad} | {name: p.grad for name, p in model.named_parameters()})
    # float64: each gradient against itself, unless it is 0 but for rounding; float32: against the largest one
    floor = max(float(g.abs().max()) for g in gradients[1].values() if g is not None)
    floor *= 1e-4 if dtype == torch.float64 else 1
    worst = 0.0
    for name, expected in gradients[1].items():
        actual = gradients[0][name]
        assert (actual is None) == (expected is None), name
        if expected is not None:
            worst = max(worst, float((actual - expected).abs().max() / max(float(expected.abs().max()), floor)))
    return relative(outputs[0], outputs[1]), worst


# ---------------------------------------------------------------- the schedulers


def random_scheduler_config(rng: random.Random, kind: str) -> dict[str, Any]:
    """A configuration that both libraries accept and both take to follow the papers."""
    T = rng.choice([10, 50, 100, 1000])
    config: dict[str, Any] = {
        "num_train_timesteps": T,
        "beta_schedule": rng.choice(["linear", "scaled_linear", "squaredcos_cap_v2"] + ["sigmoid"] * (kind == "ddpm")),
        "beta_start": rng.choice([1e-4, 8.5e-4]),
        "beta_end": rng.choice([0.012, 0.02]),
        "prediction_type": rng.choice(["epsilon", "sample", "v_prediction"]),
        "timestep_spacing": rng.choice(["leading", "trailing", "linspace"]),
        "clip_sample": rng.random() < 0.6,
        "clip_sample_range": rng.choice([1.0, 1.5]),
        "thresholding": rng.random() < 0.2,
        "sample_max_value": rng.choice([1.0, 2.0]),
        "dynamic_thresholding_ratio": rng.choice([0.9, 0.995]),
        "steps_offset": rng.choice([0, 0, 1]),
        "rescale_betas_zero_snr": rng.random() < 0.2,
    }
    if rng.random() < 0.1:
        config["trained_betas"] = [rng.uniform(1e-4, 0.05) for _ in range(T)]
    if config["prediction_type"] == "epsilon":
        config["rescale_betas_zero_snr"] = False
    if kind == "ddim":
        return config | {"set_alpha_to_one": rng.random() < 0.7}
    return config | {"variance_type": rng.choice(["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])}


def random_step_count(config: dict[str, Any], rng: random.Random) -> int:
    """A number of steps for which both visit the same timesteps."""
    T = config["num_train_timesteps"]
    while True:
        n = rng.choice([rng.randint(1, T), rng.randint(1, min(T, 30))])
        leading_overflows = config["timestep_spacing"] == "leading" and (n - 1) * (T // n) + config["steps_offset"] >= T
        trailing_overcounts = len(np.arange(T, 0, -T / n)) != n
        if not leading_overflows and not (config["timestep_spacing"] == "trailing" and trailing_overcounts):
            return n


def schedulers(kind: str, config: dict[str, Any], steps: int) -> tuple[Any, Any]:
    """Ours and theirs, ready to sample."""
    name = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}[kind]
    ours, theirs = getattr(here, name)(**config), getattr(diffusers, name)(**config)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    return ours, theirs


def follows_the_papers(kind: str, theirs: Any, index: int) -> bool:
    """Whether Diffusers' step number `index` goes where the next one starts, and adds no noise at the end."""
    t, following = ([*theirs.timesteps.tolist(), -1])[index : index + 2]
    if kind == "ddpm":
        return following >= 0 or t == 0 or theirs.config.variance_type.startswith("fixed_small")
    return max(t - theirs.config.num_train_timesteps // theirs.num_inference_steps, -1) == following


def adds_a_trace(kind: str, theirs: Any, index: int) -> bool:
    """Whether Diffusers adds noise of variance 1e-20 in a last step that is not at t = 0."""
    return kind == "ddpm" and index == len(theirs.timesteps) - 1 and int(theirs.timesteps[index]) > 0


def with_exact_tables(theirs: Any) -> Any:
    """Diffusers' scheduler computing in float64 on the oracle's ᾱ: only its formulas remain."""
    theirs.alphas_cumprod = torch.from_numpy(alpha_bars(theirs.config))
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    if hasattr(theirs, "final_alpha_cumprod"):
        theirs.final_alpha_cumprod = theirs.one if theirs.config.set_alpha_to_one else theirs.alphas_cumprod[0]
    return theirs


def step_arguments(kind: str, rng: random.Random) -> dict[str, Any]:
    if kind == "ddpm":
        return {}
    return {"eta": rng.choice([0.0, 0.3, 1.0]), "use_clipped_model_output": rng.random() < 0.5}


def random_state(config: dict[str, Any], rng: random.Random, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An image and a network output, of unit size as in sampling."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    shape = (2, 3, 4, 4)
    doubled = (2, 6, 4, 4) if config.get("variance_type") == "learned_range" else shape
    sample = torch.randn(shape, generator=generator, dtype=torch.float64)
    output = torch.randn(doubled, generator=generator, dtype=torch.float64)
    if doubled != shape:
        output[:, 3:] = output[:, 3:].tanh()
    return sample.to(dtype), output.to(dtype)


def compare_steps(
    kind: str, config: dict[str, Any], steps: int, rng: random.Random, count: int = 4
) -> dict[str, float]:
    """Largest relative differences over some single steps from random states.

    "formulas": both in float64 on the same tables. "float32": as everyone runs them. "ours to oracle" and
    "theirs to oracle": the float32 results against the float64 oracle. "ours of what rounding allows": the third as a
    share of `rounding_of_a_step`.
    """
    ours, theirs = schedulers(kind, config, steps)
    _, exact = schedulers(kind, config, steps)
    exact = with_exact_tables(exact)
    arguments = step_arguments(kind, rng)
    names = ("formulas", "float32", "ours to oracle", "theirs to oracle", "ours of what rounding allows")
    worst = dict.fromkeys(names, 0.0)
    indices = {0, len(ours.timesteps) - 1, *(rng.randrange(len(ours.timesteps)) for _ in range(count))}
    for index in sorted(i for i in indices if follows_the_papers(kind, theirs, i)):
        t, seed = int(ours.timesteps[index]), rng.getrandbits(32)
        found = {}
        for name, scheduler, dtype in (
            ("ours", ours, torch.float32),
            ("theirs", theirs, torch.float32),
            ("ours exact", ours, torch.float64),
            ("theirs exact", exact, torch.float64),
        ):
            sample, output = random_state(config, random.Random(seed), dtype)
            generator = torch.Generator().manual_seed(seed)
            found[name] = scheduler.step(output, t, sample, generator=generator, **arguments).prev_sample
        truth = oracle_step(kind, ours, index, config, seed, arguments)
        # where 1 - ᾱ - σ² is a rounding below 0, its root is NaN there: the oracle alone judges that step
        beside = adds_a_trace(kind, theirs, index) or not found["theirs exact"].isfinite().all()
        nearly = found["ours exact"] if beside else found["theirs exact"]
        for name, pair in (
            ("formulas", (found["ours exact"], nearly)),
            ("float32", (found["ours"], found["theirs"])),
            ("ours to oracle", (found["ours"], truth)),
            ("theirs to oracle", (found["theirs"], truth)),
        ):
            broken = (
                any(end is found["theirs"] for end in pair) and not found["theirs"].isfinite().all()
            )  # float32 tables that give NaN
            worst[name] = max(worst[name], math.inf if broken else relative(*pair))
        share = relative(found["ours"], truth) / rounding_of_a_step(ours, index)
        worst["ours of what rounding allows"] = max(worst["ours of what rounding allows"], share)
    return worst


def rounding_of_a_step(scheduler: Any, index: int) -> float:
    """What float32 alone may cost a step: x̂_0 divides by √ᾱ_t and returns with √ᾱ_prev; at least 2e-6."""
    t, t_prev = ([*scheduler.timesteps.tolist(), -1])[index : index + 2]
    now, prev = float(scheduler.alphas_cumprod[t]), float(scheduler.alphas_cumprod[t_prev]) if t_prev >= 0 else 1.0
    return max(2e-6, 0.5 * torch.finfo(torch.float32).eps * (prev / now) ** 0.5) if now > 0 else 2e-6


def oracle_step(
    kind: str, scheduler: Any, index: int, config: dict[str, Any], seed: int, arguments: dict[str, Any]
) -> np.ndarray:
    """The oracle's step from the state that `seed` gives, with the noise that `seed` gives."""
    t, t_prev = ([*scheduler.timesteps.tolist(), -1])[index : index + 2]
    sample, output = (tensor.double().numpy() for tensor in random_state(config, random.Random(seed), torch.float32))
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(seed)).double().numpy()
    if kind == "ddpm":
        return ddpm_step(scheduler.config, output, t, t_prev, sample, noise)
    return ddim_step(scheduler.config, output, t, t_prev, sample, noise, **arguments)


def compare_trajectories(
    kind: str, config: dict[str, Any], steps: int, rng: random.Random
) -> tuple[float, float] | None:
    """Relative differences at the end of sampling with a smooth stand-in for the network.

    The first as everyone runs them, in float32; the second in float64 on the same tables. None where they differ.
    """
    ours, theirs = schedulers(kind, config, steps)
    if not all(follows_the_papers(kind, theirs, i) for i in range(len(ours.timesteps))):
        return None
    arguments, seed = step_arguments(kind, rng), rng.getrandbits(32)

    def end(scheduler: Any, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((2, 3, 4, 4), generator=generator, dtype=dtype)
        for t in scheduler.timesteps:
            output = stand_in(x, int(t) / config["num_train_timesteps"])
            if config.get("variance_type") == "learned_range":
                output = torch.cat([output, (3 * output).sin()], dim=1)
            x = scheduler.step(output, t, x, generator=generator, **arguments).prev_sample
        return x

    here, there = end(ours, torch.float32), end(theirs, torch.float32)
    exact_here, exact_there = end(ours, torch.float64), end(with_exact_tables(theirs), torch.float64)
    assert here.isfinite().all() and exact_here.isfinite().all()
    if not exact_there.isfinite().all():  # 1 - ᾱ - σ² a rounding below 0, whose root is NaN there
        return None
    in_float32 = relative(here, there) if there.isfinite().all() else math.inf  # the same, by float32 tables
    return in_float32, relative(exact_here, exact_there)


def stand_in(x: Tensor, level: float) -> Tensor:
    """A smooth bounded function of x and t, in place of a network."""
    return torch.sin(x + 0.3 * x.roll(1, -1)) * (0.5 + 0.5 * level)


# ---------------------------------------------------------------- pipelines


def compare_images(kind: str, rng: random.Random) -> float:
    """Largest difference of images in [0, 1] from the two pipelines: same weights, same schedule, same seed."""
    T = rng.choice([20, 100])
    steps = rng.choice([n for n in range(1, 11) if T % n == 0])
    config = random_scheduler_config(rng, kind)
    config |= {"num_train_timesteps": T, "steps_offset": 0, "timestep_spacing": "leading"}
    config |= {"rescale_betas_zero_snr": False, "trained_betas": None}
    network = {key: value for key, value in random_unet_config(rng).items() if "class" not in key}
    out = 6 if config.get("variance_type") == "learned_range" else 3
    network |= {"sample_size": 8, "in_channels": 3, "out_channels": out}
    seed, batch, arguments = rng.getrandbits(32), rng.randint(1, 3), step_arguments(kind, rng)
    made = []
    for library in (here, diffusers):
        torch.manual_seed(seed)
        unet = library.UNet2DModel(**network).eval()  # type: ignore[attr-defined]
        scheduler = getattr(library, f"{kind.upper()}Scheduler")(**config)
        pipeline = getattr(library, f"{kind.upper()}Pipeline")(unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        options = {"batch_size": batch, "num_inference_steps": steps, "output_type": "np", **arguments}
        made.append(pipeline(generator=generator, **options).images)
    return float(np.abs(made[0] - made[1]).max())


# ---------------------------------------------------------------- the report


class Tally:
    """Cases and largest differences by group."""

    def __init__(self) -> None:
        self.cases: Counter[str] = Counter()
        self.worst: dict[str, float] = {}

    def add(self, group: str, difference: float | None = None) -> None:
        """One more case of a group; without a difference it was not compared."""
        self.cases[group] += 1
        if difference is not None:
            self.worst[group] = max(self.worst.get(group, 0.0), difference)

    def table(self) -> str:
        """One line per group."""
        found = {group: f"largest difference {worst:.1e}" for group, worst in self.worst.items()}
        lines = (f"{group:<44}{n:>8} cases, {found.get(group, 'not compared')}" for group, n in self.cases.items())
        return "\n".join(lines)


def tally_steps(tally: Tally, kind: str, seed: int) -> None:
    """Single steps: the formulas in float64, the float32 results against each other and against the oracle."""
    rng = random.Random(seed)
    config = random_scheduler_config(rng, kind)
    worst = compare_steps(kind, config, random_step_count(config, rng), rng)
    # where 1 - ᾱ - σ² is 0 but for rounding, its root is about 1e-8 on either side
    assert worst["formulas"] < 5e-8, (seed, config)
    assert worst["ours of what rounding allows"] < 1, (seed, config)
    tally.add(f"{kind} step, formulas in float64", worst["formulas"])
    tally.add(f"{kind} step, here to the oracle", worst["ours to oracle"])
    if worst["float32"] < 1e-5:
        tally.add(f"{kind} step, float32", worst["float32"])
    else:
        assert worst["theirs to oracle"] > 5 * worst["ours to oracle"], (seed, config)
        tally.add(f"{kind} step, here closer to the oracle", worst["float32"])


def tally_trajectory(tally: Tally, kind: str, seed: int) -> None:
    """A whole trajectory with a smooth function for the network."""
    rng = random.Random(seed)
    config = random_scheduler_config(rng, kind)
    difference = compare_trajectories(kind, config, random_step_count(config, rng), rng)
    if difference is None:
        tally.add(f"{kind} trajectory, Diffusers elsewhere")
        return
    assert difference[1] < 1e-7, (seed, config)  # rounding over up to 1,000 steps
    tally.add(f"{kind} trajectory, float64", difference[1])
    # beyond 5e-4 the float32 tables of Diffusers are what differs: the float64 comparison has just said so
    apart = "" if difference[0] < 5e-4 else ", tables apart"
    tally.add(f"{kind} trajectory, float32{apart}", difference[0])


def tally_network(tally: Tally, dtype: torch.dtype, seed: int) -> None:
    """A forward and a backward pass of a U-Net."""
    rng = random.Random(seed)
    config = random_unet_config(rng)
    tolerances = {torch.float32: (1e-5, 1e-5), torch.float64: (1e-12, 1e-10)}[dtype]
    differences = compare_unets(config, rng, dtype)
    for name, difference, tolerance in zip(("forward", "backward"), differences, tolerances, strict=True):
        assert difference < tolerance, (seed, config)
        tally.add(f"U-Net {name}, {dtype}", difference)


def tally_images(tally: Tally, kind: str, seed: int) -> None:
    """Images of the two pipelines."""
    difference = compare_images(kind, random.Random(seed))
    assert difference < 5e-4, seed
    tally.add(f"{kind} pipeline, images", difference)


GROUPS: dict[str, Callable[[Tally, int], None]] = {
    "ddpm steps": lambda tally, seed: tally_steps(tally, "ddpm", seed),
    "ddim steps": lambda tally, seed: tally_steps(tally, "ddim", seed),
    "ddpm trajectories": lambda tally, seed: tally_trajectory(tally, "ddpm", seed),
    "ddim trajectories": lambda tally, seed: tally_trajectory(tally, "ddim", seed),
    "networks in float32": lambda tally, seed: tally_network(tally, torch.float32, seed),
    "networks in float64": lambda tally, seed: tally_network(tally, torch.float64, seed),
    "ddpm images": lambda tally, seed: tally_images(tally, "ddpm", seed),
    "ddim images": lambda tally, seed: tally_images(tally, "ddim", seed),
}


def report(seconds: float) -> str:
    """Every group for its share of `seconds`, at least one seed each; the table of cases and largest differences.

    Raises:
        AssertionError: a difference beyond its tolerance; it holds the seed.
    """
    tally = Tally()
    assert diffusers.UNet2DModel and diffusers.DDIMPipeline  # imported when first named: not in a group's time
    for run in GROUPS.values():
        end, seed = time.monotonic() + seconds / len(GROUPS), 0
        while seed == 0 or time.monotonic() < end:
            run(tally, seed)
            seed += 1
    versions = f"Here against Diffusers {diffusers.__version__}, torch {torch.__version__}"
    return f"{versions}: relative differences, of images absolute\n{tally.table()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="How far this package and Diffusers are apart, group by group.")
    parser.add_argument("--report", action="store_true", required=True, help="run the comparisons, print the table")
    parser.add_argument("--seconds", type=float, default=60, help="for all groups together (default 60)")
    print(report(parser.parse_args().seconds))
