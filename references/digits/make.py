"""Trains the thread's CNN on scikit-learn's digits and writes what the audit keeps of it.

    python references/digits/make.py        # needs scikit-learn, which the audit itself does not

The images are scaled to 3 x 32 x 32, the network is that of the thread (two convolutions, three linear layers), labels
are one-hot, mini-batches are of 4. It is trained three times from one seed, on the same mini-batches in the same order:

- as the thread did, with softmax output handed to KLDivLoss as if it were log-probabilities;
- with log_softmax output, as KLDivLoss wants it;
- with cross_entropy, at a tenth of the learning rate: KLDivLoss divides by the 10 classes too, so that its gradient is
  a tenth of cross_entropy's. The two trainings are the same until rounding, which training amplifies, tells them apart.

Kept: the logits of 128 held-out images after each of the first training's five epochs; and of each training its loss
and the cross-entropy of the same outputs, averaged over 200 mini-batches each, as the thread prints its loss.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = Path(__file__).parents[2] / "audit"
LOGITS = PACKAGE / "cases" / "data" / "digits.npz"
LOSSES = PACKAGE / "publish" / "training.csv"
EPOCHS, BATCH, HELD_OUT, RATE, WINDOW = 5, 4, 128, 0.04, 200

kl_div = nn.KLDivLoss(reduction="mean")


def softmax_output(logits: Tensor, labels: Tensor) -> Tensor:
    return kl_div(torch.softmax(logits, -1), F.one_hot(labels, 10).float())


def log_softmax_output(logits: Tensor, labels: Tensor) -> Tensor:
    return kl_div(torch.log_softmax(logits, -1), F.one_hot(labels, 10).float())


TRAININGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "KLDivLoss of softmax": (softmax_output, RATE),
    "KLDivLoss of log_softmax": (log_softmax_output, RATE),
    "cross_entropy": (F.cross_entropy, RATE / 10),
}


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def train(
    loss_of: Callable[[Tensor, Tensor], Tensor], rate: float, images: Tensor, labels: Tensor
) -> Iterator[tuple[list[tuple[float, float]], Tensor]]:
    """After each epoch: loss and cross-entropy of its mini-batches, and the logits of the held-out images."""
    torch.manual_seed(0)
    held, train = torch.arange(HELD_OUT), torch.arange(HELD_OUT, len(labels))
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(EPOCHS):
        losses = []
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimiser.zero_grad()
            logits = model(images[batch])
            loss = loss_of(logits, labels[batch])
            loss.backward()
            optimiser.step()
            losses.append((loss.item(), F.cross_entropy(logits.detach(), labels[batch]).item()))
        with torch.no_grad():
            yield losses, model(images[held])


def main() -> None:
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)

    rows = []
    for name, (loss_of, rate) in TRAININGS.items():
        losses, logits = [], []
        for epoch_losses, held in train(loss_of, rate, images, labels):
            losses += epoch_losses
            logits.append(held)
            accuracy = (held.argmax(-1) == labels[:HELD_OUT]).float().mean()
            print(f"{name}: loss {np.mean(epoch_losses, 0)[0]:.4f}, accuracy on held-out images {accuracy:.2f}")
        if loss_of is softmax_output:
            np.savez(LOGITS, logits=torch.stack(logits).numpy(), labels=labels[:HELD_OUT].numpy())
        for end in range(WINDOW, len(losses) + 1, WINDOW):
            means = np.mean(losses[end - WINDOW : end], axis=0).tolist()
            rows.append((name, end, EPOCHS * end / len(losses), *means))
    with LOSSES.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("training", "batches", "epoch", "loss", "cross_entropy"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
