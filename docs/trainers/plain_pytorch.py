"""A plain PyTorch loop: each utterance is to find its own copy at another speed and pitch."""

import torch
from torch.utils.data import DataLoader

from speechft import augment, models
from speechft.data import SpeechDataset, collate, embedded_corpus
from speechft.losses import InfoNCELoss


def embed(encoder, waveforms, lengths):
    """Waveforms (B, T) to vectors (B, C): the mean of the valid frames; the others hold zeros."""
    _, features, frames = encoder(waveforms, lengths)
    return features.sum(dim=1) / frames[:, None]


def main():
    torch.manual_seed(0)
    data = SpeechDataset(embedded_corpus())  # 81 utterances: 5 batches
    loader = DataLoader(data, batch_size=16, shuffle=True, drop_last=True, collate_fn=collate)
    encoder = models.tiny("hubert").train()
    perturb = augment.Compose([augment.Speed(), augment.Pitch()])
    loss_fn = InfoNCELoss(symmetric=True, learn_temperature=True)
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss_fn.parameters()], lr=3e-3)
    losses = []
    for batch in loader:
        waveforms, lengths = batch["waveforms"][:, :32_000], batch["lengths"].clamp(max=32_000)
        copies = embed(encoder, *perturb(waveforms, lengths, batch["keys"]))
        loss = loss_fn(embed(encoder, waveforms, lengths), copies)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {len(losses)}: loss {loss:.4f}")
    return losses


if __name__ == "__main__":
    main()
