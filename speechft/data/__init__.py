"""Manifests, decoding, datasets and batching, and a corpus that ships with the package.

>>> from torch.utils.data import DataLoader
>>> from speechft.data import LengthBatchSampler, SpeechDataset, collate, embedded_corpus
>>> dataset = SpeechDataset(embedded_corpus().filter(language="en"))
>>> sampler = LengthBatchSampler(dataset.lengths, batch_size=4)
>>> loader = DataLoader(dataset, batch_sampler=sampler, collate_fn=collate)
>>> batch = next(iter(loader))
"""

from speechft.data.audio import load_audio
from speechft.data.check import CheckReport, check
from speechft.data.class_batches import ClassBatchSampler
from speechft.data.dataset import Batch, Sample, SpeechDataset, collate
from speechft.data.embedded import embedded_corpus
from speechft.data.ledger import Ledger, Skip
from speechft.data.manifest import Manifest, Utterance, utterance_key, write_manifest
from speechft.data.phones import Phone, read_phones
from speechft.data.readers import read_manifest
from speechft.data.sampler import LengthBatchSampler
from speechft.data.scanning import Scan, scan

__all__ = [
    "Batch",
    "CheckReport",
    "ClassBatchSampler",
    "Ledger",
    "LengthBatchSampler",
    "Manifest",
    "Phone",
    "Sample",
    "Scan",
    "Skip",
    "SpeechDataset",
    "Utterance",
    "check",
    "collate",
    "embedded_corpus",
    "load_audio",
    "read_manifest",
    "read_phones",
    "scan",
    "utterance_key",
    "write_manifest",
]
