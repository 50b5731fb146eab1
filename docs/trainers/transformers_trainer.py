"""transformers.Trainer: utterances of one speaker together, those of others apart."""

import tempfile

from transformers import Trainer, TrainingArguments

from speechft import models
from speechft.data import SpeechDataset, collate, embedded_corpus
from speechft.losses import SupConLoss


class SpeakerTrainer(Trainer):
    loss_fn = SupConLoss()  # gather=True under torchrun
    loss_is_scaled_for_ga = False  # a mean over the batch: Trainer divides it when accumulating

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(inputs["waveforms"][:, :32_000], inputs["lengths"].clamp(max=32_000))
        embeddings = outputs.last_hidden_state.sum(dim=1) / outputs.lengths[:, None]
        loss = self.loss_fn(embeddings, labels=inputs["factors"][:, 0])
        return (loss, outputs) if return_outputs else loss


def main():
    data = SpeechDataset(embedded_corpus(), factors=["speaker"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=5, learning_rate=3e-3, per_device_train_batch_size=16, seed=0,
            dataloader_drop_last=True, remove_unused_columns=False, logging_steps=1,
            save_strategy="no", report_to="none", lr_scheduler_type="constant", disable_tqdm=True,
        )  # fmt: skip
        encoder = models.tiny("hubert")
        trainer = SpeakerTrainer(encoder, arguments, collate, train_dataset=data)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


if __name__ == "__main__":
    main()
