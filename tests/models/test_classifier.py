"""A classifier is an embedding model and its head: what is written is what is read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from speechft.errors import ArgumentError
from speechft.losses import AAMSoftmaxLoss
from speechft.models import EmbeddingSpec, load_backbone, load_embedding, make_embedding
from speechft.models.adapter import ResidualAdapter
from speechft.models.classifier import (
    Classifier,
    LinearHead,
    classes_of,
    is_classifier_folder,
    load_adapter,
    load_classifier,
    load_head,
)

from .twins import noise

CLASSES = ("neutral", "angry", "sad")
LENGTHS = [8_000, 5_000]


def made(kind: str = "cross_entropy", classes=CLASSES) -> Classifier:
    model = make_embedding(EmbeddingSpec("xvector-8", size=16, bands=20))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "cross_entropy":
            head = LinearHead(16, len(classes))
        else:
            head = AAMSoftmaxLoss(
                16, len(classes), sub_centers=2, scale=12.0, margin=0.3, reduction="none"
            )
    return Classifier(model, head, "mood", classes).eval()


@pytest.mark.parametrize("kind", ["cross_entropy", "aam"])
def test_what_is_written_is_what_is_read(tmp_path, kind):
    classifier = made(kind)
    classifier.save_pretrained(tmp_path)
    again = load_classifier(tmp_path)
    assert not any(module.training for module in again.modules())
    assert (again.label, again.classes) == ("mood", CLASSES) == classes_of(tmp_path)
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    x = noise(2, 8_000)
    assert torch.equal(again(x, LENGTHS), classifier(x, LENGTHS))
    assert again(x, LENGTHS).shape == (2, 3)


def test_it_is_an_embedding_model_beside_its_head(tmp_path):
    classifier = made()
    classifier.save_pretrained(tmp_path)
    x = noise(2, 8_000)
    for model in (load_embedding(tmp_path), load_backbone(tmp_path)):
        assert torch.equal(model(x, LENGTHS), classifier.model(x, LENGTHS))


def test_logits_are_those_of_the_head_on_vectors():
    x = noise(2, 8_000)
    linear = made()
    vectors = linear.model(x, LENGTHS)
    own = linear.head.linear
    torch.testing.assert_close(linear(x, LENGTHS), vectors @ own.weight.T + own.bias)
    margin = made("aam")
    vectors = functional.normalize(margin.model(x, LENGTHS), dim=1)
    centres = functional.normalize(margin.head.weight, dim=1)
    nearest = (vectors @ centres.T).unflatten(1, (3, 2)).amax(2)
    torch.testing.assert_close(margin(x, LENGTHS), 12.0 * nearest)


def test_the_linear_head_is_cross_entropy_of_known_labels():
    head = LinearHead(4, 3)
    vectors, labels = torch.randn(3, 4), torch.tensor([2, -1, 0])
    logits = vectors @ head.linear.weight.T + head.linear.bias
    wanted = -logits.log_softmax(1)[[0, 1, 2], [2, 0, 0]] * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(head(vectors, labels), wanted)


@pytest.mark.parametrize("classes", [("b", "a", "c"), (10, 2, 3), (1, "1", "z")])
def test_the_order_and_the_kind_of_classes_are_kept(tmp_path, classes):
    """They are not sorted anew, and numbers stay numbers."""
    made(classes=classes).save_pretrained(tmp_path)
    assert load_classifier(tmp_path).classes == classes
    assert [type(c) for c in load_classifier(tmp_path).classes] == [type(c) for c in classes]


def test_other_folders_are_refused(tmp_path):
    made().model.save_pretrained(tmp_path / "embedding")
    for folder in (tmp_path / "embedding", tmp_path / "nothing"):
        assert not is_classifier_folder(folder)
        with pytest.raises(ArgumentError, match=r"path: .* holds no classifier") as caught:
            load_classifier(folder)
        assert str(folder) in str(caught.value)
    made().save_pretrained(tmp_path / "whole")
    assert is_classifier_folder(tmp_path / "whole")


def test_a_head_that_does_not_fit_is_named(tmp_path):
    made().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match=r"head: .*head.safetensors does not fit at linear"):
        load_head(LinearHead(16, 4), tmp_path)
    with pytest.raises(ArgumentError, match="does not fit at"):
        load_head(AAMSoftmaxLoss(16, 3), tmp_path)
    weights = load_file(tmp_path / "head.safetensors")
    save_file({**weights, "odd": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ArgumentError, match="does not fit at odd"):
        load_classifier(tmp_path)
    save_file(weights, tmp_path / "head.safetensors")
    content = json.loads((tmp_path / "classes.json").read_text())
    (tmp_path / "classes.json").write_text(json.dumps({**content, "classes": ["a", "b"]}))
    with pytest.raises(ArgumentError, match="does not fit at linear"):
        load_classifier(tmp_path)


class TestAdapter:
    """What stands between the vectors and the head."""

    def made(self) -> Classifier:
        plain = made()
        torch.manual_seed(2)
        adapter = ResidualAdapter(16, 5)
        torch.nn.init.normal_(adapter.up.weight)
        torch.nn.init.normal_(adapter.down.weight)
        return Classifier(plain.model, plain.head, "mood", CLASSES, adapter).eval()

    def test_is_beside_what_goes_straight_on(self):
        classifier, x = self.made(), noise(2, 8_000)
        vectors, own = classifier.model(x, LENGTHS), classifier.adapter
        hidden = (vectors @ own.down.weight.T + own.down.bias).clamp(min=0)
        wanted = vectors + hidden @ own.up.weight.T + own.up.bias
        torch.testing.assert_close(classifier.adapted(vectors), wanted)
        torch.testing.assert_close(classifier(x, LENGTHS), classifier.head.logits(wanted))

    def test_is_nearly_nothing_at_first(self):
        vectors = torch.randn(4, 16)
        torch.testing.assert_close(ResidualAdapter(16, 8)(vectors), vectors, atol=0.02, rtol=0)

    def test_is_written_and_read(self, tmp_path):
        classifier, x = self.made(), noise(2, 8_000)
        classifier.save_pretrained(tmp_path)
        assert torch.equal(load_classifier(tmp_path)(x, LENGTHS), classifier(x, LENGTHS))
        assert torch.equal(load_embedding(tmp_path)(x, LENGTHS), classifier.model(x, LENGTHS))

    def test_folders_that_do_not_say_have_none(self, tmp_path):
        classifier, x = made(), noise(2, 8_000)
        classifier.save_pretrained(tmp_path)
        content = json.loads((tmp_path / "classes.json").read_text())
        del content["adapter_size"]
        (tmp_path / "classes.json").write_text(json.dumps(content))
        again = load_classifier(tmp_path)
        assert again.adapter is None
        assert torch.equal(again(x, LENGTHS), classifier(x, LENGTHS))

    def test_one_that_is_missing_or_does_not_fit_is_named(self, tmp_path):
        self.made().save_pretrained(tmp_path)
        with pytest.raises(ArgumentError, match=r"adapter: .*adapter.safetensors does not fit at"):
            load_adapter(ResidualAdapter(16, 6), tmp_path)
        (tmp_path / "adapter.safetensors").unlink()
        with pytest.raises(ArgumentError, match=r"adapter: there is no .*adapter.safetensors"):
            load_classifier(tmp_path)

    def test_sizes_below_1_are_refused(self):
        with pytest.raises(ArgumentError, match="hidden: wants at least 1, got 0"):
            ResidualAdapter(4, 0)
