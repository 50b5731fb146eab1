"""Lightning: each utterance is to find its own copy at another speed."""

import torch
from lightning import LightningModule, Trainer, seed_everything

from speechft import augment, models
from speechft.data import SpeechDataset, collate, embedded_corpus
from speechft.losses import NTXentLoss


class Refiner(LightningModule):
    def __init__(self, gather=False):  # True with strategy="ddp"
        super().__init__()
        self.encoder, self.losses = models.tiny("hubert").train(), []
        self.loss_fn = NTXentLoss(learn_temperature=True, gather=gather)

    def training_step(self, batch, index):
        clips = batch["waveforms"][:, :32_000], batch["lengths"].clamp(max=32_000)
        copies = augment.Speed((0.9, 1.1))(*clips, batch["keys"])
        outputs = self.encoder(*clips), self.encoder(*copies)
        loss = self.loss_fn(*[o.last_hidden_state.sum(1) / o.lengths[:, None] for o in outputs])
        self.print(f"step {index + 1}: loss {loss:.4f}")
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)  # the temperature is among them


def main():
    seed_everything(0)
    refiner, data = Refiner(), SpeechDataset(embedded_corpus())
    loader = torch.utils.data.DataLoader(data, 16, True, drop_last=True, collate_fn=collate)
    Trainer(max_steps=5, barebones=True).fit(refiner, loader)
    return refiner.losses


if __name__ == "__main__":
    main()
