"""A small classifier: its features carry the Fréchet and kernel distances, its confidence judges single images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from tqdm.auto import tqdm

from ddpm_from_scratch.config import register_to_config
from ddpm_from_scratch.data import ImageDataset
from ddpm_from_scratch.hub import ModelMixin
from ddpm_from_scratch.training import bf16_is_fast


class FeatureClassifier(ModelMixin):
    """Four convolutions, the mean over all positions, one linear layer.

    Args:
        image_size: side of the square images.
        in_channels: of the images.
        num_classes: classes told apart.
        widths: channels after each convolution; the last is the number of features.

    Raises:
        ValueError: a size or number that is not positive, or images that are halved to nothing.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 28,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128, 64),
    ) -> None:
        super().__init__()
        if min(image_size, in_channels, num_classes, *widths) < 1 or len(widths) != 4:
            raise ValueError(f"sizes must be positive and widths four, got {image_size=}, {in_channels=}, {widths=}")
        if image_size < 3:
            raise ValueError(f"the classifier halves images twice: they must be 3×3 at least, got {image_size}")
        a, b, c, d = widths
        self.body = nn.Sequential(
            *_convolution(in_channels, a, kernel_size=5, stride=2),
            *_convolution(a, b),
            nn.MaxPool2d(2),
            *_convolution(b, c),
            *_convolution(c, d),
        )
        self.head = nn.Linear(d, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] → features (N, widths[-1])."""
        return self.body(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] → logits (N, num_classes)."""
        return self.head(self.features(x))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images it takes."""
        return self.config.in_channels, self.config.image_size, self.config.image_size


def _convolution(inputs: int, outputs: int, kernel_size: int = 3, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


# ---------------------------------------------------------------- training


def train_classifier(
    dataset: ImageDataset,
    epochs: int = 8,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    weight_decay: float = 0.05,
    max_shift: int = 1,
    seed: int = 0,
) -> FeatureClassifier:
    """A classifier of `dataset`, by AdamW on the cross-entropy, with a one-cycle learning rate.

    Args:
        dataset: square images with a label each.
        epochs, batch_size, learning_rate, weight_decay: of AdamW; the rate given is its peak.
        max_shift: each image is moved by up to this many pixels each way, anew every time.
        seed: of the first weights, the order and the shifts.

    Raises:
        ValueError: images that are not square, or without labels; fewer than one epoch.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    channels, height, width = dataset.shape
    if height != width or int(dataset.labels.min()) < 0:
        raise ValueError(f"a classifier needs square images with labels, {dataset.name} is {height}×{width}")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classes = len(dataset.classes) or int(dataset.labels.max()) + 1
        model = FeatureClassifier(height, channels, classes).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    steps = epochs * -(-len(dataset) // batch_size)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    fast = bf16_is_fast(torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with tqdm(total=steps, unit="step", desc=f"classifier of {dataset.name}") as bar:
        for indices in _batches(len(dataset), batch_size, epochs, generator):
            x = shifted(dataset.images(indices), max_shift, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logits = model(x.to(memory_format=torch.channels_last))
            loss = cross_entropy(logits.float(), dataset.labels[indices])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model.to(memory_format=torch.contiguous_format).eval()


def _batches(size: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(size, generator=generator).split(batch_size)


def shifted(x: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels, at most `max_shift` each way; black (-1) moves in.

    Args:
        x: (N, C, H, W) in [-1, 1].

    Returns:
        (N, C, H, W).
    """
    count, _, height, width = x.shape
    places = pad(x, [max_shift] * 4, value=-1).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, places, places, H, W)
    down, right = torch.randint(2 * max_shift + 1, (2, count), generator=generator)
    return places[torch.arange(count), :, down, right]
