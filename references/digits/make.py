"""Trains the thread's CNN on scikit-learn's digits and writes the logits the audit uses.

    python references/digits/make.py        # needs scikit-learn, which the audit itself does not

The images are scaled to 3 x 32 x 32 and the network is that of the thread (two convolutions, three linear layers),
with its mistake: softmax output handed to KLDivLoss as if it were log-probabilities, one-hot target, mini-batches
of 4. The logits of 128 held-out images after each of five epochs are the only thing kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

OUT = Path(__file__).parents[2] / "audit" / "cases" / "data" / "digits.npz"
EPOCHS, BATCH, HELD_OUT = 5, 4, 128


def network() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.tensor(data.images / 8 - 1, dtype=torch.float32)[:, None].expand(-1, 3, -1, -1)
    images = F.interpolate(images, size=32, mode="bilinear", align_corners=False)
    labels = torch.tensor(data.target)
    held, train = torch.arange(HELD_OUT), torch.arange(HELD_OUT, len(labels))

    model, loss_of = network(), nn.KLDivLoss(reduction="mean")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.04, momentum=0.9)
    kept = []
    for epoch in range(EPOCHS):
        losses = []
        for batch in train[torch.randperm(len(train))].split(BATCH):
            optimiser.zero_grad()
            loss = loss_of(torch.softmax(model(images[batch]), -1), F.one_hot(labels[batch], 10).float())
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        with torch.no_grad():
            kept.append(model(images[held]))
        accuracy = (kept[-1].argmax(-1) == labels[held]).float().mean()
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, accuracy on held-out images {accuracy:.2f}")
    np.savez(OUT, logits=torch.stack(kept).numpy(), labels=labels[held].numpy())


if __name__ == "__main__":
    main()
