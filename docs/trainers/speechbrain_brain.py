"""SpeechBrain: utterances of one speaker together, those of others apart."""

import torch
from speechbrain import Brain
from speechbrain.dataio.batch import PaddedBatch
from torch.utils.data import DataLoader

from speechft import Lengths, models
from speechft.data import SpeechDataset, embedded_corpus
from speechft.losses import SupConLoss


class SpeakerBrain(Brain):
    def compute_forward(self, batch, stage):
        wavs, lens = batch.waveform
        output = self.modules.encoder(wavs, Lengths.from_relative(lens, wavs.shape[1]))
        return output.last_hidden_state.sum(dim=1) / output.lengths[:, None]

    def compute_objectives(self, predictions, batch, stage):
        return self.modules.loss_fn(predictions, batch.factors.data[:, 0])

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.losses.append(loss.item())
        print(f"step {self.step}: loss {loss:.4f}")


def main():
    torch.manual_seed(0)
    data = SpeechDataset(embedded_corpus(), factors=["speaker"])
    loader = DataLoader(data, 16, shuffle=True, drop_last=True, collate_fn=PaddedBatch)
    modules = {"encoder": models.tiny("hubert"), "loss_fn": SupConLoss(learn_temperature=True)}
    brain = SpeakerBrain(modules, lambda parameters: torch.optim.Adam(parameters, lr=2e-3))
    brain.losses = []
    brain.fit(range(1), loader, progressbar=False)
    return brain.losses


if __name__ == "__main__":
    main()
