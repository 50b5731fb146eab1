"""sentence-transformers: every second word of a sentence is to find the words between."""

import torch
from sentence_transformers.sentence_transformer import SentenceTransformer, modules
from tokenizers import Tokenizer, models, trainers

from speechft.data import embedded_corpus
from speechft.losses import InfoNCELoss


class PairLoss(InfoNCELoss):  # for SentenceTransformerTrainer(loss=PairLoss(model))
    def __init__(self, model, **settings):
        super().__init__(symmetric=True, **settings)
        self.model = model

    def forward(self, sentence_features, labels=None):
        return super().forward(*[self.model(f)["sentence_embedding"] for f in sentence_features])


def main():
    torch.manual_seed(0)
    columns = [[" ".join(u.text.split()[i::2]) for u in embedded_corpus()] for i in (0, 1)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(columns, trainers.BpeTrainer(show_progress=False))
    model = SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=64)])
    loss_fn, losses = PairLoss(model, learn_temperature=True), []
    optimizer = torch.optim.Adam(loss_fn.parameters(), lr=0.03)  # the model's are among them
    for step in range(5):
        loss = loss_fn([model.preprocess(column) for column in columns])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step + 1}: loss {loss:.4f}")
    return losses


if __name__ == "__main__":
    main()
